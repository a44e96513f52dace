"""Loss whose gradient is made in the forward pass. The backward pass only scales it."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor


def with_gradient(
    hidden: Float[Tensor, "tokens hidden"], loss: Float[Tensor, ""], gradient: Float[Tensor, "tokens hidden"]
) -> Float[Tensor, ""]:
    """Attach a gradient in `hidden` to a loss. There is no second derivative."""
    attached: Float[Tensor, ""] = _WithGradient.apply(hidden, loss, gradient)  # type: ignore[no-untyped-call]
    return attached


class _WithGradient(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Float[Tensor, "tokens hidden"],
        loss: Float[Tensor, ""],
        gradient: Float[Tensor, "tokens hidden"],
    ) -> Float[Tensor, ""]:
        ctx.save_for_backward(gradient)
        ctx.dtype = hidden.dtype
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, loss_gradient: Float[Tensor, ""]) -> tuple[Tensor, None, None]:
        if torch.is_grad_enabled():
            raise RuntimeError("this loss has no second derivative: backward with create_graph=True")
        (gradient,) = ctx.saved_tensors
        # Scaled before it is narrowed: float16 would lose what a loss scale is there to keep.
        return (gradient * loss_gradient).to(ctx.dtype), None, None
