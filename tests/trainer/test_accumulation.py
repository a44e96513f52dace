"""One optimizer step against a plain float64 computation on materialized logits."""

import copy
import random
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from transformers import get_scheduler

from stepalign.algorithms.base import StepExamples
from stepalign.algorithms.distillation_loss import DistillationExample, DistillationLoss
from stepalign.config import OptimizerConfig, Recipe
from stepalign.console import Console
from stepalign.distributed.strategy import DataParallel
from stepalign.errors import StepalignError
from stepalign.policy import Policy
from stepalign.trainer.accumulation import GradientAccumulator, adamw, learning_rate, local_passes, update
from stepalign.views import View

MakeRecipe = Callable[..., Recipe]
UNCLIPPED = "optimizer.max_grad_norm=1e9"


def examples() -> list[DistillationExample]:
    draws = random.Random(0)

    def ids(length: int) -> tuple[int, ...]:
        return tuple(draws.randrange(300) for _ in range(length))

    def example(number: int, student: int, teacher: int, completion: int, start: int, stop: int) -> DistillationExample:
        span = {"completion_ids": ids(completion), "loss_start": start, "loss_stop": stop}
        return DistillationExample(
            rollout_id=f"rollout {number}",
            student=View(prompt_ids=ids(student), **span),
            teacher=View(prompt_ids=ids(teacher), **span),
        )

    return [
        example(0, 5, 12, 8, 0, 8),
        example(1, 9, 30, 3, 0, 3),
        example(2, 4, 7, 20, 2, 20),
        example(3, 6, 15, 12, 0, 5),
        example(4, 2, 9, 1, 0, 1),
    ]


def update_once(
    policy: Policy, optimizer: torch.optim.Optimizer, settings: Recipe, console: Console
) -> dict[str, float]:
    training, strategy = settings.training, DataParallel()
    return update(
        DistillationLoss(settings.algorithm),
        policy,
        strategy,
        optimizer,
        StepExamples(examples=examples()),
        local_passes(strategy, examples(), training.micro_batch_size, training.max_tokens_per_micro_batch),
        console,
        loss_agg_mode=settings.algorithm.loss_agg_mode,
        max_grad_norm=settings.optimizer.max_grad_norm,
    )


def step(policy: Policy, settings: Recipe) -> tuple[list[Tensor], dict[str, float]]:
    """What one update with plain gradient descent takes away from the parameters: the gradient. And the metrics."""
    moved = copy.deepcopy(policy)
    optimizer = torch.optim.SGD(moved.trainable(), lr=1.0)
    with Console(1) as console:
        metrics = update_once(moved, optimizer, settings, console)
    taken = [
        before.detach().double() - after.detach().double()
        for before, after in zip(policy.trainable(), moved.trainable(), strict=True)
    ]
    return taken, metrics


def plain(policy: Policy, normalize: str) -> tuple[list[Tensor], float, float]:
    """Gradient, loss and mean KL(teacher‖student) a token, in float64 from all the logits at once."""
    double = copy.deepcopy(policy).double().eval()

    def log_probabilities(view: View) -> Tensor:
        ids = torch.tensor([[*view.prompt_ids, *view.completion_ids]])
        before = len(view.prompt_ids) - 1
        logits = double.model(ids).logits[0, before + view.loss_start : before + view.loss_stop]
        return torch.log_softmax(logits, dim=-1)

    by_example = []
    for example in examples():
        with torch.no_grad(), double.model.disable_adapter():
            teacher = log_probabilities(example.teacher)
        student = log_probabilities(example.student)
        by_example.append((teacher.exp() * (teacher - student)).sum(dim=-1))
    tokens = torch.cat(by_example)
    loss = torch.stack([kl.mean() for kl in by_example]).mean() if normalize == "seq-mean-token-mean" else tokens.mean()
    loss.backward()
    gradients = [parameter.grad for parameter in double.parameters() if parameter.grad is not None]
    return gradients, loss.item(), tokens.mean().item()


@pytest.mark.parametrize("normalize", ["seq-mean-token-mean", "token-mean"])
@pytest.mark.parametrize(
    "micro_batch", ["micro_batch_size=1", "micro_batch_size=2", "micro_batch_size=4", "max_tokens_per_micro_batch=20"]
)
def test_gradient_and_loss_equal_the_plain_computation_for_every_micro_batch(
    normalize: str, micro_batch: str, policy: Policy, make_recipe: MakeRecipe
) -> None:
    settings = make_recipe(f"training.{micro_batch}", f"algorithm.loss_agg_mode={normalize}", UNCLIPPED)
    gradients, loss, kl = plain(policy, normalize)
    taken, metrics = step(policy, settings)
    assert max(gradient.abs().max() for gradient in gradients) > 1e-3
    for mine, wanted in zip(taken, gradients, strict=True):
        torch.testing.assert_close(mine, wanted, rtol=1e-4, atol=1e-6)
    assert metrics["loss"] == pytest.approx(loss, rel=1e-5)
    assert metrics["kl"] == pytest.approx(kl, rel=1e-5)
    norm = torch.cat([gradient.flatten() for gradient in gradients]).norm().item()
    assert metrics["grad_norm"] == pytest.approx(norm, rel=1e-4)
    assert metrics["tokens"] == 35


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated:FutureWarning")
def test_gradient_checkpointing_changes_nothing(policy: Policy, make_recipe: MakeRecipe) -> None:
    wanted, _ = step(policy, make_recipe(UNCLIPPED))
    policy.base.gradient_checkpointing_enable({"use_reentrant": False})
    taken, _ = step(policy, make_recipe(UNCLIPPED))
    for mine, theirs in zip(taken, wanted, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-7)


def test_gradients_are_clipped_to_the_global_norm(policy: Policy, make_recipe: MakeRecipe) -> None:
    gradients, _, _ = plain(policy, "seq-mean-token-mean")
    whole = torch.cat([gradient.flatten() for gradient in gradients])
    taken, metrics = step(policy, make_recipe("optimizer.max_grad_norm=0.01"))
    clipped = torch.cat([gradient.flatten() for gradient in taken])
    assert clipped.norm().item() == pytest.approx(0.01, rel=1e-3)
    assert torch.cosine_similarity(clipped, whole, dim=0) > 0.999
    assert metrics["grad_norm"] == pytest.approx(whole.norm().item(), rel=1e-4), "the norm before clipping"


def test_metrics_of_the_first_token_and_the_seconds(policy: Policy, make_recipe: MakeRecipe) -> None:
    console = Console(1)
    optimizer = adamw(policy, make_recipe().optimizer)
    double = copy.deepcopy(policy).double().eval()
    firsts = []
    for example in examples():
        hidden = [
            (read(torch.tensor([[*view.prompt_ids, *view.completion_ids[: view.loss_start]]])))
            for view, read in (
                (example.teacher, lambda ids: _logits(double, ids, teacher=True)),
                (example.student, lambda ids: _logits(double, ids, teacher=False)),
            )
        ]
        teacher, student = (torch.log_softmax(logits, dim=-1) for logits in hidden)
        firsts.append((teacher.exp() * (teacher - student)).sum())
    metrics = update_once(policy, optimizer, make_recipe(), console)
    assert metrics["first_token_kl"] == pytest.approx(torch.stack(firsts).mean().item(), rel=1e-4)
    assert {"teacher", "student", "optimizer"} <= console.seconds.keys()


@torch.no_grad()
def _logits(policy: Policy, ids: Tensor, *, teacher: bool) -> Tensor:
    if not teacher:
        return policy.model(ids).logits[0, -1]
    with policy.model.disable_adapter():
        return policy.model(ids).logits[0, -1]


@pytest.mark.parametrize("normalize", ["seq-mean-token-mean", "token-mean"])
def test_an_estimated_denominator_is_rescaled(normalize: str, policy: Policy, make_recipe: MakeRecipe) -> None:
    settings = make_recipe(f"algorithm.loss_agg_mode={normalize}", "training.micro_batch_size=1")
    gradients, loss, kl = plain(policy, normalize)
    moved = copy.deepcopy(policy)
    accumulator = GradientAccumulator(
        DistillationLoss(settings.algorithm),
        moved,
        DataParallel(),
        Console(1),
        loss_agg_mode=normalize,
        sequences=9,
        tokens=100,
    )
    for example in examples()[::-1]:
        accumulator.add([example])
    optimizer = torch.optim.SGD(moved.trainable(), lr=0.0)
    norm = torch.cat([gradient.flatten() for gradient in gradients]).norm().item()
    metrics = accumulator.step(optimizer, StepExamples(examples=examples()), 1.0)
    assert metrics["grad_norm"] == pytest.approx(norm, rel=1e-4)
    assert metrics["loss"] == pytest.approx(loss, rel=1e-5)
    assert metrics["kl"] == pytest.approx(kl, rel=1e-5)


def test_the_mismatch_with_the_sampler_is_a_mean_over_loss_tokens(policy: Policy, make_recipe: MakeRecipe) -> None:
    settings, sampled = make_recipe(), {}
    for example in examples():
        view, double = example.student, copy.deepcopy(policy).double().eval()
        ids = torch.tensor([[*view.prompt_ids, *view.completion_ids]])
        with torch.no_grad():
            logits = double.model(ids).logits[0, len(view.prompt_ids) - 1 : -1]
        log_probs = logits.log_softmax(-1).gather(-1, torch.tensor(view.completion_ids)[:, None])[:, 0]
        sampled[example.rollout_id] = log_probs.tolist()
    sampled["rollout 1"] = [value - 0.5 for value in sampled["rollout 1"]]
    del sampled["rollout 4"]
    accumulator = GradientAccumulator(
        DistillationLoss(settings.algorithm),
        policy,
        DataParallel(),
        Console(1),
        loss_agg_mode="token-mean",
        sequences=5,
        tokens=35,
        sampler_logprobs=sampled,
    )
    accumulator.add(examples()[:3])
    accumulator.add(examples()[3:])
    metrics = accumulator.step(adamw(policy, settings.optimizer), StepExamples(examples=examples()), 1.0)
    assert metrics["sampler_mismatch_max"] == pytest.approx(0.5, abs=1e-4)
    assert metrics["sampler_mismatch"] == pytest.approx(0.5 / 4, abs=1e-4)


# ── what is not finite ────────────────────────────────────────────────────────────────────────────────────────


def unchanged(policy: Policy, before: list[Tensor]) -> bool:
    return all(
        torch.equal(now.nan_to_num(), then.nan_to_num()) for now, then in zip(policy.trainable(), before, strict=True)
    )


def test_a_loss_that_is_not_finite_updates_nothing_and_names_the_rollouts(
    policy: Policy, make_recipe: MakeRecipe
) -> None:
    with torch.no_grad():
        policy.trainable()[1][0, 0] = float("nan")
    before = [parameter.detach().clone() for parameter in policy.trainable()]
    optimizer = adamw(policy, make_recipe().optimizer)
    with pytest.raises(StepalignError, match=r"the loss is nan on rollouts rollout 1, rollout 2; nothing was upd"):
        update_once(policy, optimizer, make_recipe(), Console(1))
    assert unchanged(policy, before)
    assert not optimizer.state


def test_a_gradient_that_is_not_finite_updates_nothing(policy: Policy, make_recipe: MakeRecipe) -> None:
    policy.trainable()[0].register_hook(lambda gradient: gradient * float("inf"))
    before = [parameter.detach().clone() for parameter in policy.trainable()]
    optimizer = adamw(policy, make_recipe().optimizer)
    with pytest.raises(StepalignError, match=r"the gradient's norm is (nan|inf); nothing was updated"):
        update_once(policy, optimizer, make_recipe(), Console(1))
    assert unchanged(policy, before)
    assert not optimizer.state


# ── the optimizer ─────────────────────────────────────────────────────────────────────────────────────────────


def test_the_optimizer_is_adamw_over_the_adapter(policy: Policy) -> None:
    settings = OptimizerConfig(lr=3e-4, betas=(0.8, 0.95), eps=1e-6, weight_decay=0.1)
    optimizer = adamw(policy, settings)
    assert isinstance(optimizer, torch.optim.AdamW)
    (group,) = optimizer.param_groups
    assert (group["lr"], group["betas"], group["eps"], group["weight_decay"]) == (3e-4, (0.8, 0.95), 1e-6, 0.1)
    assert [id(parameter) for parameter in group["params"]] == [id(p) for p in policy.trainable()]


def test_the_learning_rate_warms_up_linearly_and_stays() -> None:
    warm = OptimizerConfig(lr=8.0, warmup_steps=4)
    assert [learning_rate(warm, step, 100) for step in (1, 2, 3, 4, 5, 100)] == [2.0, 4.0, 6.0, 8.0, 8.0, 8.0]
    assert [learning_rate(OptimizerConfig(lr=8.0), step, 2) for step in (1, 2)] == [8.0, 8.0]
    share = OptimizerConfig(lr=8.0, warmup_ratio=0.3)
    assert [learning_rate(share, step, 11) for step in (1, 4, 5)] == [2.0, 8.0, 8.0], "3.3 steps are 4"


@pytest.mark.parametrize("kind", ["constant", "constant_with_warmup", "linear", "cosine"])
@pytest.mark.parametrize("warmup", [0, 3, 20])
def test_a_schedule_is_that_of_transformers_from_the_end_of_the_warmup_on(kind: str, warmup: int) -> None:
    """Its warm-up spends the first step at a rate of 0. Ours is one step ahead."""
    if kind == "constant" and warmup:
        with pytest.raises(StepalignError, match=r"warmup_steps = \d+: .* constant_with_warmup"):
            OptimizerConfig(lr_scheduler_type=kind, warmup_steps=warmup)
        return
    settings = OptimizerConfig(lr=2.0, lr_scheduler_type=kind, warmup_steps=warmup)
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=2.0)
    theirs = get_scheduler(kind, optimizer, num_warmup_steps=warmup, num_training_steps=20)
    for step in range(1, 21):
        rate = learning_rate(settings, step, 20)
        assert rate > 0
        if step > warmup:
            assert rate == pytest.approx(theirs.get_last_lr()[0])
        else:
            assert rate == pytest.approx(2.0 * step / warmup)
        optimizer.step()
        theirs.step()


def test_two_lengths_of_the_warmup_exclude_each_other() -> None:
    with pytest.raises(StepalignError, match=r"warmup_steps = 3 and warmup_ratio = 0\.1: set one"):
        OptimizerConfig(warmup_steps=3, warmup_ratio=0.1)
