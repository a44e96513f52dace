"""Log-probabilities of completions under one model, and the likeliest tokens in each place.

Views are scored in batches of similar length within a number of tokens. That bounds the memory, together with the
chunks of `losses.log_probs`. Padding is on the right, where a causal model's real positions cannot attend to it, so
a view's scores do not depend on its batch. Left out: reading a common beginning once and sharing its keys and values.
On GSM8K without worked examples 6 % of the tokens are one; with the two of `recipes/smollm2-sums.toml` it is 37 %,
and would pay.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from stepalign.collate import Batch, collate
from stepalign.losses.log_probs import scores
from stepalign.records import TopTokens
from stepalign.views import View

BATCH_TOKENS = {"cpu": 2048, "cuda": 32_768}
"""Tokens of a batch, padding included. On the CPU, larger batches are no faster."""

_DECIMALS = 6
"""Decimals of a nat that are kept."""


@dataclass(frozen=True, kw_only=True)
class TokenScores:
    """A model's log-probabilities of a view's loss tokens."""

    log_probs: tuple[float, ...]
    top: tuple[TopTokens, ...]
    """The likeliest tokens in each place; empty unless requested."""


@torch.no_grad()
def score_views(
    forward: Callable[[Batch], Float[Tensor, "tokens hidden"]],
    head: Float[Tensor, "vocab hidden"],
    views: Sequence[View],
    *,
    top: int = 0,
) -> list[TokenScores]:
    """Score every view, in the given order.

    Args:
        forward: returns the hidden states that predict a batch's loss tokens: a `Policy`, or its `forward_base`.
        head: the model's output embedding.
        views: of any lengths.
        top: how many of the likeliest tokens to keep in each place.
    """
    by_index: dict[int, TokenScores] = {}
    max_tokens = BATCH_TOKENS.get(head.device.type, BATCH_TOKENS["cuda"])
    for indices in batches_by_length([len(view.input_ids) for view in views], max_tokens):
        batch = collate([views[index] for index in indices]).to(head.device)
        scored = scores(forward(batch), head, batch.targets, top=top)
        log_probs, top_ids, top_log_probs = (
            tensor.tolist() for tensor in (scored.log_probs, scored.top_ids, scored.top_log_probs)
        )
        first = 0
        for index in indices:
            part = slice(first, first := first + views[index].num_loss_tokens)
            by_index[index] = TokenScores(
                log_probs=tuple(round(value, _DECIMALS) for value in log_probs[part]),
                top=tuple(
                    tuple((token, round(value, _DECIMALS)) for token, value in zip(ids, values, strict=True))
                    for ids, values in zip(top_ids[part], top_log_probs[part], strict=True)
                )
                if top
                else (),
            )
    return [by_index[index] for index in range(len(views))]


def batches_by_length(lengths: Sequence[int], max_tokens: int) -> Iterator[list[int]]:
    """Group indices of similar length. The longest come first, so that running out of memory shows at once."""
    group: list[int] = []
    width = 0
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        if group and width * (len(group) + 1) > max_tokens:
            yield group
            group = []
        if not group:
            width = lengths[index]
        group.append(index)
    if group:
        yield group
