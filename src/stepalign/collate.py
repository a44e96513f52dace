"""Collation: views padded into tensors, and examples grouped into micro-batches.

Padding is on the right, where a causal model's real positions cannot see it, so no attention mask is needed. Masks
follow from lengths alone, because a pad id may be any id, an EOS among them.

Views that begin alike may share a row: the common ids stand there once, and each view's own ids attend to them and to
one another. So a group's rollouts read their prompt once, and all problems the worked examples before them. A row is
then a tree of ids, its mask holds each id's ancestors, and its positions are depths.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TypeVar

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from stepalign.records import TokenIds
from stepalign.views import TrainingExample, View

E = TypeVar("E", bound=TrainingExample)

_MIN_SHARED = 32
"""Common ids below which a view gets a row of its own."""
_PAIRS_PER_TOKEN = 3000
"""Pairs in attention that cost as much as one token's projections (135M parameters; more in larger models)."""


@dataclass(frozen=True)
class Batch:
    """Views padded into one tensor, with the positions of the hidden states that predict loss tokens."""

    input_ids: Int[Tensor, "rows columns"]
    rows: Int[Tensor, " tokens"]
    columns: Int[Tensor, " tokens"]
    targets: Int[Tensor, " tokens"]
    """The loss tokens, view by view."""
    position_ids: Int[Tensor, "rows columns"] | None = None
    """Set where views share rows, with `attention_mask`; else columns are positions."""
    attention_mask: Bool[Tensor, "rows 1 columns columns"] | None = None
    """True where a column (third axis) attends to another (last axis)."""

    def to(self, device: torch.device) -> "Batch":
        """Copy the batch to a device."""
        tensors = {each.name: getattr(self, each.name) for each in fields(self)}
        return replace(self, **{name: tensor.to(device) for name, tensor in tensors.items() if tensor is not None})


@dataclass
class _Row:
    """A tree of ids, written depth first."""

    ids: list[int] = field(default_factory=list)
    paths: list[Int[Tensor, " depth"]] = field(default_factory=list)
    """The columns of each view's ids."""
    spans: list[tuple[int, int, int]] = field(default_factory=list)
    """Of each view: the first column of its own ids, their end, and the number of ids before them."""
    last: TokenIds = ()
    """The ids of the view added last."""

    def shared(self, ids: TokenIds) -> int:
        """Return the number of ids to share with the view added last; 0 where a row of its own is cheaper."""
        limit = min(len(ids), len(self.last))
        common = next((depth for depth in range(limit) if ids[depth] != self.last[depth]), limit)
        new = len(ids) - common
        pays = common >= _MIN_SHARED and 2 * new * (len(self.ids) + new) <= _PAIRS_PER_TOKEN * common
        return common if pays else 0

    def add(self, ids: TokenIds, shared: int) -> None:
        """Add a view whose first `shared` ids are those of the view added last."""
        start, stop = len(self.ids), len(self.ids) + len(ids) - shared
        before = self.paths[-1][:shared] if shared else torch.arange(0)
        self.paths.append(torch.cat([before, torch.arange(start, stop)]))
        self.spans.append((start, stop, shared))
        self.ids.extend(ids[shared:])
        self.last = ids


@dataclass
class _Layout:
    """Rows of views, filled in order."""

    share_prefixes: bool
    max_tokens: int | None = None
    rows: list[_Row] = field(default_factory=list)
    places: list[tuple[int, int]] = field(default_factory=list)
    """Each view's row, and its place among the row's views."""

    def add(self, view: View) -> bool:
        """Add a view. Return False where the padded tokens would exceed `max_tokens`; the first always fits."""
        ids = view.input_ids
        shared = self.rows[-1].shared(ids) if self.rows and self.share_prefixes else 0
        lengths = [len(row.ids) for row in self.rows]
        if shared:
            lengths[-1] += len(ids) - shared
        else:
            lengths.append(len(ids))
        if self.rows and self.max_tokens is not None and max(lengths) * len(lengths) > self.max_tokens:
            return False
        if not shared:
            self.rows.append(_Row())
        self.rows[-1].add(ids, shared)
        self.places.append((len(self.rows) - 1, len(self.rows[-1].paths) - 1))
        return True


def collate(views: Sequence[View], *, share_prefixes: bool = False) -> Batch:
    """Pad views on the right. Loss tokens are ordered by view, then by position.

    Args:
        views: those that begin alike side by side.
        share_prefixes: let neighbours share a row, where that is cheaper (`Policy.shares_prefixes`).
    """
    layout = _Layout(share_prefixes)
    for view in views:
        layout.add(view)
    input_ids = torch.zeros(len(layout.rows), max(len(row.ids) for row in layout.rows), dtype=torch.long)
    for number, row in enumerate(layout.rows):
        input_ids[number, : len(row.ids)] = torch.tensor(row.ids)
    rows, columns, targets = [], [], []
    for view, (row_number, place) in zip(views, layout.places, strict=True):
        # The hidden state at a position predicts the token after it.
        first = len(view.prompt_ids) - 1
        columns.append(layout.rows[row_number].paths[place][first + view.loss_start : first + view.loss_stop])
        rows.append(torch.full((view.num_loss_tokens,), row_number))
        targets.append(torch.tensor(view.completion_ids[view.loss_start : view.loss_stop], dtype=torch.long))
    batch = (input_ids, torch.cat(rows), torch.cat(columns), torch.cat(targets))
    if len(layout.rows) == len(views):
        return Batch(*batch)
    return Batch(*batch, *_trees(layout.rows, input_ids.shape[1]))


def _trees(
    rows: Sequence[_Row], width: int
) -> tuple[Int[Tensor, "rows columns"], Bool[Tensor, "rows 1 columns columns"]]:
    """Return each id's depth, and the columns it attends to: its ancestors and itself."""
    positions = torch.arange(width).repeat(len(rows), 1)
    mask = torch.ones(width, width, dtype=torch.bool).tril().repeat(len(rows), 1, 1, 1)
    for number, row in enumerate(rows):
        for path, (start, stop, shared) in zip(row.paths, row.spans, strict=True):
            mask[number, 0, start:stop, :start] = False
            mask[number, 0, start:stop, path[:shared]] = True
            positions[number, start:stop] = torch.arange(shared, len(path))
    return positions, mask


def micro_batches(
    examples: Sequence[E], size: int, max_tokens: int | None = None, *, share_prefixes: bool = False
) -> Iterator[list[E]]:
    """Group examples of similar length, the longest first, so that running out of memory shows at once.

    Args:
        examples: one step's.
        size: examples in a group, at most.
        max_tokens: padded tokens of a group's student views, at most. A longer example makes a group of its own.
        share_prefixes: keep examples that begin alike together, and count shared ids once (`collate`).
    """
    ordered = sorted(examples, key=lambda example: (-example.max_input_len, example.rollout_id))
    if share_prefixes:
        ordered = [ordered[index] for index in sharing_order([each.student for each in ordered], max_tokens)]
    views = [example.student for example in ordered]
    start = 0
    for stop in _group_stops(views, size, max_tokens, share_prefixes):
        yield ordered[start:stop]
        start = stop


def sharing_order(views: Sequence[View], max_tokens: int | None) -> list[int]:
    """Order views so that those of one row are neighbours, the longest row first. Return their indices.

    `max_tokens` bounds a row's ids.
    """
    trees: list[tuple[_Row, list[int]]] = []
    for index in sorted(range(len(views)), key=lambda index: views[index].input_ids):
        ids = views[index].input_ids
        shared = trees[-1][0].shared(ids) if trees else 0
        if not shared or (max_tokens is not None and len(trees[-1][0].ids) + len(ids) - shared > max_tokens):
            trees.append((_Row(), []))
            shared = 0
        row, members = trees[-1]
        row.add(ids, shared)
        members.append(index)
    return [index for _, members in sorted(trees, key=lambda tree: -len(tree[0].ids)) for index in members]


def split_views(
    views: Sequence[View], max_tokens: int | None, *, share_prefixes: bool = False
) -> Iterator[Sequence[View]]:
    """Split views in their order into groups of at most `max_tokens` padded tokens; a longer view stands alone."""
    start = 0
    for stop in _group_stops(views, len(views), max_tokens, share_prefixes):
        yield views[start:stop]
        start = stop


def _group_stops(views: Sequence[View], size: int, max_tokens: int | None, share_prefixes: bool) -> Iterator[int]:
    layout = _Layout(share_prefixes, max_tokens)
    for stop, view in enumerate(views):
        if len(layout.places) == size or not layout.add(view):
            yield stop
            layout = _Layout(share_prefixes, max_tokens)
            layout.add(view)
    if views:
        yield len(views)
