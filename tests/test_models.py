"""Loading: the fresh adapter, the precision, and the models that every command refuses."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from stepalign import api, config, models
from stepalign.errors import StepalignError
from stepalign.launch import train
from stepalign.probing.run import probe
from test_policy import CPU, load

# ── initial adapters ──────────────────────────────────────────────────────────────────────────────────────────


def test_the_initial_adapter_depends_on_the_recipes_seed_alone(tiny_llama: Path) -> None:
    def weights(seed: int) -> torch.Tensor:
        return torch.cat([parameter.flatten() for parameter in load(tiny_llama, seed=seed).trainable()])

    torch.manual_seed(1)
    first = weights(0)
    torch.manual_seed(2)
    before = torch.get_rng_state()
    assert torch.equal(weights(0), first)
    assert torch.equal(torch.get_rng_state(), before), "loading must not use up the global generator"
    assert not torch.equal(weights(1), first)


# ── what is refused ───────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(params=["granite", "gemma2"])
def scaled_or_capped(request: pytest.FixtureRequest, tiny_llama: Path, tmp_path: Path) -> Path:
    """A model whose logits are scaled or capped, with the tiny tokenizer."""
    architecture = request.param
    options: dict[str, Any] = (
        {"logits_scaling": 8.0} if architecture == "granite" else {"final_logit_softcapping": 1.0, "head_dim": 8}
    )
    built = AutoConfig.for_model(
        architecture,
        vocab_size=len(AutoTokenizer.from_pretrained(tiny_llama)),
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=4,
        initializer_range=0.5,
        pad_token_id=0,
        **options,
    )
    folder = tmp_path / architecture
    AutoModelForCausalLM.from_config(built).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_llama).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("command", ["train", "sample", "evaluate", "select", "probe"])
def test_a_head_that_scales_or_caps_is_refused_by_every_command(
    command: str, scaled_or_capped: Path, make_recipe: Callable[..., config.Recipe], tmp_path: Path
) -> None:
    settings = make_recipe(f"model.name_or_path={scaled_or_capped}", "model.attn_implementation=eager")
    out = tmp_path / "out.jsonl"
    commands: dict[str, Callable[[], object]] = {
        "train": lambda: train(settings),
        "sample": lambda: api.sample(settings, out),
        "evaluate": lambda: api.evaluate(settings, out),
        "select": lambda: api.select(settings, tmp_path / "selection"),
        "probe": lambda: probe(settings, tmp_path / "probe"),
    }
    with pytest.raises(StepalignError, match=rf"{scaled_or_capped.name}: its logits are more than hidden · headᵀ"):
        commands[command]()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_check_of_the_head_sees_a_cap_above_all_logits_and_leaves_the_model_as_it_was(
    dtype: str, tiny_llama: Path, tmp_path: Path
) -> None:
    """Gemma 2 caps at 30; an untrained model's logits are far below, where a cap does not show."""
    options = {"vocab_size": 50, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "head_dim": 8}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 4, "pad_token_id": 0, "final_logit_softcapping": 30.0}
    AutoModelForCausalLM.from_config(AutoConfig.for_model("gemma2", **options, **heads)).save_pretrained(tmp_path)
    with pytest.raises(StepalignError, match="gemma2: its logits are more"):
        models.load_base(config.ModelConfig(name_or_path=str(tmp_path), dtype=dtype, attn_implementation="eager"), CPU)
    base = models.load_base(config.ModelConfig(name_or_path=str(tiny_llama), dtype=dtype), CPU)
    plain = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=base.dtype)
    ids = torch.tensor([[1, 2, 3]])
    assert torch.equal(base(ids).logits, plain(ids).logits)


def test_an_adapter_on_the_head_is_refused(tiny_llama: Path) -> None:
    with pytest.raises(StepalignError, match="output projection must stay frozen"):
        load(tiny_llama, target_modules=("q_proj", "lm_head"))


@pytest.mark.parametrize("targets", [("c_attn",), ("q_proj", "v_porj"), ("proj",)])
def test_a_target_that_names_no_layer_is_an_error(targets: tuple[str, ...], tiny_llama: Path) -> None:
    with pytest.raises(StepalignError, match=rf"lora\.target_modules.*{targets[-1]}"):
        load(tiny_llama, target_modules=targets)


def test_a_model_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(StepalignError, match=r"model\.name_or_path = .*nowhere.*cannot be loaded"):
        load(tmp_path / "nowhere")


def test_auto_precision_is_float32_on_the_cpu(tiny_llama: Path) -> None:
    assert models.resolve_dtype("auto", CPU) == torch.float32
    bfloat = config.ModelConfig(name_or_path=str(tiny_llama), dtype="bfloat16")
    assert models.load_base(bfloat, CPU).dtype == torch.bfloat16
