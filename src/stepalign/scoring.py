"""Scores of views by a model in process: log-probabilities of tokens, and of a few words in one place.

Views are read in batches of bounded tokens, so memory does not grow with their number. A view's scores do not depend on
its batch. Logits exist for a chunk of tokens, or for the words that are compared.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from stepalign.collate import Batch, collate, sharing_order, split_views
from stepalign.losses.log_probs import scores
from stepalign.records import TokenIds, TopTokens
from stepalign.views import View

BATCH_TOKENS = {"cpu": 2048, "cuda": 32_768}
"""Tokens of a batch, padding included. On the CPU, larger batches are no faster."""


@runtime_checkable
class Predictor(Protocol):
    """Model that predicts tokens: a `Policy` or a `Teacher`."""

    @property
    def head(self) -> Float[Tensor, "vocab hidden"]:
        """The output projection of the hidden states."""
        ...

    @property
    def shares_prefixes(self) -> bool:
        """True where views that begin alike may share a row (`Policy.shares_prefixes`)."""
        ...

    def forward(self, batch: Batch) -> Float[Tensor, "tokens hidden"]:
        """Return the hidden states that predict the batch's loss tokens."""
        ...


class TokenScores(NamedTuple):
    """A model's log-probabilities of a view's loss tokens, in nats to six decimals."""

    log_probs: tuple[float, ...]
    top: tuple[TopTokens, ...]
    """The likeliest tokens in each place; empty unless requested."""


@torch.no_grad()
def score_views(model: Predictor, views: Sequence[View], *, top: int = 0) -> list[TokenScores]:
    """Score every view, in the given order.

    Args:
        model: a policy or a teacher.
        views: of any lengths.
        top: the number of likeliest tokens kept in each place.
    """
    by_index: dict[int, TokenScores] = {}
    for indices, batch in _batches(model, views):
        scored = scores(model.forward(batch), model.head, batch.targets, top=top)
        sizes = [views[index].num_loss_tokens for index in indices]
        parts = (
            torch.split(tensor.cpu(), sizes) for tensor in (scored.log_probs, scored.top_ids, scored.top_log_probs)
        )
        for index, log_probs, ids, top_log_probs in zip(indices, *parts, strict=True):
            entries = zip(ids.tolist(), map(rounded, top_log_probs.tolist()), strict=True)
            likeliest = tuple(tuple(zip(*entry, strict=True)) for entry in entries) if top else ()
            by_index[index] = TokenScores(rounded(log_probs.tolist()), likeliest)
    return [by_index[index] for index in range(len(views))]


@torch.no_grad()
def log_odds(model: Predictor, prompts: Sequence[TokenIds], words: Sequence[int], others: Sequence[int]) -> list[float]:
    """Return log p(any of `words`) − log p(any of `others`) as the token behind each prompt, in nats.

    The normalizer of the softmax cancels, so the logits of these tokens are enough.
    """
    views = [View(prompt_ids=ids, completion_ids=(words[0],), loss_start=0, loss_stop=1) for ids in prompts]
    by_index: dict[int, float] = {}
    for indices, batch in _batches(model, views):
        hidden = model.forward(batch).float()
        sides = [hidden @ model.head[list(ids)].float().T for ids in (words, others)]
        gaps = sides[0].logsumexp(-1) - sides[1].logsumexp(-1)
        by_index |= zip(indices, rounded(gaps.tolist()), strict=True)
    return [by_index[index] for index in range(len(views))]


def rounded(values: Sequence[float]) -> tuple[float, ...]:
    """Round to six decimals, as files hold them."""
    return tuple(round(value, 6) for value in values)


def _batches(model: Predictor, views: Sequence[View]) -> Iterator[tuple[list[int], Batch]]:
    """Yield batches with the indices of their views. The longest come first, so that lack of memory shows at once."""
    device, share = model.head.device, model.shares_prefixes
    max_tokens = BATCH_TOKENS.get(device.type, BATCH_TOKENS["cuda"])
    order = sorted(range(len(views)), key=lambda index: -len(views[index].input_ids))
    if share:
        order = sharing_order(views, max_tokens)
    remaining = iter(order)
    for group in split_views([views[index] for index in order], max_tokens, share_prefixes=share):
        yield [next(remaining) for _ in group], collate(group, share_prefixes=share).to(device)
