"""Sampling with the training model itself, in process, on any device: continuous batching over transformers.

All rows share one time axis in a preallocated key–value cache. A prompt of P ids that joins at time t takes the
columns t−P … t. So every row writes its next token in the same column, and its past is one contiguous stretch that
ends there. A row that ends leaves at once, and the last row takes its slot. When enough slots are free, the next
prompts are prefilled into them. What all prompts begin with is read once, and so are equal prompts.

Left out: paged attention and preemption, because vLLM has them; linear-attention models, because their state has no
time axis; log-probabilities of the sampled tokens, because the sampler has the trainer's own weights.

    python bench/sampling.py
"""

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from stepalign import config
from stepalign.errors import StepalignError
from stepalign.losses.lm_head import logit_dtype, project
from stepalign.policy import logit_scale
from stepalign.records import FinishReason, TokenIds
from stepalign.rollouts import Completion, Request
from stepalign.rollouts.kv_cache import SharedAxisLayer
from stepalign.rollouts.token_pass import TokenPass

_COMPACT_EVERY = 256
"""Columns of slack on the time axis. The whole cache is moved to the front when they are used up."""
_MIN_PREFIX = 32
"""Shared ids below which a prefix is read again with every prompt: the copies would cost as much."""
_CANDIDATES = 512
"""Tokens that nucleus sampling sorts first; only rows whose nucleus is wider sort the whole vocabulary."""


class TransformersSampler:
    """Sampler over a transformers model, or over a PEFT model with one of its adapters."""

    def __init__(self, model: torch.nn.Module, *, eos_ids: frozenset[int], batch_size: int) -> None:
        """`model` is a causal language model; at most `batch_size` rows are decoded together."""
        self.model, self.eos_ids, self.batch_size = model, eos_ids, batch_size
        layer_types = getattr(_base(model).config.get_text_config(), "layer_types", None) or ()
        if unsupported := set(layer_types) - {"full_attention", "sliding_attention"}:
            raise StepalignError(
                f"sampler.kind = 'transformers': the model has layers of type {', '.join(sorted(unsupported))}, "
                "allowed are full_attention and sliding_attention: sample with vLLM, which supports more"
            )

    @classmethod
    def from_config(
        cls,
        settings: config.TransformersConfig,
        *,
        load: Callable[[], torch.nn.Module],
        eos_ids: frozenset[int],
        **_: object,
    ) -> "TransformersSampler":
        """Build the sampler of a recipe on the training model that `load` returns."""
        return cls(load(), eos_ids=eos_ids, batch_size=settings.max_num_seqs)

    def sample(
        self, requests: Sequence[Request], sampling: config.SamplingConfig, *, adapter: str | None
    ) -> Iterator[Completion]:
        """Sample completions. See `Sampler`."""
        _check_room(_base(self.model), requests, sampling)
        was_training = self.model.training
        self.model.eval()
        try:
            with _using(self.model, adapter):
                yield from _Batch(_base(self.model), self.eos_ids, self.batch_size, sampling).run(requests)
        finally:
            self.model.train(was_training)


@dataclass
class _Row:
    request: Request
    noise: Float[Tensor, " steps"]
    """One uniform number a token: a completion depends on the request's seed, not on the other rows."""
    ids: list[int] = field(default_factory=list)


class _Batch:
    """Rows that are decoded together, and their cache."""

    def __init__(
        self, model: PreTrainedModel, eos_ids: frozenset[int], size: int, sampling: config.SamplingConfig
    ) -> None:
        self.decoder, self.head = model.get_decoder(), model.get_output_embeddings().weight
        self.device, self.logit_scale = self.head.device, logit_scale(model)
        self.eos_ids, self.size, self.sampling = eos_ids, size, sampling
        self.rows: list[_Row] = []
        self.starts: list[int] = []  # the column where each row's prompt begins
        self.layers = model.config.get_text_config().num_hidden_layers
        self.token_pass = TokenPass(self.decoder) if TokenPass.supports(self.decoder) else None

    def run(self, requests: Sequence[Request]) -> Iterator[Completion]:
        """Sample a completion for each request."""
        # The longest prompt first: every later one fits between the axis' front and its present column.
        queue = deque(sorted(requests, key=lambda request: -len(request.prompt_ids)))
        if not queue:
            return
        self.size = min(self.size, len(queue))
        self.now = len(queue[0].prompt_ids)
        # Only rows that join later carry the axis on past the first ones' longest completion.
        slack = _COMPACT_EVERY if len(queue) > self.size else 0
        capacity = self.now + self.sampling.max_new_tokens + slack
        self.cache = Cache(layers=[SharedAxisLayer(self.size, capacity) for _ in range(self.layers)])
        self._read_prefix([request.prompt_ids for request in queue])
        refill_at = self.size - max(1, self.size // 4)
        while queue or self.rows:
            if queue and len(self.rows) <= refill_at:
                joining = [queue.popleft() for _ in range(min(self.size - len(self.rows), len(queue)))]
                yield from self._sample(self._prefill(joining), first=len(self.rows) - len(joining))
            if self.rows:
                yield from self._sample(self._decode(), first=0)

    @torch.no_grad()
    def _read_prefix(self, prompts: Sequence[TokenIds]) -> None:
        """Read the ids that all prompts begin with, worked examples for instance, once for all of them."""
        common = os.path.commonprefix(prompts)
        # The last prompt is the shortest, and one id must follow.
        self.prefix = min(len(common), len(prompts[-1]) - 1) if len(prompts) > 1 else 0
        if self.prefix < _MIN_PREFIX:
            self.prefix = 0
            return
        self._set_target(slots=slice(0, 1), column=0, first=0)
        ids = torch.tensor([common[: self.prefix]])
        self._forward(ids, torch.ones_like(ids, dtype=torch.bool), torch.arange(self.prefix)[None])
        for layer in self.cache.layers:
            layer.keep_prefix(self.prefix)

    @torch.no_grad()
    def _prefill(self, requests: Sequence[Request]) -> Float[Tensor, "joining vocab"]:
        """Write the prompts into the last slots and return the logits behind their last ids.

        Equal prompts are read once. The shared prefix is copied into its columns and not read again.
        """
        prompts = list(dict.fromkeys(request.prompt_ids for request in requests))
        starts = [self.now - len(prompt) for prompt in prompts]
        suffixes = [prompt[self.prefix :] for prompt in prompts]
        longest = max(map(len, suffixes))
        ids = torch.tensor([(0,) * (longest - len(suffix)) + suffix for suffix in suffixes])
        used, column = len(self.rows), self.now - longest
        self._set_target(
            slots=slice(used, used + len(prompts)),
            column=column,
            first=min(starts),
            prefix_starts=starts if self.prefix else (),
        )
        begin = torch.tensor(starts)[:, None]
        mask = torch.arange(min(starts), self.now) >= begin
        logits = self._forward(ids, mask, (torch.arange(column, self.now) - begin).clamp(min=0))

        slots = {prompt: used + place for place, prompt in enumerate(prompts)}
        readers = {request.prompt_ids: request for request in reversed(requests)}
        ordered = [readers[prompt] for prompt in prompts]
        ordered += [request for request in requests if request is not readers[request.prompt_ids]]
        for slot, request in enumerate(ordered, start=used):
            start, source = self.now - len(request.prompt_ids), slots[request.prompt_ids]
            if slot != source:
                for layer in self.cache.layers:
                    layer.move(source, slot, start, self.now)
            generator = torch.Generator().manual_seed(request.seed)
            self.rows.append(_Row(request, torch.rand(self.sampling.max_new_tokens, generator=generator)))
            self.starts.append(start)
        return logits[[slots[request.prompt_ids] - used for request in ordered]]

    @torch.no_grad()
    def _decode(self) -> Float[Tensor, "rows vocab"]:
        """Feed each row's last id and return the logits behind it."""
        if self.now + 1 > self.cache.layers[0].capacity:
            self._compact()
        starts = torch.tensor(self.starts)
        first = int(starts.min())
        self._set_target(slots=slice(0, len(self.rows)), column=self.now, first=first)
        self.now += 1
        mask = torch.arange(first, self.now) >= starts[:, None]
        ids, positions = torch.tensor([[row.ids[-1]] for row in self.rows]), (self.now - 1 - starts)[:, None]
        if self.token_pass is None:
            return self._forward(ids, mask, positions)
        return self._logits(self.token_pass(ids[:, 0], mask, positions[:, 0], self.cache))

    def _forward(
        self, ids: Int[Tensor, "rows new"], mask: Bool[Tensor, "rows columns"], positions: Int[Tensor, "rows new"]
    ) -> Float[Tensor, "rows vocab"]:
        output = self.decoder(
            input_ids=ids.to(self.device),
            attention_mask=None if mask.all() else mask.long().to(self.device),
            position_ids=positions.to(self.device),
            past_key_values=self.cache,
            use_cache=True,
        )
        return self._logits(output.last_hidden_state[:, -1])

    def _logits(self, hidden: Float[Tensor, "rows hidden"]) -> Float[Tensor, "rows vocab"]:
        logits = torch.empty((len(hidden), len(self.head)), dtype=logit_dtype(self.head), device=self.device)
        project(hidden, self.head, logits)
        return logits if self.logit_scale == 1 else logits.mul_(self.logit_scale)

    def _sample(self, logits: Float[Tensor, "some vocab"], first: int) -> Iterator[Completion]:
        """Sample a token for the rows from `first` on; rows that end leave."""
        rows = self.rows[first:]
        noise = torch.stack([row.noise[len(row.ids)] for row in rows]).to(logits.device)
        tokens = sample_tokens(logits, noise, self.sampling).tolist()
        ended = []
        for slot, (row, token) in enumerate(zip(rows, tokens, strict=True), start=first):
            row.ids.append(token)
            if token in self.eos_ids or len(row.ids) == self.sampling.max_new_tokens:
                ended.append(slot)
                finish: FinishReason = "stop" if token in self.eos_ids else "length"
                yield Completion(id=row.request.id, ids=tuple(row.ids), finish=finish)
        for slot in reversed(ended):  # the last row takes a free slot
            last = len(self.rows) - 1
            if slot != last:
                self.rows[slot], self.starts[slot] = self.rows[last], self.starts[last]
                for layer in self.cache.layers:
                    layer.move(last, slot, self.starts[slot], self.now)
            del self.rows[last], self.starts[last]

    def _compact(self) -> None:
        """Move every row towards the front of the time axis."""
        shift = min(self.starts)
        for layer in self.cache.layers:
            layer.shift(shift, self.now)
        self.now -= shift
        self.starts = [start - shift for start in self.starts]

    def _set_target(self, *, slots: slice, column: int, first: int, prefix_starts: Sequence[int] = ()) -> None:
        for layer in self.cache.layers:
            layer.set_target(slots, column, first, prefix_starts)


def sample_tokens(
    logits: Float[Tensor, "rows vocab"], noise: Float[Tensor, " rows"], sampling: config.SamplingConfig
) -> Int[Tensor, " rows"]:
    """Sample one token a row by inverting the cumulative distribution at `noise`, uniform in [0, 1).

    Temperature comes first, then top-k, then top-p (the smallest set of tokens whose probability reaches it), as in
    transformers and vLLM.
    """
    if sampling.temperature == 0:
        return logits.argmax(dim=-1)
    logits = logits / sampling.temperature
    if sampling.top_k == 0 and sampling.top_p == 1:
        return _invert(logits.softmax(dim=-1), noise)
    vocab = logits.shape[-1]
    width = min(sampling.top_k or _CANDIDATES, vocab)
    values, tokens = logits.topk(width, dim=-1)
    normalizer = (values if sampling.top_k else logits).logsumexp(dim=-1, keepdim=True)
    nucleus = _nucleus((values - normalizer).exp(), sampling.top_p)
    choice = tokens.gather(-1, _invert(nucleus, noise)[:, None])[:, 0]
    if not sampling.top_k and width < vocab:
        wide = (nucleus[:, -1] > 0).nonzero()[:, 0]  # the nucleus may go on past the candidates
        if len(wide):
            probabilities, order = logits[wide].softmax(dim=-1).sort(dim=-1, descending=True)
            index = _invert(_nucleus(probabilities, sampling.top_p), noise[wide])
            choice[wide] = order.gather(-1, index[:, None])[:, 0]
    return choice


def _nucleus(probabilities: Float[Tensor, "rows sorted"], top_p: float) -> Float[Tensor, "rows sorted"]:
    """Set to zero all but the smallest head of the sorted probabilities that reaches `top_p`."""
    before = probabilities.cumsum(dim=-1) - probabilities
    return probabilities.masked_fill(before >= top_p, 0.0) if top_p < 1 else probabilities


def _invert(weights: Float[Tensor, "rows choices"], noise: Float[Tensor, " rows"]) -> Int[Tensor, " rows"]:
    """Find the index at which each row's cumulative weight first exceeds `noise` × its total."""
    cumulative = weights.cumsum(dim=-1)
    total = cumulative[:, -1:]
    index = torch.searchsorted(cumulative, noise[:, None] * total, right=True)
    # Rounding may carry noise × total to the total itself: take the last choice with weight, never one without.
    last = (cumulative < total).sum(dim=-1, keepdim=True)
    return torch.minimum(index, last)[:, 0]


def _base(model: torch.nn.Module) -> PreTrainedModel:
    return model.get_base_model() if hasattr(model, "get_base_model") else model  # type: ignore[operator]


def _using(model: torch.nn.Module, adapter: str | None) -> AbstractContextManager[None]:
    if not hasattr(model, "peft_config"):
        if adapter is not None:
            raise StepalignError(f"the model carries no adapters, asked for {adapter!r}")
        return nullcontext()
    if adapter is None:
        disabled: AbstractContextManager[None] = model.disable_adapter()  # type: ignore[operator]
        return disabled
    if adapter != model.active_adapter:
        raise StepalignError(f"adapter {adapter!r} is not the active one ({model.active_adapter!r})")
    return nullcontext()


def _check_room(model: PreTrainedModel, requests: Sequence[Request], sampling: config.SamplingConfig) -> None:
    """Check that every prompt and its longest completion fit the model's context."""
    limit: int | None = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    for request in requests:
        if not request.prompt_ids:
            raise StepalignError(f"{request.id}: an empty prompt")
        needed = len(request.prompt_ids) + sampling.max_new_tokens
        if limit is not None and needed > limit:
            raise StepalignError(
                f"{request.id}: a prompt of {len(request.prompt_ids)} tokens and max_new_tokens = "
                f"{sampling.max_new_tokens} need {needed} positions, the model has {limit}"
            )
