"""Loss whose gradient is made in the forward pass. The backward pass only scales it."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor


def with_gradient(loss: Float[Tensor, ""], *gradients: tuple[Tensor, Tensor]) -> Float[Tensor, ""]:
    """Attach gradients to a loss, each to the tensor before it. There is no second derivative."""
    inputs, values = zip(*gradients, strict=True)
    attached: Float[Tensor, ""] = _WithGradients.apply(loss, len(inputs), *inputs, *values)  # type: ignore[no-untyped-call]
    return attached


class _WithGradients(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, loss: Float[Tensor, ""], count: int, *tensors: Tensor) -> Float[Tensor, ""]:
        ctx.save_for_backward(*tensors[count:])
        ctx.dtypes = [tensor.dtype for tensor in tensors[:count]]
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, loss_gradient: Float[Tensor, ""]) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError("this loss has no second derivative: backward with create_graph=True")
        # Scaled before it is narrowed: float16 would lose what a loss scale is there to keep.
        scaled = [(g * loss_gradient).to(dtype) for g, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)]
        return None, None, *scaled, *(None for _ in scaled)
