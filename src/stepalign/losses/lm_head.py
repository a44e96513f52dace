"""Products with the output head: hidden states to logits, and gradients of logits back.

Logits are float32 for every model dtype, because a logit of 20 rounded to bfloat16 is off by up to 0.06 nats.
GPUs compute such products of half-precision factors. Elsewhere the head is widened slice by slice, so that no second
copy of it is ever whole.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from stepalign.errors import StepalignError

_CHUNK_BYTES = {"cpu": 96 << 20, "cuda": 512 << 20}
"""Memory of one model's logits of a chunk: enough for the products to keep their speed."""

_TILE_BYTES = {"cpu": 4 << 20, "cuda": 32 << 20}
"""Memory of one model's logits of a tile; on the CPU, for each thread.

Smaller tiles are no faster. Each operation on a tile ends with a thread barrier, so that on cores shared with other
processes tiles of 1 MiB took twice as long.
"""

_SLICE = 8192
"""Vocabulary entries of a half-precision head that are widened at once."""


def chunk_tokens(tokens: int, vocab: int, device: torch.device) -> int:
    """Return the number of tokens to project at once: even chunks within the memory budget."""
    budget = _CHUNK_BYTES.get(device.type, _CHUNK_BYTES["cuda"])
    most = max(1, budget // (4 * vocab))
    return math.ceil(tokens / max(1, math.ceil(tokens / most)))


def tile_rows(vocab: int, device: torch.device) -> int:
    """Return the rows of logits for element-wise work: as many as stay in a cache."""
    rows = max(1, _TILE_BYTES.get(device.type, _TILE_BYTES["cuda"]) // (4 * vocab))
    return rows * torch.get_num_threads() if device.type == "cpu" else rows


def logit_dtype(head: Float[Tensor, "vocab hidden"]) -> torch.dtype:
    """Return the dtype of logits and of their sums: float32, or float64 for a float64 head."""
    return torch.promote_types(head.dtype, torch.float32)


def project(
    hidden: Float[Tensor, "rows hidden"], head: Float[Tensor, "vocab hidden"], out: Float[Tensor, "rows vocab"]
) -> None:
    """Write hidden · headᵀ to `out`, whose dtype is `logit_dtype`. `hidden` has the head's dtype."""
    if head.dtype == out.dtype:
        torch.mm(hidden, head.T, out=out)
    elif head.is_cuda:
        torch.mm(hidden, head.T, out_dtype=out.dtype, out=out)
    else:
        wide = hidden.to(out.dtype)
        for start in range(0, len(head), _SLICE):
            part = slice(start, start + _SLICE)
            torch.mm(wide, head[part].to(out.dtype).T, out=out[:, part])


def pull_back(
    logit_gradient: Float[Tensor, "rows vocab"], head: Float[Tensor, "vocab hidden"]
) -> Float[Tensor, "rows hidden"]:
    """Compute logit_gradient · head in the `logit_dtype`, for a gradient in the dtype of `gradient_room`."""
    dtype = logit_dtype(head)
    if head.dtype == dtype:
        return torch.mm(logit_gradient, head)
    if head.is_cuda:
        return torch.mm(logit_gradient, head, out_dtype=dtype)
    total = torch.zeros((len(logit_gradient), head.shape[1]), dtype=dtype, device=head.device)
    for start in range(0, len(head), _SLICE):
        part = slice(start, start + _SLICE)
        total.addmm_(logit_gradient[:, part], head[part].to(dtype))
    return total


def head_gradient(head: Float[Tensor, "vocab hidden"]) -> Float[Tensor, "vocab hidden"] | None:
    """Make room for the gradient of a head that is trained; None for a frozen one.

    Raises:
        StepalignError: the head is trained in half precision.
    """
    if not head.requires_grad:
        return None
    if head.dtype != logit_dtype(head):
        raise StepalignError(f"the output head is trained in {head.dtype}, which loses small updates: use float32")
    return torch.zeros_like(head, requires_grad=False)


def gradient_room(
    logits: Float[Tensor, "rows vocab"], head: Float[Tensor, "vocab hidden"]
) -> Float[Tensor, "rows vocab"]:
    """View the memory of logits as room for their gradient, row for row, in the dtype of `pull_back`.

    On a GPU both factors of a product share a dtype. Half-precision values then fill the first half of a row.
    """
    return logits.view(head.dtype)[:, : len(head)] if head.is_cuda else logits
