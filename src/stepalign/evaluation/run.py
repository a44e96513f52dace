"""Evaluation of a policy: n attempts at each problem, graded and scored."""

from collections.abc import Sequence

from stepalign import config
from stepalign.console import Console
from stepalign.evaluation.metrics import Evaluation, score
from stepalign.records import Problem, Rollout
from stepalign.rollouts.generate import Solver
from stepalign.seeding import derive_seed


def evaluate_policy(
    solver: Solver,
    problems: Sequence[Problem],
    evaluation: config.EvaluationConfig,
    console: Console,
    *,
    adapter: str | None,
    seed: int,
    step: int,
) -> tuple[Evaluation, list[Rollout]]:
    """Evaluate with a recipe's evaluation settings.

    The seeds are the same at every step, so that two evaluations differ in the policy alone.

    Args:
        solver: samples and grades.
        problems: at least one.
        evaluation: samples, sampling and bootstrap.
        console: shows progress.
        adapter: the adapter in use; None is the base.
        seed: the run's.
        step: the optimizer step of the adapter.

    Returns:
        The evaluation and its graded rollouts.
    """
    n = evaluation.num_samples
    with console.stage("evaluate", len(problems) * n / solver.world.size) as advance:
        rollouts = solver.generate_rollouts(
            problems,
            n,
            evaluation.sampling,
            adapter=adapter,
            policy_step=step,
            seed=derive_seed(seed, "evaluation"),
            prefix=f"evaluation-{step:06d}",
            on_rollout=lambda _: advance(1),
        )
    return score(rollouts, n=n, resamples=evaluation.num_bootstrap, seed=seed, step=step), rollouts
