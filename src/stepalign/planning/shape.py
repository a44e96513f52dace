"""A model's sizes from its configuration alone. Parameters are counted on a model without storage, so exactly."""

from dataclasses import dataclass

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig

from stepalign import config
from stepalign.errors import StepalignError


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What the estimates need to know of a decoder with an adapter on it."""

    parameters: int
    """All of the base's, tied ones once."""
    projections: int
    """The weights of the layers' projections: what every token is multiplied with, the head aside."""
    adapter: int
    rank_sum: int
    """The ranks of one layer's adapters, added up."""
    layers: int
    hidden: int
    intermediate: int
    attention: int
    """Width of all query heads."""
    keys: int
    """Width of all key heads; as wide are the values."""
    normed_heads: bool
    """Whether queries and keys have norms of their own (Qwen3)."""
    vocab: int
    weight_bytes: int
    """A weight's, in the recipe's precision."""

    @property
    def cache_bytes(self) -> int:
        """Keys and values of one token."""
        return 2 * self.layers * self.keys * self.weight_bytes

    def forward_flops(self, length: float) -> float:
        """One sequence through the layers, forwards; without the head."""
        return 2 * self.projections * length + 2 * self.layers * self.attention * length**2

    def token_flops(self, context: float) -> float:
        """One more token behind a context, through layers and head."""
        return 2 * (self.projections + self.vocab * self.hidden) + 4 * self.layers * self.attention * context

    @property
    def layer_activation_bytes(self) -> int:
        """What the backward pass keeps of one token in one layer, without checkpointing.

        The base is frozen, so its projections keep nothing; the adapters keep their inputs, norms, attention and the
        gate what they multiply. A float32 adapter on a half-precision base keeps a float32 copy for each projection.
        """
        h, i, a, k = self.hidden, self.intermediate, self.attention, self.keys
        normed = a + k if self.normed_heads else 0
        if self.weight_bytes == 4:
            return 4 * (4 * h + 2 * a + 2 * k + 4 * i + self.rank_sum + normed)
        return 4 * (7 * h + a + i + self.rank_sum + normed) + 2 * (2 * a + 2 * k + 3 * i)


def shape(model: config.ModelConfig, adapter: config.LoraConfig, *, gpu: bool) -> Shape:
    """Read a model's sizes; no weights are loaded.

    Args:
        model: its configuration is read.
        adapter: rank and targets.
        gpu: what `model.dtype = "auto"` stands for: bfloat16 there, else float32.

    Raises:
        StepalignError: there is no such configuration, or an adapter's target is not in it.
    """
    try:
        config = AutoConfig.from_pretrained(model.location, revision=model.revision)
    except (OSError, ValueError) as error:
        raise StepalignError(
            f"model.name_or_path = {model.name_or_path!r}: {str(error).strip().splitlines()[0]}"
        ) from None
    with torch.device("meta"):
        whole = AutoModelForCausalLM.from_config(config)
    text: PretrainedConfig = config.get_text_config()
    adapted = {
        name: module
        for name, module in whole.named_modules()
        if isinstance(module, nn.Linear) and name.rpartition(".")[2] in adapter.target_modules
    }
    if not adapted:
        raise StepalignError(f"adapter.target_modules = {list(adapter.target_modules)}: the model has none of them")
    layers = whole.get_decoder().layers
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    half = model.dtype in ("bfloat16", "float16") or (model.dtype == "auto" and gpu)
    return Shape(
        parameters=sum(parameter.numel() for parameter in whole.parameters()),
        projections=sum(m.weight.numel() for m in layers.modules() if isinstance(m, nn.Linear)),
        adapter=sum(adapter.r * (m.in_features + m.out_features) for m in adapted.values()),
        rank_sum=adapter.r * len(adapted) // len(layers),
        layers=len(layers),
        hidden=text.hidden_size,
        intermediate=text.intermediate_size,
        attention=head_dim * text.num_attention_heads,
        keys=head_dim * (getattr(text, "num_key_value_heads", None) or text.num_attention_heads),
        normed_heads=any(name.endswith("q_norm") for name, _ in layers.named_modules()),
        vocab=text.vocab_size,
        weight_bytes=2 if half else 4,
    )
