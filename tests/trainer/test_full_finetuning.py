"""Training of all weights: gradients, the base that is kept, checkpoints that are models, and what is refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import stepalign
from stepalign import config, models
from stepalign.collate import collate
from stepalign.errors import StepalignError
from stepalign.launch import train
from stepalign.losses.divergence import divergence
from stepalign.policy import Policy
from stepalign.teachers import Teacher, build_teacher
from test_policy import CPU, batch, trained, views

pytestmark = pytest.mark.usefixtures("no_figures")

MakeRecipe = Callable[..., config.Recipe]
SHORT = (
    "training.use_peft=false", "optimizer.lr=1e-3", "training.rollouts_per_step=2", "training.save_steps=1",
    "training.eval_steps=0",
)  # fmt: skip


def load(folder: Path) -> Policy:
    return models.load_policy(config.ModelConfig(name_or_path=str(folder)), None, 0, CPU)


def log_probs(teacher: Teacher) -> torch.Tensor:
    return (teacher.forward(batch()) @ teacher.head.T).double().log_softmax(-1)


@pytest.fixture(params=["tiny_llama", "tiny_qwen3"], ids=["a head of its own", "a tied head"])
def folder(request: pytest.FixtureRequest) -> Path:
    path: Path = request.getfixturevalue(request.param)
    return path


def test_every_weight_has_the_gradient_that_autograd_finds_through_whole_logits(folder: Path) -> None:
    policy, view = load(folder), views()[1]
    teacher = torch.randn(view.num_loss_tokens, 32, generator=torch.Generator().manual_seed(0))
    fixed = policy.head.detach().clone()
    weights = torch.full((view.num_loss_tokens,), 0.1)
    loss, _ = divergence(policy(collate([view])), teacher, policy.head, weights, teacher_head=fixed, chunk_tokens=4)
    loss.backward()
    found = {name: parameter.grad.clone() for name, parameter in policy.named_parameters()}
    policy.zero_grad()
    logits = policy.model(torch.tensor([[*view.prompt_ids, *view.completion_ids]])).logits[0]
    log_p = logits[len(view.prompt_ids) - 1 :][view.loss_start : view.loss_stop].log_softmax(-1)
    q = (teacher @ fixed.T).softmax(-1)
    (0.1 * (q * (q.log() - log_p)).sum()).backward()
    assert len(found) == len(policy.trainable()) == len(list(policy.parameters()))
    for name, parameter in policy.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.parametrize("kind", ["base", "ema", "live", "trust-region"])
def test_teachers_of_a_policy_whose_weights_are_all_trained(kind: str, folder: Path) -> None:
    policy = load(folder)
    tables = {
        "base": config.BaseTeacherConfig(), "ema": config.EMATeacherConfig(update_rate=0.25),
        "live": config.LiveTeacherConfig(), "trust-region": config.TrustRegionTeacherConfig(alpha=0.25),
    }  # fmt: skip
    teacher = build_teacher(tables[kind], policy)
    before = log_probs(teacher)
    start = {name: parameter.detach().clone() for name, parameter in policy.named_parameters()}
    trained(policy)
    policy.zero_grad()
    teacher.after_update(policy)
    live = log_probs(build_teacher(config.LiveTeacherConfig(), policy))
    if kind == "base":
        assert torch.equal(log_probs(teacher), before)
    elif kind == "live":
        assert torch.equal(log_probs(teacher), live)
    elif kind == "trust-region":
        wanted = (0.75 * before + 0.25 * live).log_softmax(-1)
        torch.testing.assert_close(log_probs(teacher), wanted, rtol=1e-4, atol=1e-4)
    else:
        mean = load(folder).requires_grad_(False)
        for name, parameter in mean.named_parameters():
            parameter.copy_(torch.lerp(start[name], policy.get_parameter(name).detach(), 0.25))
        assert torch.equal(log_probs(teacher), log_probs(build_teacher(config.LiveTeacherConfig(), mean)))
    assert (live - before).abs().max() > 0.1
    assert not teacher.forward(batch()).requires_grad


@pytest.mark.parametrize(
    "kind", ["ema", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("base", "trust-region"))]
)
def test_a_run_resumes_bit_for_bit(kind: str, make_recipe: MakeRecipe) -> None:
    keys = (*SHORT, f"teacher.kind={kind}", "problems.holdout=0")
    train(whole := make_recipe(*keys, "name=whole", "training.max_steps=2"))
    for last in (1, 2):
        train(parts := make_recipe(*keys, "name=parts", f"training.max_steps={last}"))
    for name in ("model.safetensors", "optimizer.safetensors", "algorithm.safetensors"):
        one, other = (each.folder / "checkpoints" / "step-000002" / name for each in (whole, parts))
        assert one.exists() == other.exists() == (name != "algorithm.safetensors" or kind == "ema")
        assert not one.exists() or one.read_bytes() == other.read_bytes()
    kl = [json.loads(line)["kl"] for line in (whole.folder / "metrics.jsonl").read_text().splitlines()]
    assert all(value > 0 for value in kl)


def test_grpo_with_a_kl_to_the_base_trains_all_weights(make_recipe: MakeRecipe) -> None:
    keys = ("algorithm={kind='grpo', kl_coef=0.5}", "problems.holdout=0", "training.max_steps=2")
    train(settings := make_recipe(*SHORT, *keys))
    lines = [json.loads(line) for line in (settings.folder / "metrics.jsonl").read_text().splitlines()]
    assert lines[0]["kl_base"] == pytest.approx(0, abs=1e-9)
    assert lines[1]["kl_base"] >= 0


@pytest.fixture(scope="module")
def run(recipe_in: MakeRecipe, tmp_path_factory: pytest.TempPathFactory) -> config.Recipe:
    train(settings := recipe_in(tmp_path_factory.mktemp("full"), *SHORT, "training.max_steps=1"))
    return settings


def test_a_checkpoint_is_a_model_with_its_tokenizer(run: config.Recipe, tiny_llama: Path, tmp_path: Path) -> None:
    checkpoint = run.folder / "checkpoints" / "step-000001"
    model, before = (AutoModelForCausalLM.from_pretrained(path) for path in (checkpoint, tiny_llama))
    theirs = dict(before.named_parameters())
    assert all(not torch.equal(parameter, theirs[name]) for name, parameter in model.named_parameters())
    assert (
        AutoTokenizer.from_pretrained(checkpoint).chat_template
        == AutoTokenizer.from_pretrained(tiny_llama).chat_template
    )
    evaluated = run.model_copy(update={"model": config.ModelConfig(name_or_path=str(checkpoint))})
    again = stepalign.evaluate(evaluated, tmp_path / "evaluation.json")
    kept = json.loads((run.folder / "evaluations" / "step-000001.json").read_text())
    assert {name: measure.value for name, measure in again.measures.items()} == {
        name: measure["value"] for name, measure in kept["measures"].items()
    }


def test_a_checkpoint_is_no_adapter(run: config.Recipe, tmp_path: Path) -> None:
    checkpoint = run.folder / "checkpoints" / "step-000001"
    with pytest.raises(StepalignError, match=r"a whole model and no adapter: name it as model\.name_or_path"):
        stepalign.evaluate(run, tmp_path / "evaluation.json", adapter=checkpoint)


@pytest.mark.parametrize("damage", ["half", "missing", "other"])
def test_a_damaged_model_in_a_checkpoint_is_named(
    damage: str, run: config.Recipe, tiny_qwen3: Path, tmp_path: Path
) -> None:
    checkpoint = Path(shutil.copytree(run.folder / "checkpoints" / "step-000001", tmp_path / "checkpoint"))
    file = checkpoint / "model.safetensors"
    if damage == "half":
        file.write_bytes(file.read_bytes()[:-100])
    elif damage == "missing":
        file.unlink()
    else:
        shutil.copytree(tiny_qwen3, checkpoint, dirs_exist_ok=True)
    policy = load(Path(run.model.name_or_path))
    with pytest.raises(StepalignError, match=r"checkpoint: (not a whole model|another model than the recipe's)"):
        policy.load(checkpoint)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.dtype=bfloat16", "model.dtype = 'bfloat16': updates below"),
        ("model.attn_implementation=flash_attention_2", "model.attn_implementation = 'flash_attention_2': all weights"),
        ("model.load_in_4bit=true", "model.load_in_4bit = True: 4-bit weights have no gradients"),
        ("sampler.kind=vllm", "sampler.kind = 'vllm': its weight sync sends adapters"),
        ("teacher.kind=scaled", "teacher.kind = 'scaled': there is no adapter to scale"),
        ("critic.kind=self", "critic.kind = 'self': its model is the solver's base"),
        ('critic={ kind = "locate-mend", mender = { kind = "self" } }', "critic.kind = 'locate-mend': its model is"),
        ('critic={ kind = "locate-mend", locator = { kind = "credit" } }', "critic.kind = 'locate-mend': its model"),
    ],
)
def test_what_needs_an_adapter_is_refused(override: str, message: str, make_recipe: MakeRecipe) -> None:
    with pytest.raises(StepalignError, match=f"training.use_peft = false with {message}"):
        make_recipe("training.use_peft=false", override)
