"""Teachers: what each predicts after training, and the state it asks a checkpoint to hold."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from stepalign import config
from stepalign.config.registry import FAMILIES
from stepalign.errors import StepalignError
from stepalign.launch import train
from stepalign.policy import Policy
from stepalign.teachers import Teacher, build_teacher
from stepalign.teachers.stateless import BaseTeacher, LiveTeacher
from test_policy import batch, load, trained

pytestmark = pytest.mark.usefixtures("no_figures")

KINDS = [kind for kind in FAMILIES["teacher"].tables if kind != "model"]
"""Those of the policy's own weights; `test_model` has the other."""


def build(kind: str, policy: Policy, **keys: Any) -> Teacher:
    return build_teacher(FAMILIES["teacher"].tables[kind](kind=kind, **keys), policy)


def log_probs(teacher: Teacher) -> torch.Tensor:
    return (teacher.forward(batch()) @ teacher.head.T).double().log_softmax(-1)


@pytest.fixture
def policy(tiny_llama: Path) -> Policy:
    return load(tiny_llama, lora_dropout=0.5).train()


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_a_teacher_without_gradients_that_leaves_the_mode(kind: str, policy: Policy) -> None:
    teacher = build(kind, policy)
    assert isinstance(teacher, Teacher)
    for training in (True, False):
        policy.train(training)
        assert not teacher.forward(batch()).requires_grad
        assert policy.training is training
    assert teacher.head is policy.head
    assert policy(batch()).requires_grad


def test_the_base_teacher_stays_bit_for_bit_while_the_live_one_follows(policy: Policy) -> None:
    base, live = BaseTeacher(policy), LiveTeacher(policy)
    before = base.forward(batch())
    assert torch.equal(live.forward(batch()), before), "a fresh adapter has no effect"
    trained(policy)
    for teacher in (base, live):
        teacher.after_step(policy)
    assert torch.equal(base.forward(batch()), before)
    assert torch.equal(live.forward(batch()), policy.eval()(batch()))
    assert (live.forward(batch()) - before).abs().max() > 1e-2


def test_the_live_teacher_has_no_dropout_noise(policy: Policy) -> None:
    live = LiveTeacher(trained(policy))
    assert torch.equal(live.forward(batch()), live.forward(batch()))
    assert not torch.equal(policy.train()(batch()), policy(batch()))


@pytest.mark.parametrize("kind", KINDS)
def test_a_checkpoint_of_another_kind_of_teacher_is_refused(kind: str, policy: Policy) -> None:
    teacher = build(kind, policy)
    teacher.load_state_dict(teacher.state_dict())
    with pytest.raises(StepalignError, match=r"teacher\.kind: .*another kind of teacher: \["):
        teacher.load_state_dict({"ema.0": torch.zeros(1)})


@pytest.mark.parametrize("factor", [0.0, 0.3, 1.0])
def test_the_scaled_teacher_has_the_adapters_effect_times_a_number(factor: float, policy: Policy) -> None:
    trained(policy)
    teacher = build("scaled", policy, scale=factor)
    wanted = load(Path(policy.base.config.name_or_path), lora_alpha=max(32 * factor, 1e-9)).eval()
    for mine, theirs in zip(wanted.trainable(), policy.trainable(), strict=True):
        mine.data.copy_(theirs)
    torch.testing.assert_close(teacher.forward(batch()), wanted(batch()))


@pytest.mark.parametrize("alpha", [0.0, 0.05, 0.5, 1.0])
def test_the_trust_region_is_the_mean_of_both_models_log_probabilities(alpha: float, policy: Policy) -> None:
    """Normalized again: q ∝ exp((1 − α) log q_base + α log q_policy)."""
    teacher = build("trust-region", trained(policy), alpha=alpha)
    base, live = (log_probs(build(kind, policy)) for kind in ("base", "live"))
    wanted = ((1 - alpha) * base + alpha * live).log_softmax(-1)
    torch.testing.assert_close(log_probs(teacher), wanted, rtol=1e-4, atol=1e-4)
    assert (base - live).abs().max() > 0.1


@pytest.mark.parametrize("alpha", [0.001, 0.05])
def test_half_precision_does_not_round_a_small_trust_region_away(alpha: float, policy: Policy) -> None:
    trained(policy).bfloat16()

    def logits(kind: str, **keys: float) -> torch.Tensor:
        teacher = build(kind, policy, **keys)
        return teacher.forward(batch()).to(teacher.head.dtype).double() @ teacher.head.double().T

    base, effect = logits("base"), logits("live") - logits("base")
    found = (logits("trust-region", alpha=alpha) - base) / alpha
    assert (found - effect).abs().max() < 0.01 * effect.abs().max()


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(kind, marks=[] if kind == "ema" else pytest.mark.slow)
        for kind in KINDS
        if kind not in ("base", "live")
    ],
)
def test_a_run_with_every_teacher_resumes_bit_for_bit(kind: str, make_recipe: Callable[..., config.Recipe]) -> None:
    keys = (f"teacher.kind={kind}", "problems.holdout=0", "training.save_steps=1", "training.rollouts_per_step=2")
    train(whole := make_recipe(*keys, "name=whole", "training.max_steps=3"))
    for last in (2, 3):
        train(parts := make_recipe(*keys, "name=parts", f"training.max_steps={last}"))
    for name in ("adapter_model.safetensors", "optimizer.safetensors", "algorithm.safetensors"):
        one, other = (each.folder / "checkpoints" / "step-000003" / name for each in (whole, parts))
        assert one.exists() == other.exists()
        assert not one.exists() or one.read_bytes() == other.read_bytes()


def test_a_run_with_the_live_teacher_begins_like_one_with_the_base_and_then_differs(
    make_recipe: Callable[..., config.Recipe], finished_run: config.Recipe
) -> None:
    """A fresh adapter has no effect, so that both teachers are one until the first update."""
    live = make_recipe("teacher.kind=live", "training.max_steps=2")
    train(live)
    ours, theirs = (
        [json.loads(line) for line in (each.folder / "metrics.jsonl").read_text().splitlines()[:2]]
        for each in (live, finished_run)
    )
    assert ours[0]["loss"] == theirs[0]["loss"]
    assert ours[1]["tokens"] == theirs[1]["tokens"], "the same rollouts, sampled after the same update"
    assert ours[1]["loss"] != theirs[1]["loss"]
