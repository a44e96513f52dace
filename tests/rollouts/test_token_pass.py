"""One token's pass beside transformers' own, from the same cache."""

import copy
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    GemmaConfig,
    LlamaConfig,
    MistralConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)
from transformers.cache_utils import Cache

from stepalign.bfloat16_linear import has_bfloat16_products, use_bfloat16_linear
from stepalign.lora_forward import use_fused_lora
from stepalign.rollouts.kv_cache import SharedAxisLayer
from stepalign.rollouts.token_pass import TokenPass

SIZES = {
    "vocab_size": 60,
    "hidden_size": 48,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
}
ROWS, PAST = 3, 9


def made(settings: PreTrainedConfig) -> PreTrainedModel:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(settings).eval().requires_grad_(False)
    for name, parameter in model.named_parameters():  # norms and biases that are not one and zero
        if parameter.dim() == 1:
            nn.init.normal_(parameter, 1.0 if "norm" in name else 0.0, 0.3)
    return model


def both_passes(decoder: Any, starts: list[int]) -> tuple[tuple[Tensor, Cache], tuple[Tensor, Cache]]:
    """Hidden states and cache behind one token a row: transformers' and ours. Row i begins in column starts[i]."""
    torch.manual_seed(1)
    cache = Cache(layers=[SharedAxisLayer(ROWS, PAST + 1) for _ in decoder.layers])
    columns, begins = torch.arange(PAST + 1), torch.tensor(starts)[:, None]
    mask = columns >= begins
    ids = torch.randint(60, (ROWS, PAST + 1))
    with torch.no_grad():
        decoder(
            input_ids=ids[:, :-1],
            attention_mask=mask[:, :-1].long(),
            position_ids=(columns[:-1] - begins).clamp(min=0),
            past_key_values=cache,
            use_cache=True,
        )
        for layer in cache.layers:
            layer.set_target(slice(0, ROWS), PAST, 0)
        ours = copy.deepcopy(cache)
        positions = PAST - begins
        expected = decoder(
            input_ids=ids[:, -1:],
            attention_mask=mask.long(),
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state[:, 0]
        found = TokenPass(decoder)(ids[:, -1], mask, positions[:, 0], ours)
    return (expected, cache), (found, ours)


@pytest.mark.parametrize("starts", [[0, 0, 0], [0, 5, 2]])
@pytest.mark.parametrize(
    "settings",
    [
        LlamaConfig(**SIZES),
        LlamaConfig(**SIZES, attention_bias=True, mlp_bias=True, hidden_act="gelu"),
        LlamaConfig(**{**SIZES, "num_key_value_heads": 6}),
        LlamaConfig(**SIZES, rope_parameters={"rope_type": "linear", "factor": 3.0, "rope_theta": 100.0}),
        MistralConfig(**SIZES, sliding_window=None),
        Qwen2Config(**SIZES),
        Qwen3Config(**SIZES),
    ],
    ids=["llama", "biases", "ungrouped", "scaled positions", "mistral", "qwen2", "qwen3"],
)
def test_hidden_states_and_cache_are_those_of_transformers(settings: PreTrainedConfig, starts: list[int]) -> None:
    decoder = made(settings).get_decoder()
    assert TokenPass.supports(decoder)
    (expected, cache), (found, ours) = both_passes(decoder, starts)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    for layer, wanted in zip(ours.layers, cache.layers, strict=True):
        torch.testing.assert_close(layer.keys, wanted.keys, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(layer.values, wanted.values, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("change", ["", "disabled", "use_dora", "fused off"])
@pytest.mark.parametrize("packed", [False, True])
def test_an_adapter_acts_as_it_does_in_transformers(change: str, packed: bool) -> None:
    if packed and not has_bfloat16_products():
        pytest.skip("the processor has no bfloat16 products")
    base = made(Qwen3Config(**SIZES))
    if packed and change != "use_dora":  # peft reads the base's weights itself
        use_bfloat16_linear(base.get_decoder())
    layers = ["q_proj", "v_proj", "up_proj", "down_proj"]
    model = get_peft_model(base, LoraConfig(r=4, target_modules=layers, use_dora=change == "use_dora")).eval()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)
    if change != "fused off":
        use_fused_lora(model)
    decoder = model.get_base_model().get_decoder()
    plain = both_passes(made(Qwen3Config(**SIZES)).get_decoder(), [0, 5, 2])[0][0]
    if change == "disabled":
        with model.disable_adapter():
            (expected, _), (found, _) = both_passes(decoder, [0, 5, 2])
    else:
        (expected, _), (found, _) = both_passes(decoder, [0, 5, 2])
        assert (found - plain).norm() > 0.05 * plain.norm()
    torch.testing.assert_close(found, expected, rtol=2e-2 if packed else 1e-4, atol=2e-2 if packed else 1e-5)


@pytest.mark.parametrize(
    "settings",
    [
        GemmaConfig(**SIZES),
        MistralConfig(**SIZES, sliding_window=4),
        Qwen3Config(**SIZES, use_sliding_window=True, sliding_window=4, max_window_layers=0),
    ],
    ids=["gemma", "mistral with a window", "qwen3 with a window"],
)
def test_other_decoders_are_left_to_transformers(settings: PreTrainedConfig) -> None:
    assert not TokenPass.supports(made(settings).get_decoder())


def test_other_types_are_left_to_transformers() -> None:
    assert not TokenPass.supports(made(LlamaConfig(**SIZES)).bfloat16().get_decoder())
