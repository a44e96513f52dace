"""One model's sight of completions: the log-probability of every token, and the likeliest in its place.

Views are read in batches of similar length, as many at once as stay within a number of tokens, which bounds the
memory together with the chunks of `objectives.credit`. Padding is on the right, where no real position sees it, so a
view reads the same alone and among others. Left out: reading a common beginning once and sharing its keys and values.
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
"""Tokens read at once, padding counted: on the CPU, larger batches are no faster."""

_PLACES = 6
"""Decimals of a nat that are kept."""


@dataclass(frozen=True, kw_only=True)
class Sight:
    """A view's counted tokens as a model sees them."""

    log_probs: tuple[float, ...]
    top: tuple[TopTokens, ...]
    """Empty unless the likeliest tokens were asked for."""


def look(
    read: Callable[[Batch], Float[Tensor, "tokens hidden"]],
    head: Float[Tensor, "vocab hidden"],
    views: Sequence[View],
    *,
    top: int = 0,
) -> list[Sight]:
    """See every view, in the order in which they are given.

    Args:
        read: gives the hidden states that predict a batch's counted tokens: a `Policy`, or its `teacher`.
        head: the model's output embedding.
        views: of any lengths.
        top: how many of the likeliest tokens are wanted.
    """
    seen: dict[int, Sight] = {}
    for places in _batches([len(view.input_ids) for view in views], BATCH_TOKENS.get(head.device.type, 32_768)):
        chosen = [views[place] for place in places]
        seen.update(zip(places, _see(read, head, chosen, top), strict=True))
    return [seen[place] for place in range(len(views))]


@torch.no_grad()
def _see(
    read: Callable[[Batch], Float[Tensor, "tokens hidden"]],
    head: Float[Tensor, "vocab hidden"],
    views: Sequence[View],
    top: int,
) -> Iterator[Sight]:
    batch = collate(views).to(head.device)
    found = scores(read(batch), head, batch.targets, top=top)
    log_probs, top_ids, top_log_probs = (
        tensor.tolist() for tensor in (found.log_probs, found.top_ids, found.top_log_probs)
    )
    first = 0
    for view in views:
        part = slice(first, first := first + view.num_loss_tokens)
        yield Sight(
            log_probs=tuple(round(value, _PLACES) for value in log_probs[part]),
            top=tuple(
                tuple((token, round(value, _PLACES)) for token, value in zip(ids, values, strict=True))
                for ids, values in zip(top_ids[part], top_log_probs[part], strict=True)
            )
            if top
            else (),
        )


def _batches(lengths: Sequence[int], most_tokens: int) -> Iterator[list[int]]:
    """Places in groups of similar length, the longest first (running out of memory shows at once)."""
    group: list[int] = []
    width = 0
    for place in sorted(range(len(lengths)), key=lambda place: -lengths[place]):
        if group and width * (len(group) + 1) > most_tokens:
            yield group
            group = []
        if not group:
            width = lengths[place]
        group.append(place)
    if group:
        yield group
