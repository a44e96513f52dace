"""GRPO in the loop: advantages by group, and updates against a plain float64 computation."""

import copy
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from stepalign.algorithms.base import StepExamples
from stepalign.algorithms.grpo import GRPO, PolicyGradientExample
from stepalign.collate import collate
from stepalign.config import GRPOConfig, Recipe
from stepalign.console import Console
from stepalign.distributed.strategy import DataParallel
from stepalign.policy import Policy
from stepalign.records import Grade, Rollout
from stepalign.trainer.accumulation import local_passes, update
from stepalign.views import View
from test_policy import load

MakeRecipe = Callable[..., Recipe]
GRPO_KEYS = ("algorithm.kind=grpo", "optimizer.max_grad_norm=1e9", "sampling.temperature=1.2")


def rollout(problem: str, sample: int, correct: bool, length: int = 3) -> Rollout:
    outcome = "correct" if correct else "wrong"
    return Rollout(
        id=f"{problem}/{sample}",
        problem_id=problem,
        sample=sample,
        prompt_ids=(1, 2),
        completion_ids=tuple(range(3, 3 + length)),
        text="x" * length,
        token_starts=tuple(range(length)),
        finish="stop",
        grade=Grade(correct=correct, outcome=outcome),
    )


def grpo(settings: Recipe) -> GRPO:
    assert isinstance(settings.algorithm, GRPOConfig)
    return GRPO.from_config(settings.algorithm, recipe=settings)


def test_advantages_are_a_groups_own_and_a_group_without_contrast_costs_no_pass(make_recipe: MakeRecipe) -> None:
    rollouts = [
        *(rollout("a", n, correct) for n, correct in enumerate([True, False])),
        *(rollout("b", n, False, length=5) for n in range(2)),
        *(rollout("c", n, correct) for n, correct in enumerate([False, True])),
    ]
    step = grpo(make_recipe(*GRPO_KEYS)).build_examples(rollouts, {}, {})
    half = 0.5 / (0.5**0.5 + 1e-4)
    found = {example.rollout_id: example.advantage for example in step.examples}
    assert found == pytest.approx({"a/0": half, "a/1": -half, "c/0": -half, "c/1": half})
    assert [view.num_loss_tokens for view in step.zero_gradient] == [5, 5], "they count in the mean"
    assert dict(step.outcomes) == {"trained": 4, "dropped": 2}
    assert dict(step.failures) == {"zero-variance group": 2}


def test_with_a_kl_to_the_base_every_rollout_is_learnt_from(make_recipe: MakeRecipe) -> None:
    step = grpo(make_recipe(*GRPO_KEYS, "algorithm.kl_coef=0.1")).build_examples(
        [rollout("b", n, True) for n in range(2)], {}, {}
    )
    assert [example.advantage for example in step.examples] == [0, 0]
    assert not step.zero_gradient
    assert step.failures["zero-variance group"] == 2


def test_a_fresh_adapter_in_half_precision_has_no_kl(tiny_llama: Path, make_recipe: MakeRecipe) -> None:
    algorithm = grpo(make_recipe(*GRPO_KEYS, "algorithm.kl_coef=0.1"))
    policy, given = load(tiny_llama).bfloat16().eval(), examples()
    batch = collate([example.student for example in given])
    base = algorithm.reference_forward(policy, given, batch)
    weights = torch.ones(len(batch.targets))
    _, measures = algorithm.loss(policy(batch), base, policy.head, given, batch, weights)
    assert measures["kl_base"].abs().max() == 0


def examples() -> list[PolicyGradientExample]:
    draws = random.Random(0)

    def ids(length: int) -> tuple[int, ...]:
        return tuple(draws.randrange(300) for _ in range(length))

    return [
        PolicyGradientExample(
            rollout_id=f"r{number}",
            student=View(prompt_ids=ids(prompt), completion_ids=ids(length), loss_start=0, loss_stop=length),
            advantage=advantage,
        )
        for number, (prompt, length, advantage) in enumerate([(5, 8, 0.7), (9, 3, -0.7), (4, 12, 1.5), (6, 5, -0.5)])
    ]


ZERO_GRADIENT = (View(prompt_ids=(1,), completion_ids=(2, 3, 4), loss_start=0, loss_stop=3),)


def plain_loss(
    policy: Policy, examples: list[PolicyGradientExample], kl: float, first: list[Tensor] | None
) -> tuple[Tensor, list]:
    """The step's loss and each token's log-probability, from all the logits at once."""

    def log_probs(example: PolicyGradientExample) -> Tensor:
        view = example.student
        logits = policy.model(torch.tensor([view.input_ids])).logits[0, len(view.prompt_ids) - 1 :] / 1.2
        return logits.log_softmax(-1).gather(-1, torch.tensor(view.completion_ids)[:, None])[:, 0]

    losses, seen = [], []
    for number, example in enumerate(examples):
        with torch.no_grad(), policy.model.disable_adapter():
            base = log_probs(example)
        now = log_probs(example)
        ratio = (now - (now.detach() if first is None else first[number])).exp()
        advantage = example.advantage
        per_token = -torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage)
        gap = base - now
        losses.append((per_token + kl * (gap.exp() - gap - 1)).mean())
        seen.append(now.detach())
    return torch.stack(losses).sum() / (len(examples) + len(ZERO_GRADIENT)), seen


@pytest.mark.parametrize("kl", [0.0, 0.3])
def test_two_updates_on_the_same_rollouts_equal_the_plain_computation(
    kl: float, policy: Policy, make_recipe: MakeRecipe
) -> None:
    settings = make_recipe(*GRPO_KEYS, f"algorithm.kl_coef={kl}", "training.micro_batch_size=3")
    assert isinstance(settings.algorithm, GRPOConfig)
    plain, first = copy.deepcopy(policy).double().eval(), None
    descent = torch.optim.SGD(plain.trainable(), lr=2.0)
    expected = []
    for _ in range(2):
        loss, seen = plain_loss(plain, examples(), kl, first)
        first = first or seen
        descent.zero_grad()
        loss.backward()
        descent.step()
        expected.append(loss.item())

    optimizer = torch.optim.SGD(policy.trainable(), lr=2.0)
    algorithm, strategy = grpo(settings), DataParallel()
    with Console(1) as console:
        metrics = [
            update(
                algorithm,
                policy,
                strategy,
                optimizer,
                StepExamples(examples=examples(), zero_gradient=list(ZERO_GRADIENT)),
                local_passes(strategy, examples(), 3, None),
                console,
                loss_agg_mode=settings.algorithm.loss_agg_mode,
                max_grad_norm=settings.optimizer.max_grad_norm,
            )
            for _ in range(2)
        ]
    assert [metric["loss"] for metric in metrics] == pytest.approx(expected, rel=1e-4, abs=1e-6)
    for mine, wanted in zip(policy.trainable(), plain.trainable(), strict=True):
        torch.testing.assert_close(mine.double(), wanted, rtol=1e-4, atol=1e-5)
    assert metrics[0]["clipped"] == 0, "at first the policy is the one that sampled"
    assert metrics[1]["clipped"] > 0, "the second update is far enough from it for the clip to matter"
    assert ("kl_base" in metrics[0]) == (kl > 0)
    assert metrics[0].get("base_tokens", 0) == (metrics[0]["student_tokens"] if kl else 0)
