"""What devices can do, and how much of that is used.

Peak rates are the makers' (dense bfloat16, without sparsity). The shares of them that training and decoding reach are
assumptions for a well-filled GPU, not measurements of this project; `this` measures the machine at hand instead.
"""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from stepalign.planning.shape import Shape


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """One device."""

    name: str
    flops: float
    """Operations a second, at peak."""
    bandwidth: float
    """Bytes of its memory a second, at peak."""
    memory: float
    """Bytes."""
    gpu: bool = True
    utilization: float = 0.4
    """The share of `flops` that forward and backward passes reach."""
    decoding: float = 0.5
    """The share of `bandwidth` that decoding reaches."""


GPUS = {
    hardware.name: hardware
    for hardware in (
        Hardware(name="h200", flops=989e12, bandwidth=4.8e12, memory=141e9),
        Hardware(name="h100", flops=989e12, bandwidth=3.35e12, memory=80e9),
        Hardware(name="a100", flops=312e12, bandwidth=2.04e12, memory=80e9),
        Hardware(name="l40s", flops=362e12, bandwidth=0.864e12, memory=48e9),
        Hardware(name="rtx4090", flops=165e12, bandwidth=1.008e12, memory=24e9),
    )
}


def this_machine(shape: Shape, rows: int = 256) -> Hardware:
    """The CPU at hand, by products of the model's own size and by reading as many bytes."""
    factor = torch.rand(shape.intermediate, shape.hidden)
    inputs = torch.rand(rows, shape.hidden)
    product = _seconds(lambda: torch.mm(inputs, factor.T))
    large = torch.rand(max(1, (256 << 20) // (4 * shape.hidden)), shape.hidden)
    one = torch.rand(shape.hidden)
    reading = _seconds(lambda: torch.mv(large, one))
    return Hardware(
        name="this machine's CPU",
        flops=2.0 * rows * factor.numel() / product,
        bandwidth=4.0 * large.numel() / reading,
        memory=float(_memory()),
        gpu=False,
        # Products are most of a pass; the rest is element by element.
        utilization=0.75,
        decoding=0.75,
    )


def _seconds(work: Callable[[], object]) -> float:
    """The least of several times, after one to warm up."""

    times = []
    for _ in range(6):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times[1:])


def _memory() -> int:

    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
