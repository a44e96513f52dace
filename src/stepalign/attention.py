"""Attention on a CPU: torch's SDPA without copies of grouped keys and values, with float32 products.

Where float32 products run in bfloat16 (`stepalign.precision`), SDPA's many small ones are slower, not faster.
transformers copies keys and values for each query head where a mask is given. The kernel for CPUs needs no copies. It
multiplies what a mask hides all the same, so rows that views share (`collate`) are attended to block by block.
"""

from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F
from torch.utils.weak import WeakIdKeyDictionary
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from stepalign.precision import float32_products

CPU_SDPA = "cpu_sdpa"
"""The implementation's name in transformers' registry."""

_BLOCK = 128
"""Queries of a block."""
_MAX_SHARE = 0.8
"""The share of a mask that blocks may cover; above it they gain nothing."""


def use_cpu_sdpa(model: PreTrainedModel) -> None:
    """Replace `sdpa` as a model's attention. Other implementations stay."""
    if model.config.get_text_config()._attn_implementation == "sdpa":
        model.set_attn_implementation(CPU_SDPA)


def cpu_sdpa(
    module: torch.nn.Module,
    query: Float[Tensor, "rows heads new dim"],
    key: Float[Tensor, "rows groups columns dim"],
    value: Float[Tensor, "rows groups columns dim"],
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **kwargs: Any,
) -> tuple[Float[Tensor, "rows new heads dim"], None]:
    """Attend as transformers' `sdpa_attention_forward` does, which takes the calls with more than a mask."""
    if kwargs.get("position_bias") is not None or kwargs.get("softcap") is not None:
        return sdpa_attention_forward(  # type: ignore[no-any-return]
            module, query, key, value, attention_mask, dropout, scaling, is_causal, **kwargs
        )
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    causal = causal and attention_mask is None and query.shape[2] > 1
    attend = _attend if torch.get_float32_matmul_precision() == "highest" else _Float32.apply
    output = attend(query, key, value, attention_mask, dropout, causal, scaling)
    return output.transpose(1, 2).contiguous(), None


class _Block(NamedTuple):
    """Queries of one row, and the keys that at least one of them sees."""

    queries: slice
    keys: Int[Tensor, " seen"]
    mask: Bool[Tensor, "1 1 queries seen"]


_plans: WeakIdKeyDictionary = WeakIdKeyDictionary()
"""The blocks of each row, by mask: a model's layers share one."""


def _plan(mask: Tensor) -> list[list[_Block]] | None:
    """Divide a mask into blocks, or return None where that does not pay."""
    if mask not in _plans:
        rows = [[_block(row, first) for first in range(0, row.shape[0], _BLOCK)] for row in mask[:, 0]]
        covered = sum(block.mask.numel() for row in rows for block in row)
        _plans[mask] = rows if covered < _MAX_SHARE * mask.numel() else None
    plan: list[list[_Block]] | None = _plans[mask]
    return plan


def _block(row: Bool[Tensor, "queries keys"], first: int) -> _Block:
    queries = slice(first, min(first + _BLOCK, row.shape[0]))
    keys = row[queries].any(0).nonzero()[:, 0]
    return _Block(queries, keys, row[queries][:, keys][None, None])


def _attend(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, dropout: float, causal: bool, scale: float | None
) -> Tensor:
    grouped = query.shape[1] > key.shape[1]

    def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        return F.scaled_dot_product_attention(query, key, value, mask, dropout, causal, scale=scale, enable_gqa=grouped)

    square = mask is not None and mask.dtype == torch.bool and query.shape[2] == key.shape[2] == mask.shape[-2]
    plan = _plan(mask) if mask is not None and square and mask.shape[1] == 1 else None
    if plan is None or len(plan) != len(query):
        return attend(query, key, value, mask)
    rows = [
        torch.cat([attend(q[:, :, b.queries], k[:, :, b.keys], v[:, :, b.keys], b.mask) for b in blocks], dim=2)
        for blocks, q, k, v in zip(plan, *(torch.split(states, 1) for states in (query, key, value)), strict=True)
    ]
    return torch.cat(rows)


class _Float32(torch.autograd.Function):
    """SDPA with float32 products in both passes, whatever the precision of others."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, *settings: Any) -> Tensor:
        ctx.inputs = [states.detach().requires_grad_(states.requires_grad) for states in (query, key, value)]
        with float32_products(), torch.set_grad_enabled(any(ctx.needs_input_grad)):
            output = ctx.output = _attend(*ctx.inputs, *settings)
        return output.detach()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        needed = [states for states in ctx.inputs if states.requires_grad]
        with float32_products():  # the outer graph decides how long this one is kept
            gradients = iter(torch.autograd.grad(ctx.output, needed, gradient, retain_graph=True))
        return *(next(gradients) if states.requires_grad else None for states in ctx.inputs), *(None,) * 4


AttentionInterface.register(CPU_SDPA, cpu_sdpa)
AttentionMaskInterface.register(CPU_SDPA, sdpa_mask)
