"""Choice between Triton's kernels, on CUDA devices, and torch's element-wise form, which is also their judge."""

from functools import cache
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType

import torch


def kernels(device: torch.device, dtype: torch.dtype = torch.float32) -> ModuleType | None:
    """Return `stepalign.triton_kernels` where it can run on logits of this device and dtype, else None."""
    return _load() if device.type == "cuda" and dtype == torch.float32 else None


@cache
def _load() -> ModuleType | None:
    return import_module("stepalign.triton_kernels") if find_spec("triton") else None
