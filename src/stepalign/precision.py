"""Precision of float32 matrix products: `highest`, or `medium` where the processor is faster with it.

`medium` multiplies in bfloat16 and sums in float32 (AVX512-BF16 or AMX on a CPU). Products differ by up to 2⁻⁸
relative, so results are equal to about 1 %, not bit for bit to `highest`. Frozen layers have their weights rounded
once (`stepalign.bfloat16_linear`).
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median
from typing import Literal

import torch

Precision = Literal["highest", "medium"]
MIN_SPEEDUP = 1.2
"""Measured gain from which `auto` takes `medium`."""


def set_matmul_precision(setting: Literal["highest", "medium", "auto"], device: torch.device) -> Precision:
    """Set torch's float32 products of this process and return the precision.

    `auto` measures products on the CPU. On other devices it is `highest`.
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
    """Measure how many times as fast a product of a small model's size is in `medium`, in turns."""
    before = torch.get_float32_matmul_precision()
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(rows, 1024, generator=generator)
    weight = torch.randn(4096, 1024, generator=generator)
    seconds: dict[str, list[float]] = {"highest": [], "medium": []}
    try:
        for _ in range(rounds):
            for precision, values in seconds.items():
                torch.set_float32_matmul_precision(precision)
                start = time.perf_counter()
                torch.nn.functional.linear(hidden, weight)
                values.append(time.perf_counter() - start)
    finally:
        torch.set_float32_matmul_precision(before)
    return median(seconds["highest"]) / median(seconds["medium"])
