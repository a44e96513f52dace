"""Collation: views padded into tensors, and examples grouped into micro-batches.

Padding is on the right, where a causal model's real positions cannot see it, so no attention mask is needed. Masks
follow from lengths alone, because a pad id may be any id, an EOS among them.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from jaxtyping import Int
from torch import Tensor

from stepalign.views import TrainingExample, View

E = TypeVar("E", bound=TrainingExample)


@dataclass(frozen=True)
class Batch:
    """Views padded into one tensor, with the positions of the hidden states that predict loss tokens."""

    input_ids: Int[Tensor, "rows columns"]
    rows: Int[Tensor, " tokens"]
    columns: Int[Tensor, " tokens"]
    targets: Int[Tensor, " tokens"]
    """The loss tokens, row by row."""

    def to(self, device: torch.device) -> "Batch":
        """Copy the batch to a device."""
        return Batch(*(tensor.to(device) for tensor in (self.input_ids, self.rows, self.columns, self.targets)))


def collate(views: Sequence[View]) -> Batch:
    """Pad views on the right. Loss tokens are ordered by row, then by position."""
    input_ids = torch.zeros(len(views), max(len(view.input_ids) for view in views), dtype=torch.long)
    rows, columns, targets = [], [], []
    for row, view in enumerate(views):
        ids = torch.tensor(view.input_ids)
        input_ids[row, : len(ids)] = ids
        # The hidden state at a position predicts the token after it.
        first = len(view.prompt_ids) - 1
        columns.append(torch.arange(first + view.loss_start, first + view.loss_stop))
        rows.append(torch.full((view.num_loss_tokens,), row))
        targets.append(torch.tensor(view.completion_ids[view.loss_start : view.loss_stop], dtype=torch.long))
    return Batch(input_ids, torch.cat(rows), torch.cat(columns), torch.cat(targets))


def micro_batches(examples: Sequence[E], size: int, max_tokens: int | None = None) -> Iterator[list[E]]:
    """Group examples of similar length, the longest first, so that running out of memory shows at once.

    Args:
        examples: one step's.
        size: examples in a group, at most.
        max_tokens: padded tokens of a group's student views, at most. A longer example makes a group of its own.
    """
    ordered = sorted(examples, key=lambda example: (-example.max_input_len, example.rollout_id))
    views = [example.student for example in ordered]
    start = 0
    for stop in _group_stops(views, size, max_tokens):
        yield ordered[start:stop]
        start = stop


def split_views(views: Sequence[View], max_tokens: int | None) -> Iterator[Sequence[View]]:
    """Split views in their order into groups of at most `max_tokens` padded tokens; a longer view stands alone."""
    start = 0
    for stop in _group_stops(views, len(views), max_tokens):
        yield views[start:stop]
        start = stop


def _group_stops(views: Sequence[View], size: int, max_tokens: int | None) -> Iterator[int]:
    start = longest = 0
    for stop, view in enumerate(views):
        length = len(view.input_ids)
        too_long = max_tokens is not None and max(longest, length) * (stop + 1 - start) > max_tokens
        if stop > start and (stop - start == size or too_long):
            yield stop
            start, longest = stop, 0
        longest = max(longest, length)
    if views:
        yield len(views)
