"""LoRA layers on a CPU as one function: the base's product, two small ones, and their gradients.

peft casts, drops out, scales and adds in calls of their own, and multiplies small factors in the precision of the large
ones. On a CPU these steps take longer than the base's product.
"""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from peft.tuners import lora
from torch import Tensor, nn
from torch.nn import functional as F

from stepalign.bfloat16_linear import Bfloat16Linear, input_gradient, packed_linear
from stepalign.precision import float32_products


def use_fused_lora(model: nn.Module) -> None:
    """Change the forward pass of a model's LoRA layers. The result is peft's up to rounding."""
    for layer in model.modules():
        if type(layer) is lora.Linear and isinstance(layer.base_layer, nn.Linear) and not layer.fan_in_fan_out:
            layer.__class__ = FusedLoraLinear


class FusedLoraLinear(lora.Linear):  # type: ignore[misc]
    """A LoRA layer with one plain adapter as one function. With more than that, or with dropout, it is peft's."""

    def forward(self, x: Float[Tensor, "*rows inputs"], *args: Any, **kwargs: Any) -> Float[Tensor, "*rows outputs"]:
        """Add the adapter's update to the base's output."""
        if args or kwargs or not _is_plain(self, x.dtype):
            output: Tensor = super().forward(x, *args, **kwargs)
            return output
        return _lora_linear(x, *_factors(self))


def linear_function(layer: nn.Module) -> Callable[[Float[Tensor, "rows inputs"]], Float[Tensor, "rows outputs"]]:
    """Return a linear layer's function of its present weights, without gradients and without peft's calls.

    A layer that is not plain is returned itself.
    """
    if type(layer) is FusedLoraLinear and _is_plain(layer, torch.float32):
        factors = _factors(layer)
        return lambda inputs: _product(inputs, *factors)[0]
    if type(layer) is FusedLoraLinear and layer.disable_adapters and not layer.merged:
        layer = layer.base_layer
    if type(layer) is Bfloat16Linear:
        packed, bias = layer.packed, layer.bias
        return lambda inputs: packed_linear(inputs, packed, bias)
    return layer


def _factors(layer: FusedLoraLinear) -> tuple[Any, ...]:
    """Return what `_product` multiplies inputs with."""
    name, base = layer.active_adapters[0], layer.base_layer
    packed = base.packed if isinstance(base, Bfloat16Linear) else None
    return base.weight, packed, base.bias, layer.lora_A[name].weight, layer.lora_B[name].weight, layer.scaling[name]


def _is_plain(layer: lora.Linear, dtype: torch.dtype) -> bool:
    """Tell whether a layer now adds one adapter's update of the same type, and does no more."""
    active, base = layer.active_adapters, layer.base_layer
    return (
        not layer.disable_adapters
        and not layer.merged
        and len(active) == 1
        and active[0] in layer.lora_A
        and not layer.lora_variant
        and layer.lora_B[active[0]].bias is None
        and layer.lora_A[active[0]].weight.dtype == dtype
        and dtype == (torch.float32 if isinstance(base, Bfloat16Linear) else base.weight.dtype)
        and not (layer.training and isinstance(layer.lora_dropout[active[0]], nn.Dropout))
    )


def _lora_linear(inputs: Float[Tensor, "*rows inputs"], *factors: Any) -> Float[Tensor, "*rows outputs"]:
    if torch.is_grad_enabled():
        output: Tensor = _LoraLinear.apply(inputs, *factors)  # type: ignore[no-untyped-call]
        return output
    return _product(inputs.flatten(0, -2), *factors)[0].view(*inputs.shape[:-1], -1)


def _product(
    inputs: Float[Tensor, "rows inputs"],
    weight: Float[Tensor, "outputs inputs"],
    packed: Tensor | None,
    bias: Float[Tensor, " outputs"] | None,
    a: Float[Tensor, "rank inputs"],
    b: Float[Tensor, "outputs rank"],
    scale: float,
) -> tuple[Float[Tensor, "rows outputs"], Float[Tensor, "rows rank"]]:
    """Return x Wᵀ + bias + scale · (x Aᵀ) Bᵀ, and x Aᵀ."""
    output = F.linear(inputs, weight, bias) if packed is None else packed_linear(inputs, packed, bias)
    with float32_products():
        down = F.linear(inputs, a)
        return output.addmm_(down, b.t(), alpha=scale), down


class _LoraLinear(torch.autograd.Function):
    """`_product` with gradients of inputs, A and B. The base is frozen."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, *factors: Any) -> Tensor:
        weight, _, _, a, b, ctx.scale = factors
        flat = inputs.flatten(0, -2)
        output, down = _product(flat, *factors)
        ctx.save_for_backward(flat, weight, a, b, down)
        return output.view(*inputs.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        flat, weight, a, b, down = ctx.saved_tensors
        shape, gradient, to_inputs = gradient.shape, gradient.flatten(0, -2), None
        with float32_products():
            to_down = (gradient @ b).mul_(ctx.scale)
            to_a = to_down.t() @ flat
            to_b = (gradient.t() @ down).mul_(ctx.scale)
        if ctx.needs_input_grad[0]:
            to_inputs = input_gradient(gradient, weight)
            with float32_products():
                to_inputs = to_inputs.addmm_(to_down, a).view(*shape[:-1], -1)
        return to_inputs, None, None, None, to_a, to_b, None
