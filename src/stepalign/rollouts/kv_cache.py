"""Key–value cache whose rows share one time axis and, where their prompts begin alike, the prefix's keys and values."""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor
from transformers.cache_utils import DynamicLayer


class SharedAxisLayer(DynamicLayer):  # type: ignore[misc]
    """One layer's keys and values, [slots, heads, columns, dim], written in place at the target."""

    is_croppable = False

    def __init__(self, slots: int, capacity: int) -> None:
        super().__init__()
        self.slots, self.capacity = slots, capacity
        self.prefix: tuple[Float[Tensor, "heads prefix dim"], ...] = ()
        self.set_target(slice(0, slots), 0, 0)

    def set_target(self, slots: slice, column: int, first: int, prefix_starts: Sequence[int] = ()) -> None:
        """Make the next update write `slots` from `column` on and attend to the columns from `first` on.

        `prefix_starts` holds the column of each of the slots where the kept prefix is written.
        """
        self.target, self.column, self.first, self.prefix_starts = slots, column, first, prefix_starts

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Allocate the whole cache at the first update."""
        self.dtype, self.device = key_states.dtype, key_states.device
        # Zeroed: a masked column still enters the product with the values, and 0 × NaN is NaN.
        self.keys = key_states.new_zeros(self.slots, key_states.shape[1], self.capacity, key_states.shape[3])
        self.values = value_states.new_zeros(self.slots, value_states.shape[1], self.capacity, value_states.shape[3])
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Write new keys and values at the target and return all that its rows attend to."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        end = self.column + key_states.shape[2]
        self.keys[self.target, :, self.column : end] = key_states
        self.values[self.target, :, self.column : end] = value_states
        # After the new ids: the padding before a shorter row's ids lies on columns of its prefix.
        for slot, start in enumerate(self.prefix_starts, start=self.target.start):
            for states, prefix in zip((self.keys, self.values), self.prefix, strict=True):
                states[slot, :, start : start + prefix.shape[1]] = prefix
        return self.keys[self.target, :, self.first : end], self.values[self.target, :, self.first : end]

    def get_seq_length(self) -> int:
        """Return the number of columns that the next token attends to."""
        return self.column - self.first

    def keep_prefix(self, length: int) -> None:
        """Keep the first slot's first columns as the prefix of every prompt."""
        self.prefix = tuple(states[0, :, :length].clone() for states in (self.keys, self.values))

    def move(self, source: int, target: int, start: int, end: int) -> None:
        """Copy one slot's columns to another slot."""
        for states in (self.keys, self.values):
            states[target, :, start:end] = states[source, :, start:end]

    def shift(self, by: int, end: int) -> None:
        """Move the columns `by` … `end` to the front."""
        for states in (self.keys, self.values):
            states[:, :, : end - by] = states[:, :, by:end].clone()
