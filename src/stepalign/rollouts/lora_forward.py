"""LoRA layers while rows are decoded: two products and a sum, without peft's steps between them.

peft also casts, drops out and scales, each in a call of its own, and multiplies in the precision of the large
products. At a few rows on a CPU these calls are a large part of a decoding step.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float
from peft.tuners import lora
from torch import Tensor, nn
from torch.nn import functional as F

from stepalign.precision import float32_products


@contextmanager
def short_lora_forward(model: nn.Module) -> Iterator[None]:
    """Shorten the forward pass of a model's plain LoRA layers on the CPU, and restore it at the end.

    The result is peft's up to rounding. Use it without gradients and in evaluation mode, where nothing is dropped out.
    """
    layers = [module for module in model.modules() if type(module) is lora.Linear and _is_plain(module)]
    try:
        for layer in layers:
            layer.forward = _short_forward(layer)
        yield
    finally:
        for layer in layers:
            del layer.forward


def _is_plain(layer: lora.Linear) -> bool:
    """Tell whether a layer adds one float32 adapter's update to a linear layer's output, and does no more."""
    active = layer.active_adapters
    return (
        not layer.disable_adapters
        and not layer.merged
        and len(active) == 1
        and active[0] in layer.lora_A
        and not layer.lora_variant
        and not layer.fan_in_fan_out
        and layer.lora_B[active[0]].bias is None
        and type(layer.base_layer) is nn.Linear
        and layer.base_layer.weight.device.type == "cpu"
        and layer.base_layer.weight.dtype == layer.lora_A[active[0]].weight.dtype == torch.float32
    )


def _short_forward(layer: lora.Linear) -> Callable[[Float[Tensor, "*rows inputs"]], Float[Tensor, "*rows outputs"]]:
    name, peft_forward = layer.active_adapters[0], layer.forward

    def forward(inputs: Tensor) -> Tensor:
        if layer.disable_adapters:  # another reader of the model, between two completions
            return peft_forward(inputs)  # type: ignore[no-any-return]
        output: Tensor = layer.base_layer(inputs)
        with float32_products():
            down = F.linear(inputs.flatten(0, -2), layer.lora_A[name].weight)
            output.flatten(0, -2).addmm_(down, layer.lora_B[name].weight.t(), alpha=layer.scaling[name])
        return output

    return forward
