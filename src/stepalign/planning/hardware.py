"""What a device can do: a GPU by its maker's rates. The machine at hand is measured instead (`rehearsal`).

Peak rates are dense bfloat16, without sparsity. The shares of them that passes and decoding reach are assumptions for a
well-filled GPU, not measurements of this project.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from stepalign.planning.shape import Shape


class Device(Protocol):
    """One of the devices that train and sample a certain model."""

    @property
    def name(self) -> str: ...  # noqa: D102

    @property
    def gpu(self) -> bool: ...  # noqa: D102

    @property
    def memory(self) -> float:
        """Bytes it has."""
        ...

    @property
    def process(self) -> Mapping[str, float]:
        """Bytes that a process holds beside its tensors, while `learning` and while `sampling`."""
        ...

    @property
    def reading(self) -> float:
        """Operations a second while prompts are read at once."""
        ...

    @property
    def frozen(self) -> float:
        """The same in passes without gradients."""
        ...

    @property
    def student(self) -> float:
        """The same in passes with gradients, objective and way back included."""
        ...

    @property
    def optimizer(self) -> float:
        """Seconds of one update of the adapter."""
        ...

    def tick(self, rows: float, context: float) -> float:
        """Seconds of one more token for so many rows with so many tokens before it."""
        ...

    def describe(self) -> str:
        """What all that rests on."""
        ...


@dataclass(frozen=True, kw_only=True)
class Rates:
    """A GPU, by its maker."""

    name: str
    flops: float
    """Operations a second, at peak."""
    bandwidth: float
    """Bytes of its memory a second, at peak."""
    memory: float
    """Bytes."""
    utilization: float = 0.4
    """The share of `flops` that forward and backward passes reach."""
    decoding: float = 0.5
    """The share of `bandwidth` that decoding reaches."""


GPUS = {
    rates.name: rates
    for rates in (
        Rates(name="h200", flops=989e12, bandwidth=4.8e12, memory=141e9),
        Rates(name="h100", flops=989e12, bandwidth=3.35e12, memory=80e9),
        Rates(name="a100", flops=312e12, bandwidth=2.04e12, memory=80e9),
        Rates(name="l40s", flops=362e12, bandwidth=0.864e12, memory=48e9),
        Rates(name="rtx4090", flops=165e12, bandwidth=1.008e12, memory=24e9),
    )
}


class Gpu:
    """A GPU at shares of its peak rates. Left out: a CUDA context (about half a gigabyte), the optimizer's seconds."""

    gpu = True
    optimizer: float = 0.0

    def __init__(self, rates: Rates, shape: Shape) -> None:
        self.rates, self.shape = rates, shape
        self.name, self.memory = rates.name, rates.memory
        self.process = {"learning": 0.0, "sampling": 0.0}
        self.reading = self.frozen = self.student = rates.flops * rates.utilization

    def tick(self, rows: float, context: float) -> float:
        """Bound by operations, or by reading the weights once and every row's keys and values."""
        shape = self.shape
        read: float = shape.weight_bytes * (shape.projections + shape.vocab * shape.hidden)
        read += rows * context * shape.cache_bytes
        return max(
            rows * shape.token_flops(context) / self.reading,
            read / (self.rates.bandwidth * self.rates.decoding),
        )

    def describe(self) -> str:
        """Rates, and the shares of them that are assumed."""
        rates = self.rates
        return (
            f"assumed: {rates.utilization:.0%} of {rates.flops / 1e12:,.3g} TFLOP/s in passes, "
            f"{rates.decoding:.0%} of {rates.bandwidth / 1e12:,.3g} TB/s in decoding"
        )
