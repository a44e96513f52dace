"""The distillation loss on micro-batches: supports, several updates and the importance correction."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from stepalign.algorithms.base import StepExamples
from stepalign.algorithms.distillation_loss import DistillationExample, DistillationLoss, support_of
from stepalign.config import DistillationConfig
from stepalign.console import Console
from stepalign.distributed.strategy import DataParallel
from stepalign.losses.sampled_token import SampledToken
from stepalign.losses.support import FullVocabulary
from stepalign.losses.top_k import TopK
from stepalign.policy import Policy
from stepalign.trainer.accumulation import local_passes, update
from stepalign.views import View


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"beta": 0.5, "student_temperature": 2.0}, FullVocabulary(beta=0.5, student_temperature=2.0)),
        (
            {"support": "topk-student", "top_k": 7, "clip_mode": "entry", "clip_value": 0.1},
            TopK(top_k=7, of="student", clip_mode="entry", clip_value=0.1),
        ),
        (
            {"support": "topk-teacher", "top_k": 3, "beta": 1, "teacher_temperature": 0.5},
            TopK(top_k=3, of="teacher", beta=1.0, teacher_temperature=0.5),
        ),
        (
            {"support": "sampled", "beta": 1, "clip_mode": "token", "clip_value": 5, "discount": 0.9},
            SampledToken(clip_value=5.0, discount=0.9),
        ),
    ],
)
def test_a_recipe_names_its_support(keys: dict[str, Any], expected: object) -> None:
    assert support_of(DistillationConfig(**keys)) == expected


def examples(sampled: list[tuple[float, ...]] | None = None) -> list[DistillationExample]:
    made = []
    for number, (prompt, start, ids) in enumerate(
        [(4, 0, range(20, 28)), (6, 1, range(50, 55)), (3, 2, range(90, 101))]
    ):
        completion = tuple(ids)
        views = [
            View(prompt_ids=tuple(p), completion_ids=completion, loss_start=start, loss_stop=len(completion))
            for p in (range(2, 2 + prompt), range(200, 209))
        ]
        made.append(
            DistillationExample(
                rollout_id=f"r{number}",
                student=views[0],
                teacher=views[1],
                sampler_logprobs=None if sampled is None else sampled[number],
            )
        )
    return made


def log_probs(policy: Policy, view: View) -> Tensor:
    logits = policy.model(torch.tensor([view.input_ids])).logits[0, len(view.prompt_ids) - 1 + view.loss_start :]
    return logits.log_softmax(-1)


def plain_loss(
    policy: Policy, keys: dict[str, Any], old: list[Tensor] | None, taught: list[DistillationExample]
) -> tuple[Tensor, list[Tensor]]:
    """The step's loss and each sampled token's log-probability, from all the logits at once."""
    losses, seen = [], []
    for number, example in enumerate(taught):
        with torch.no_grad(), policy.model.disable_adapter():
            teacher = log_probs(policy, example.teacher)
        student = log_probs(policy, example.student)
        own = student.gather(-1, torch.tensor(example.student.completion_ids[example.student.loss_start :])[:, None])[
            :, 0
        ]
        seen.append(own.detach())
        gap = own.detach() - (own.detach() if old is None else old[number])
        level = keys["importance_sampling_level"]
        ratio = (
            torch.ones_like(gap) if level == "off" else (gap if level == "token" else gap.sum()).exp().clamp(max=1.05)
        )
        losses.append(((teacher.exp() * (teacher - student)).sum(-1) * ratio).mean())
    return torch.stack(losses).mean(), seen


@pytest.mark.parametrize("level", ["off", "token", "sequence"])
@pytest.mark.parametrize("engine", [False, True])
def test_two_updates_on_the_same_rollouts_equal_the_plain_computation(level: str, engine: bool, policy: Policy) -> None:
    keys = {"num_iterations": 2, "importance_sampling_level": level, "importance_sampling_cap": 1.05}
    draws = torch.Generator().manual_seed(2)
    plain = copy.deepcopy(policy).double().eval()
    first, sampled = None, None
    if engine:  # it differs from the trainer
        _, exact = plain_loss(plain, keys, None, examples())
        first = [values + 0.1 * torch.randn(values.shape, generator=draws) for values in exact]
        sampled = [tuple(values.tolist()) for values in first]
    descent, expected = torch.optim.SGD(plain.trainable(), lr=2.0), []
    for _ in range(2):
        loss, seen = plain_loss(plain, keys, first, examples())
        first = first or seen
        descent.zero_grad()
        loss.backward()
        descent.step()
        expected.append(loss.item())

    made, strategy = DistillationLoss(DistillationConfig(**keys)), DataParallel()
    optimizer = torch.optim.SGD(policy.trainable(), lr=2.0)
    with Console(1) as console:
        metrics = [
            update(
                made,
                policy,
                strategy,
                optimizer,
                StepExamples(examples=examples(sampled)),
                local_passes(strategy, examples(sampled), 2, None),
                console,
                loss_agg_mode="seq-mean-token-mean",
                max_grad_norm=1e9,
            )
            for _ in range(2)
        ]
    made.after_step(policy)
    assert made.old_log_probs.get(examples()) is None
    assert [metric["loss"] for metric in metrics] == pytest.approx(expected, rel=1e-4, abs=1e-6)
    for mine, wanted in zip(policy.trainable(), plain.trainable(), strict=True):
        torch.testing.assert_close(mine.double(), wanted, rtol=1e-4, atol=1e-5)
    if level == "off":
        assert "importance_ratio" not in metrics[0]
    else:
        assert (metrics[0]["importance_ratio"] == 1) is not engine
        assert metrics[1]["importance_ratio"] != 1
