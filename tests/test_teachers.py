"""Teachers: what each predicts after training, and the state it asks a checkpoint to hold."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from stepalign import config
from stepalign.config.registry import FAMILIES
from stepalign.errors import StepalignError
from stepalign.launch import train
from stepalign.policy import Policy
from stepalign.teachers import BaseTeacher, LiveTeacher, Teacher, build_teacher
from test_policy import batch, load, trained

KINDS = list(FAMILIES["teacher"].tables)


@pytest.fixture
def policy(tiny_llama: Path) -> Policy:
    return load(tiny_llama, lora_dropout=0.5).train()


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_a_teacher_without_gradients_that_leaves_the_mode(kind: str, policy: Policy) -> None:
    teacher = build_teacher(kind, policy)
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
    teacher = build_teacher(kind, policy)
    teacher.load_state_dict(teacher.state_dict())
    with pytest.raises(StepalignError, match=r"teacher\.kind: .*another kind of teacher: \['ema\.0'\]"):
        teacher.load_state_dict({"ema.0": torch.zeros(1)})


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
