"""Frozen linear layers that multiply in bfloat16 on a CPU, with weights in the layout of its kernels.

A float32 product in `medium` precision (`stepalign.precision`) rounds the weights to bfloat16 and rearranges them each
time. Here both are done once. The rearranged copy and the plain one, for gradients, take 4 bytes a weight together, as
the float32 weights did.
"""

from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn


class Bfloat16Linear(nn.Linear):
    """A frozen linear layer with float32 inputs and outputs, and products in bfloat16 with float32 sums.

    Outputs are rounded to bfloat16, as in autocast.
    """

    packed: Tensor
    """The weight in oneDNN's own layout. torch cannot read its values."""

    def __init__(self, layer: nn.Linear) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features, self.bias = layer.in_features, layer.out_features, layer.bias
        self.weight = nn.Parameter(layer.weight.detach().bfloat16(), requires_grad=False)
        self.packed = torch.ops.mkldnn._reorder_linear_weight(self.weight)

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the packed weight, which torch cannot copy."""
        return {name: value for name, value in self.__dict__.items() if name != "packed"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Pack the weight again."""
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self.packed = torch.ops.mkldnn._reorder_linear_weight(self.weight)

    def forward(self, input: Float[Tensor, "*rows inputs"]) -> Float[Tensor, "*rows outputs"]:
        """Multiply, with the gradient of the input alone."""
        output: Tensor = _Product.apply(input, self.weight, self.packed, self.bias)  # type: ignore[no-untyped-call]
        return output


def packed_linear(
    inputs: Float[Tensor, "*rows inputs"], packed: Tensor, bias: Float[Tensor, " outputs"] | None
) -> Float[Tensor, "*rows outputs"]:
    """Multiply by a packed weight, as `torch.nn.functional.linear` does."""
    output: Tensor = torch.ops.mkldnn._linear_pointwise(inputs.bfloat16(), packed, None, "none", [], "").float()
    return output if bias is None else output.add_(bias)


def input_gradient(
    gradient: Float[Tensor, "*rows outputs"], weight: Shaped[Tensor, "outputs inputs"]
) -> Float[Tensor, "*rows inputs"]:
    """Return the gradient of a linear layer's inputs, by a product in the weight's own type."""
    return (gradient.to(weight.dtype) @ weight).to(gradient.dtype)


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, packed: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(weight)
        return packed_linear(inputs, packed, bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return input_gradient(gradient, *ctx.saved_tensors), None, None, None


def has_bfloat16_products() -> bool:
    """Tell whether the processor and torch's build multiply bfloat16 without emulation."""
    return torch._C._has_mkldnn and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def use_bfloat16_linear(decoder: nn.Module) -> None:
    """Replace the linear layers of a frozen float32 decoder. The float32 weights are freed one by one."""
    for parent in list(decoder.modules()):
        for name, layer in list(parent.named_children()):
            if type(layer) is nn.Linear and layer.weight.dtype == torch.float32:
                setattr(parent, name, Bfloat16Linear(layer))
