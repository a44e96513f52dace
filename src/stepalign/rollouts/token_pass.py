"""The pass of one token a row through a Llama-like decoder on a CPU, with few operations.

It is the arithmetic of transformers' modules without their calls, which take longer than such small products. Query
heads that share keys read them together.

Left out: other decoders, devices and types than float32. They take transformers' own pass.
"""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers.cache_utils import Cache
from transformers.models.llama.modeling_llama import LlamaModel
from transformers.models.mistral.modeling_mistral import MistralModel
from transformers.models.qwen2.modeling_qwen2 import Qwen2Model
from transformers.models.qwen3.modeling_qwen3 import Qwen3Model

from stepalign.lora_forward import linear_function
from stepalign.precision import float32_products

_DECODERS = (LlamaModel, MistralModel, Qwen2Model, Qwen3Model)

Angles = tuple[Float[Tensor, "rows 1 dim"], Float[Tensor, "rows 1 dim"]]
"""Cosines, and sines with the first half negated."""


class TokenPass:
    """A decoder's pass of one token a row. It is made anew when weights or adapter change."""

    def __init__(self, decoder: PreTrainedModel) -> None:
        """Take the layers' functions of a decoder that `supports` accepts."""
        self.decoder = decoder
        self.layers = [_LayerPass(layer) for layer in decoder.layers]

    @staticmethod
    def supports(decoder: PreTrainedModel) -> bool:
        """Tell whether a decoder is a known one, on a CPU, in float32, whose layers attend to the whole past."""
        embeddings = decoder.get_input_embeddings().weight
        return (
            type(decoder) in _DECODERS
            and getattr(decoder.config, "sliding_window", None) is None
            and embeddings.device.type == "cpu"
            and embeddings.dtype == torch.float32
        )

    def __call__(
        self,
        ids: Int[Tensor, " rows"],
        mask: Bool[Tensor, "rows columns"],
        positions: Int[Tensor, " rows"],
        cache: Cache,
    ) -> Float[Tensor, "rows hidden"]:
        """Write the ids' keys and values into the cache and return the hidden states behind them.

        `mask` tells which of the cache's columns each row attends to, its own new one included.
        """
        hidden: Tensor = self.decoder.embed_tokens(ids)
        cos, sin = self.decoder.rotary_emb(hidden, positions[:, None])
        first, second = sin.chunk(2, dim=-1)
        angles = cos, torch.cat((-first, second), dim=-1)
        bias = None if mask.all() else hidden.new_zeros(mask.shape).masked_fill_(~mask, -torch.inf)[:, None, None]
        for layer, past in zip(self.layers, cache.layers, strict=True):
            hidden = layer(hidden, angles, bias, past.update)
        last: Tensor = self.decoder.norm(hidden)
        return last


class _LayerPass:
    def __init__(self, layer: Any) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self.query, self.key, self.value, self.output = (
            linear_function(getattr(attention, f"{name}_proj")) for name in "qkvo"
        )
        self.gate, self.up, self.down = (
            linear_function(getattr(mlp, f"{name}_proj")) for name in ("gate", "up", "down")
        )
        self.activation = mlp.act_fn
        self.head_dim, self.scale = attention.head_dim, attention.scaling
        self.before_attention = _rms_norm(layer.input_layernorm)
        self.before_mlp = _rms_norm(layer.post_attention_layernorm)
        self.query_norm, self.key_norm = (
            _rms_norm(getattr(attention, name)) if hasattr(attention, name) else None for name in ("q_norm", "k_norm")
        )

    def __call__(
        self,
        hidden: Float[Tensor, "rows hidden"],
        angles: Angles,
        bias: Float[Tensor, "rows 1 1 columns"] | None,
        update: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
    ) -> Float[Tensor, "rows hidden"]:
        inputs = self.before_attention(hidden)
        query, key, value = (
            projection(inputs).view(len(inputs), -1, self.head_dim) for projection in (self.query, self.key, self.value)
        )
        if self.query_norm and self.key_norm:
            query, key = self.query_norm(query), self.key_norm(key)
        keys, values = update(_rotate(key, angles)[:, :, None], value[:, :, None])
        # The heads that share keys lie together. They take the place of a sequence.
        query = _rotate(query, angles).view(len(inputs), keys.shape[1], -1, self.head_dim)
        with float32_products():
            attended = F.scaled_dot_product_attention(query, keys, values, bias, scale=self.scale)
        hidden = self.output(attended.reshape(len(inputs), -1)).add_(hidden)
        inputs = self.before_mlp(hidden)
        return self.down(self.activation(self.gate(inputs)).mul_(self.up(inputs))).add_(hidden)


def _rms_norm(norm: Any) -> Callable[[Tensor], Tensor]:
    weight, eps = norm.weight, norm.variance_epsilon
    return lambda states: F.rms_norm(states, weight.shape, weight, eps)


def _rotate(states: Float[Tensor, "rows heads dim"], angles: Angles) -> Float[Tensor, "rows heads dim"]:
    cos, sin = angles
    return torch.addcmul(states * cos, states.roll(states.shape[-1] // 2, -1), sin)
