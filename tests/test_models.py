"""Loading: the fresh adapter, the precision, and the models that every command refuses."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import (
    AdaLoraConfig,
    IA3Config,
    LoHaConfig,
    LoKrConfig,
    LoraConfig,
    OFTConfig,
    PeftConfig,
    PrefixTuningConfig,
    PromptEncoderConfig,
    PromptTuningConfig,
    VeraConfig,
    get_peft_model,
)
from torch.nn import functional
from transformers import AutoConfig, AutoModelForCausalLM

from stepalign import api, config, models
from stepalign.chat import load_chat
from stepalign.errors import StepalignError
from stepalign.launch import train
from stepalign.losses.divergence import divergence
from stepalign.probing.run import probe
from test_policy import CPU, batch, load, trained, views

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


@pytest.mark.parametrize("command", ["train", "sample", "evaluate", "select", "critique", "probe"])
@pytest.mark.parametrize(("family", "why"), [("gemma2", "a soft cap at 1"), ("phi", "a bias, or a scale of")])
def test_a_head_that_caps_or_adds_is_refused_by_every_command(
    command: str,
    family: str,
    why: str,
    with_head: Callable[[str], Path],
    make_recipe: Callable[..., config.Recipe],
    finished_run: config.Recipe,
    tmp_path: Path,
) -> None:
    given = [f"model.name_or_path={with_head(family)}", "model.attn_implementation=eager"]
    settings = make_recipe(*given, *["critic={kind='self'}"] * (command == "critique"))
    out = tmp_path / "out.jsonl"
    commands: dict[str, Callable[[], object]] = {
        "train": lambda: train(settings),
        "sample": lambda: api.sample(settings, out),
        "evaluate": lambda: api.evaluate(settings, out),
        "select": lambda: api.select(settings, tmp_path / "selection"),
        "critique": lambda: api.critique(settings, finished_run.folder / "rollouts" / "step-000001.jsonl", out),
        "probe": lambda: probe(settings, tmp_path / "probe"),
    }
    with pytest.raises(StepalignError, match=rf"{family}: its logits are more than hidden · headᵀ \({why}"):
        commands[command]()


@pytest.mark.parametrize("family", ["granite", "cohere"])
def test_a_head_that_scales_is_trained_and_sampled_as_the_model_itself_would(
    family: str, with_head: Callable[[str], Path], make_recipe: Callable[..., config.Recipe], tmp_path: Path
) -> None:
    folder = with_head(family)
    policy = trained(load(folder)).eval()
    parameters, hidden = policy.trainable(), policy(batch())
    wanted = []
    for view in views():
        logits = policy.model(torch.tensor([[*view.prompt_ids, *view.completion_ids]])).logits[0]
        before = len(view.prompt_ids) - 1
        wanted.append(logits[before + view.loss_start : before + view.loss_stop])
    torch.testing.assert_close(hidden @ policy.head.T, torch.cat(wanted), rtol=1e-4, atol=1e-5)

    base, weights = policy.forward_base(batch()), torch.rand(len(hidden))
    loss, _ = divergence(hidden, base, policy.head, weights)
    teacher = (base @ policy.head.T).log_softmax(-1)
    kl = functional.kl_div(torch.cat(wanted).log_softmax(-1), teacher, reduction="none", log_target=True).sum(-1)
    expected = torch.autograd.grad((weights * kl).sum(), parameters)
    for found, each in zip(torch.autograd.grad(loss, parameters), expected, strict=True):
        torch.testing.assert_close(found, each, rtol=1e-3, atol=1e-5)

    train(make_recipe(f"model.name_or_path={folder}", "training.max_steps=1"))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_check_of_the_head_sees_a_cap_above_all_logits_and_leaves_the_model_as_it_was(
    dtype: str, tiny_llama: Path, tmp_path: Path
) -> None:
    """Gemma 2 caps at 30; an untrained model's logits are far below, where a cap does not show."""
    options = {"vocab_size": 50, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "head_dim": 8}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 4, "pad_token_id": 0, "final_logit_softcapping": 30.0}
    AutoModelForCausalLM.from_config(AutoConfig.for_model("gemma2", **options, **heads)).save_pretrained(tmp_path)
    with pytest.raises(StepalignError, match=r"gemma2: its logits are more .*cap at 30"):
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
    with pytest.raises(StepalignError, match=r"model\.name_or_path = .*nowhere': no such folder"):
        load(tmp_path / "nowhere")


def test_auto_precision_is_float32_on_the_cpu(tiny_llama: Path) -> None:
    assert models.resolve_dtype("auto", CPU) == torch.float32
    bfloat = config.ModelConfig(name_or_path=str(tiny_llama), dtype="bfloat16")
    assert models.load_base(bfloat, CPU).dtype == torch.bfloat16


# ── folders that are not there ────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", ["models/none", "./none", "/none/at/all", "~/none", "a/b/c", "runs/x/checkpoints/s"])
def test_a_local_folder_that_is_missing_is_an_error_without_the_hub(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StepalignError, match=rf"model\.name_or_path = '{name}': no such folder$"):
        _ = config.ModelConfig(name_or_path=name).location


def test_names_on_the_hub_are_left_to_it_unless_their_owner_is_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("gpt2", "Qwen/Qwen3-1.7B"):
        assert config.ModelConfig(name_or_path=name).location == name
    (tmp_path / "Qwen").mkdir()
    with pytest.raises(StepalignError, match="no such folder"):
        _ = config.ModelConfig(name_or_path="Qwen/Qwen3-1.7B").location


def test_the_command_that_makes_a_known_folder_is_named(make_recipe: Callable[..., config.Recipe]) -> None:
    settings = make_recipe("model.name_or_path=models/SmolLM2-135M-Instruct/")
    with pytest.raises(StepalignError, match=r"`python scripts/smollm2\.py models/SmolLM2-135M-Instruct` makes it"):
        train(settings)


# ── adapters ──────────────────────────────────────────────────────────────────────────────────────────────────


def saved_adapter(base: Path, folder: Path, adapter: PeftConfig) -> Path:
    """A fresh adapter on a base, as PEFT saves it."""
    model = AutoModelForCausalLM.from_pretrained(base)
    get_peft_model(model, adapter).save_pretrained(folder, save_embedding_layers=False)
    return folder


def change(adapter: Path, **values: object) -> Path:
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
    return adapter


def lora(**options: Any) -> LoraConfig:
    return LoraConfig(**{"r": 4, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM"} | options)


def load_with(base: Path, adapter: Path) -> Any:
    return models.load_model(config.ModelConfig(name_or_path=str(base)), adapter, CPU)


@pytest.mark.parametrize(
    "tuning",
    [
        PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2),
        PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2),
        PromptEncoderConfig(task_type="CAUSAL_LM", num_virtual_tokens=2, encoder_hidden_size=8),
    ],
    ids=lambda tuning: tuning.peft_type.value,
)
@pytest.mark.parametrize("command", ["sample", "evaluate", "probe"])
def test_prompt_and_prefix_tuning_are_refused(
    command: str, tuning: PeftConfig, tiny_llama: Path, make_recipe: Callable[..., config.Recipe], tmp_path: Path
) -> None:
    adapter = saved_adapter(tiny_llama, tmp_path / "adapter", tuning)
    commands = {"sample": api.sample, "evaluate": api.evaluate, "probe": probe}
    with pytest.raises(StepalignError, match=rf"peft_type = {tuning.peft_type.value}: prompt and prefix tuning"):
        commands[command](make_recipe(), tmp_path / "out", adapter=adapter)  # type: ignore[operator]


@pytest.mark.parametrize(
    "kind",
    [
        LoraConfig(r=4, target_modules=["q_proj"], use_dora=True),
        LoraConfig(r=4, target_modules=["q_proj"], use_rslora=True),
        IA3Config(target_modules=["q_proj", "down_proj"], feedforward_modules=["down_proj"]),
        VeraConfig(r=4, target_modules=["q_proj"]),
        LoHaConfig(r=4, target_modules=["q_proj"]),
        LoKrConfig(r=4, target_modules=["q_proj"]),
        OFTConfig(oft_block_size=8, target_modules=["q_proj"]),
        AdaLoraConfig(init_r=4, target_r=2, total_step=10, target_modules=["q_proj"]),
    ],
    ids=lambda kind: f"{kind.peft_type.value}{'-dora' * getattr(kind, 'use_dora', False)}",
)
def test_every_kind_of_adapter_within_the_layers_acts_on_what_is_scored_and_sampled(
    kind: PeftConfig, tiny_llama: Path, tmp_path: Path
) -> None:
    kind.task_type = "CAUSAL_LM"
    torch.manual_seed(0)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_llama), kind)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and "rank" not in name:
            parameter.data += 0.3 * torch.randn_like(parameter)
    model.save_pretrained(tmp_path)
    ids = torch.tensor([[1, 2, 3]])
    wanted, base = model.eval()(ids).logits, AutoModelForCausalLM.from_pretrained(tiny_llama)(ids).logits
    assert (wanted - base).abs().max() > 1e-2
    loaded = load_with(tiny_llama, tmp_path)
    hidden = loaded.get_base_model().get_decoder()(ids).last_hidden_state  # as Policy and TransformersSampler call it
    torch.testing.assert_close(loaded.get_output_embeddings()(hidden), wanted, rtol=1e-4, atol=1e-4)


def test_an_adapter_within_the_layers_is_loaded_and_one_of_the_head_is_not(tiny_llama: Path, tmp_path: Path) -> None:
    load_with(tiny_llama, saved_adapter(tiny_llama, tmp_path / "fits", lora(use_dora=True)))
    for name, options in (
        ("lora", {"target_modules": ["q_proj", "lm_head"]}),
        ("whole", {"modules_to_save": ["lm_head"]}),
    ):
        adapter = saved_adapter(tiny_llama, tmp_path / name, lora(**options))
        with pytest.raises(StepalignError, match=rf"{name}: it changes the output projection"):
            load_with(tiny_llama, adapter)


def test_an_adapter_of_another_base_is_refused_by_its_name(tiny_llama: Path, tiny_qwen3: Path, tmp_path: Path) -> None:
    adapter = saved_adapter(tiny_llama, tmp_path / "adapter", lora())
    with pytest.raises(StepalignError, match=rf"base_model_name_or_path = '{tiny_llama}', but .*{tiny_qwen3}"):
        load_with(tiny_qwen3, adapter)
    for name in (f"/elsewhere/{tiny_llama.name}/", f"owner/{tiny_llama.name.upper()}", None):
        load_with(tiny_llama, change(adapter, base_model_name_or_path=name))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"r": 8}, "size mismatch for .*q_proj"),
        ({"target_modules": ["q_proj", "k_proj"]}, "missing adapter keys .*k_proj"),
        ({"target_modules": ["k_proj"]}, "missing adapter keys .*k_proj"),
        ({"layers_to_transform": [0]}, "which has no .*layers.1.self_attn.q_proj"),
        ({"target_modules": ["nothing"]}, "Target modules .*nothing.* not found"),
        ({"peft_type": "NONE_SUCH"}, "not the configuration of a PEFT adapter"),
    ],
)
def test_an_adapter_that_does_not_fit_is_refused_with_names(
    changed: dict[str, Any], message: str, tiny_llama: Path, tmp_path: Path
) -> None:
    adapter = change(saved_adapter(tiny_llama, tmp_path / "adapter", lora()), **changed)
    with pytest.raises(StepalignError, match=message):
        load_with(tiny_llama, adapter)


def test_no_adapter_and_an_adapter_as_the_base_are_errors(tiny_llama: Path, tmp_path: Path) -> None:
    with pytest.raises(StepalignError, match=r"none: not a PEFT adapter: it has no adapter_config\.json"):
        load_with(tiny_llama, tmp_path / "none")
    adapter = saved_adapter(tiny_llama, tmp_path / "adapter", lora())
    with pytest.raises(StepalignError, match="a PEFT adapter; name its base here"):
        load_with(adapter, adapter)


# ── the same base throughout ──────────────────────────────────────────────────────────────────────────────────


def copied(base: Path, folder: Path) -> Path:
    return Path(shutil.copytree(base, folder))


@pytest.mark.usefixtures("no_figures")
def test_a_base_that_changed_since_the_run_began_is_refused(
    tiny_llama: Path, make_recipe: Callable[..., config.Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = copied(tiny_llama, tmp_path / "base")
    weights = base / "model.safetensors"
    bytes_before = weights.read_bytes()
    settings = make_recipe(f"model.name_or_path={base}", "training.max_steps=1", "training.save_steps=1")
    train(settings)
    train(settings)  # nothing has changed
    weights.write_bytes(bytes_before[:-1] + bytes([bytes_before[-1] ^ 1]))
    with monkeypatch.context() as patch:
        patch.setattr(models, "load_policy", None)  # known before the weights are loaded
        with pytest.raises(StepalignError, match=r"the base has changed since this run began: model\.safetensors"):
            train(settings)
    adapter = settings.folder / "checkpoints" / "step-000001"
    with pytest.raises(StepalignError, match=r"trained on another base than .*: model\.safetensors differ"):
        api.evaluate(settings, tmp_path / "out.json", adapter=adapter)
    weights.write_bytes(bytes_before)
    api.evaluate(settings, tmp_path / "out.json", adapter=adapter)


def test_the_fingerprint_reads_parts_of_a_large_file(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    with path.open("wb") as file:
        file.truncate(2**27)
    model = config.ModelConfig(name_or_path=str(tmp_path))
    before = models.fingerprint(model)
    with path.open("r+b") as file:
        file.seek(2**27 - 1)
        file.write(b"x")
    assert models.fingerprint(model) != before


# ── damaged files ─────────────────────────────────────────────────────────────────────────────────────────────


class Pickled:
    """An object whose unpickling would run code."""

    def __reduce__(self) -> Any:
        return print, ("code of a pickle has run",)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.json", "[]"),
        ("config.json", '{"model_type": "llama", "hidden_size": "wide"}'),
        ("model.safetensors", "half"),
        ("pytorch_model.bin", None),
        ("tokenizer.json", "{}"),
        ("generation_config.json", '{"eos_token_id": [[]]}'),
        ("generation_config.json", "[" * 100_000),
    ],
)
def test_a_damaged_model_folder_is_an_error_that_names_it(
    name: str, content: str | None, tiny_llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(tiny_llama, tmp_path / "model")
    if content is None:
        (folder / "model.safetensors").unlink()
        torch.save({"weights": Pickled()}, folder / name)
    else:
        (folder / name).write_text(content)
    settings = config.ModelConfig(name_or_path=str(folder))
    with pytest.raises(StepalignError, match=f"{folder}"):
        load_chat(settings), models.load_base(settings, CPU)
    assert "code of a pickle" not in capsys.readouterr().out


@pytest.mark.parametrize("content", ["[]", "{}", '"x"', "null", "", '{"peft_type": "LORA", "alpha_pattern": []}'])
def test_a_damaged_adapter_configuration_is_an_error_that_names_it(
    content: str, tiny_llama: Path, tmp_path: Path
) -> None:
    (tmp_path / "adapter_config.json").write_text(content)
    with pytest.raises(StepalignError, match=f"{tmp_path}"):
        models.load_model(config.ModelConfig(name_or_path=str(tiny_llama)), tmp_path, CPU)


# ── 4-bit bases ───────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_an_adapter_on_a_base_in_four_bits_learns_and_the_base_stays(tiny_llama: Path, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    settings = AutoConfig.from_pretrained(tiny_llama)
    settings.hidden_size, settings.intermediate_size, settings.head_dim = 128, 256, 32
    settings.initializer_range = 0.02
    AutoModelForCausalLM.from_config(settings).save_pretrained(tmp_path)
    table = config.ModelConfig(name_or_path=str(tmp_path), load_in_4bit=True)
    policy = models.load_policy(table, config.LoraConfig(r=4), 0, CPU).train()  # evaluation packs the weights anew
    assert policy.base.get_decoder().layers[0].mlp.up_proj.base_layer.weight.dtype == torch.uint8
    assert policy.head.dtype == torch.float32
    base, full = policy.forward_base(batch()), load(tmp_path).forward_base(batch())
    assert 0 < (base - full).abs().mean() < 0.5 * full.abs().mean()
    assert torch.equal(policy(batch()), base)
    trained(policy)
    assert torch.equal(policy.forward_base(batch()), base)
    assert (policy(batch()) - base).abs().max() > 1e-2
