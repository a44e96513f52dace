"""Precision of float32 matrix products: `highest`, or `medium` where the processor is faster with it.

`medium` multiplies in bfloat16 and sums in float32: on a CPU with AVX512-BF16 or AMX frozen layers, whose weights are
rounded once (`stepalign.bfloat16_linear`), and with AMX other products too. Products differ by up to 2⁻⁸ relative, so
results are equal to about 1 %, not bit for bit to `highest`.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median
from typing import Literal

import torch

from stepalign.bfloat16_linear import Bfloat16Linear, has_bfloat16_products

Precision = Literal["highest", "medium"]
MIN_SPEEDUP = 1.2
"""Measured gain from which `auto` takes `medium`."""


def set_matmul_precision(setting: Literal["highest", "medium", "auto"], device: torch.device) -> Precision:
    """Set torch's float32 products of this process and return the precision.

    `auto` measures a layer on the CPU. On other devices it is `highest`.
    """
    if setting == "auto":
        setting = "medium" if device.type == "cpu" and medium_speedup() >= MIN_SPEEDUP else "highest"
    torch.set_float32_matmul_precision(setting)
    return setting


@contextmanager
def float32_products() -> Iterator[None]:
    """Multiply in float32 within the block, for products too small to gain from bfloat16."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@torch.no_grad()
def medium_speedup(rows: int = 64, rounds: int = 7) -> float:
    """Measure how many times as fast a frozen layer of a small model is in `medium`, in turns; 0 if it cannot be."""
    if not has_bfloat16_products():
        return 0.0
    with torch.random.fork_rng([]):  # a run's draws stay the same
        hidden, layer = torch.randn(rows, 1024), torch.nn.Linear(1024, 4096, bias=False)
    seconds: dict[torch.nn.Module, list[float]] = {layer: [], Bfloat16Linear(layer): []}
    with float32_products():
        for _ in range(rounds):
            for measured, values in seconds.items():
                start = time.perf_counter()
                measured(hidden)
                values.append(time.perf_counter() - start)
    highest, medium = map(median, seconds.values())
    return highest / medium
