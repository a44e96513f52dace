"""Sizes of a model from its configuration, and the peak rates of GPUs. Parameters are counted without storage."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from stepalign import config
from stepalign.errors import StepalignError


class Gpu(NamedTuple):
    """A GPU's peak rates by its maker: dense bfloat16 operations a second, bytes a second, bytes."""

    flops: float
    bandwidth: float
    memory: float


GPUS = {
    "h200": Gpu(989e12, 4.8e12, 141e9),
    "h100": Gpu(989e12, 3.35e12, 80e9),
    "a100": Gpu(312e12, 2.04e12, 80e9),
    "l40s": Gpu(362e12, 0.864e12, 48e9),
    "rtx4090": Gpu(165e12, 1.008e12, 24e9),
}
PASS_SHARE = 0.4
"""Share of `Gpu.flops` that forward and backward passes are assumed to reach."""
DECODE_SHARE = 0.5
"""Share of `Gpu.bandwidth` that decoding is assumed to reach."""


@dataclass(frozen=True, kw_only=True)
class ModelSize:
    """Sizes of a decoder with an adapter."""

    parameters: int
    """All of the base's, tied ones once."""
    projections: int
    """Weights of the layers' projections, without the head."""
    adapter: int
    rank_sum: int
    """Sum of the ranks of one layer's adapters."""
    layers: int
    hidden: int
    intermediate: int
    query_width: int
    """Width of all query heads."""
    key_width: int
    """Width of all key heads, and of all value heads."""
    qk_norm: bool
    """Queries and keys have norms of their own (Qwen3)."""
    vocab: int
    weight_bytes: int

    def forward_flops(self, length: float) -> float:
        """Return the operations of one sequence through the layers, without the head."""
        return 2 * self.projections * length + 2 * self.layers * self.query_width * length**2

    def decode_flops(self, context: float) -> float:
        """Return the operations of one more token behind a context, through layers and head."""
        return 2 * (self.projections + self.vocab * self.hidden) + 4 * self.layers * self.query_width * context

    def decode_step_s(self, gpu: Gpu, rows: float, context: float) -> float:
        """Return the seconds of one more token for every row, bound by operations or by bytes read."""
        read = self.weight_bytes * (self.projections + self.vocab * self.hidden) + rows * context * self.cache_bytes
        return max(rows * self.decode_flops(context) / (gpu.flops * PASS_SHARE), read / (gpu.bandwidth * DECODE_SHARE))

    @property
    def cache_bytes(self) -> int:
        """Keys and values of one token."""
        return 2 * self.layers * self.key_width * self.weight_bytes

    @property
    def layer_activation_bytes(self) -> int:
        """Bytes that the backward pass keeps of one token in one layer, without checkpointing.

        The base is frozen, so its projections keep nothing; the adapters keep their inputs, norms, attention and the
        gate what they multiply. A float32 adapter on a half-precision base keeps a float32 copy for each projection.
        """
        h, i, q, k = self.hidden, self.intermediate, self.query_width, self.key_width
        normed = q + k if self.qk_norm else 0
        if self.weight_bytes == 4:
            return 4 * (4 * h + 2 * q + 2 * k + 4 * i + self.rank_sum + normed)
        return 4 * (7 * h + q + i + self.rank_sum + normed) + 2 * (2 * q + 2 * k + 3 * i)


def model_size(model: config.ModelConfig, lora: config.LoraConfig, *, gpu: bool) -> ModelSize:
    """Read a model's sizes from its configuration; no weights are loaded. `dtype = "auto"` is bfloat16 on a GPU.

    Raises:
        StepalignError: there is no such configuration, or the adapter has no target in it.
    """
    try:
        settings = AutoConfig.from_pretrained(model.location, revision=model.revision)
    except (OSError, ValueError) as error:
        first_line = str(error).strip().splitlines()[0]
        raise StepalignError(f"model.name_or_path = {model.name_or_path!r}: {first_line}") from None
    with torch.device("meta"):
        base = AutoModelForCausalLM.from_config(settings)
    linear = {name: module for name, module in base.named_modules() if isinstance(module, nn.Linear)}
    adapted = [module for name, module in linear.items() if name.rpartition(".")[2] in lora.target_modules]
    if not adapted:
        raise StepalignError(f"lora.target_modules = {list(lora.target_modules)}: the model has none of them")
    text, layers = settings.get_text_config(), base.get_decoder().layers
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    half = model.dtype in ("bfloat16", "float16") or (model.dtype == "auto" and gpu)
    return ModelSize(
        parameters=sum(parameter.numel() for parameter in base.parameters()),
        projections=sum(module.weight.numel() for module in layers.modules() if isinstance(module, nn.Linear)),
        adapter=sum(lora.r * (module.in_features + module.out_features) for module in adapted),
        rank_sum=lora.r * len(adapted) // len(layers),
        layers=len(layers),
        hidden=text.hidden_size,
        intermediate=text.intermediate_size,
        query_width=head_dim * text.num_attention_heads,
        key_width=head_dim * (getattr(text, "num_key_value_heads", None) or text.num_attention_heads),
        qk_norm=any(name.endswith("q_norm") for name, _ in layers.named_modules()),
        vocab=text.vocab_size,
        weight_bytes=2 if half else 4,
    )
