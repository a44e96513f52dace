"""The recipe's first optimizer step, tried and taken back: how it changes the accuracy of other attempts.

An update on half of the problems' attempts changes the log-probability of the other half's attempts. To first order the
accuracy of a problem then changes by the covariance of grade and that change over the problem's attempts. Unlike a
measure of the teacher, this one knows the loss: direction, clip, span, weights. Both halves take their turn. Left out:
warm-up, and what later steps do to each other.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from stepalign import config
from stepalign.algorithms.base import Algorithm
from stepalign.console import Console
from stepalign.distributed.strategy import DataParallel
from stepalign.evaluation.stats import Interval, interval, resample
from stepalign.gates.attempts import RESAMPLES
from stepalign.policy import Policy
from stepalign.records import CriticResult, Problem, Rollout
from stepalign.scoring import score_views
from stepalign.seeding import derive_seed
from stepalign.trainer.accumulation import adamw, local_passes, update
from stepalign.views import View


class FirstStep(NamedTuple):
    """Effect of a recipe's first optimizer step."""

    gain: Interval
    """The first-order change of the accuracy, over problems."""
    first_token_kl: float | None
    seconds_per_rollout: float


def try_first_step(
    settings: config.Recipe,
    algorithm: Algorithm[Any],
    policy: Policy,
    problems: Sequence[Problem],
    attempts: Mapping[str, Sequence[Rollout]],
    graded: Mapping[str, Sequence[Rollout]],
    critiques: Mapping[str, CriticResult],
    console: Console,
    device: torch.device,
) -> FirstStep | None:
    """Try the first step on each half of the problems, and measure it on the other half's attempts.

    Args:
        settings: optimizer, micro-batches and seed are used.
        algorithm: the recipe's.
        policy: as a run begins with; it is left as it was.
        problems: in their order.
        attempts: those to train on, by problem.
        graded: those to measure on, by problem.
        critiques: of `attempts`, by rollout id.
        console: shows progress, and keeps the seconds.
        device: of the policy.

    Returns:
        None where no attempt carries a gradient.
    """
    strategy = DataParallel(device=device)
    before = {name: value.detach().clone() for name, value in policy.named_parameters() if value.requires_grad}
    by_id, limit = {problem.id: problem for problem in problems}, settings.training.rollouts_per_step
    scores = _scores(policy, graded, by_id)
    covariances: dict[str, float] = {}
    first_tokens, trained, start = [], 0, sum(console.seconds[name] for name in ("teacher", "base", "student"))
    for half in range(2):
        mine = [rollout for problem in problems[half::2] for rollout in attempts[problem.id]][:limit]
        policy.train()
        torch.manual_seed(derive_seed(settings.seed, "dropout", 1))
        step = algorithm.build_examples(mine, by_id, critiques)
        optimizer = strategy.prepare(policy, adamw(policy, settings.optimizer))
        training = settings.training
        limits = training.micro_batch_size, training.max_tokens_per_micro_batch, policy.shares_prefixes
        metrics = update(
            algorithm,
            policy,
            strategy,
            optimizer,
            step,
            local_passes(strategy, step.examples, *limits),
            console,
            loss_agg_mode=settings.algorithm.loss_agg_mode,
            max_grad_norm=settings.optimizer.max_grad_norm,
        )
        policy.eval()
        if step.examples:
            trained += len(step.examples)
            first_tokens += [metrics["first_token_kl"]] if "first_token_kl" in metrics else []
            others = [problem.id for problem in problems[1 - half :: 2]]
            after = _scores(policy, graded, others)
            for name in others:
                right = np.array([float(rollout.correct) for rollout in graded[name]])
                change = np.array(after[name]) - np.array(scores[name])
                covariances[name] = float(np.cov(right, change)[0, 1])
        with torch.no_grad():
            for name, value in policy.named_parameters():
                if name in before:
                    value.copy_(before[name])
    if not covariances:
        return None
    values = np.array(list(covariances.values()))
    counts = resample(len(values), resamples=RESAMPLES, seed=derive_seed(settings.seed, "preflight", "first step"))
    seconds = sum(console.seconds[name] for name in ("teacher", "base", "student")) - start
    return FirstStep(
        interval(values.mean(), counts @ values / len(values), n=len(values)),
        float(np.mean(first_tokens)) if first_tokens else None,
        seconds / max(trained, 1),
    )


def _scores(policy: Policy, graded: Mapping[str, Sequence[Rollout]], names: Any) -> dict[str, list[float]]:
    """Return the log-probability of each attempt, by problem."""
    rollouts = [rollout for name in names for rollout in graded[name]]
    views = [View.whole(rollout.prompt_ids, rollout.completion_ids) for rollout in rollouts]
    scored = iter(score_views(policy, views))
    return {name: [sum(next(scored).log_probs) for _ in graded[name]] for name in names}
