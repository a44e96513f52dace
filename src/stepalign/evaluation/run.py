"""Judging a policy: it attempts each evaluation problem n times, and the attempts are scored."""

from collections.abc import Sequence

from stepalign import config
from stepalign.console import Console
from stepalign.evaluation.metrics import Evaluation, score
from stepalign.records import Problem, Rollout
from stepalign.rollouts.generate import Solver
from stepalign.seeding import derive_seed


def judge(
    solver: Solver,
    problems: Sequence[Problem],
    settings: config.Recipe,
    console: Console,
    *,
    adapter: str | None,
    step: int,
) -> tuple[Evaluation, list[Rollout]]:
    """Evaluate with a recipe's evaluation settings.

    The seeds are the same at every step, so that what differs between two evaluations is the policy.

    Args:
        solver: attempts and grades.
        problems: at least one.
        settings: `evaluation` and `seed` are used.
        console: shows progress.
        adapter: the adapter in use; None is the base.
        step: the optimizer step the adapter is at.

    Returns:
        The evaluation, and the graded rollouts behind it.
    """
    chosen = settings.evaluation
    with console.stage("evaluate", len(problems) * chosen.num_samples / solver.world.size) as advance:
        rollouts = solver.attempt(
            problems,
            chosen.num_samples,
            chosen.sampling,
            adapter=adapter,
            policy_step=step,
            seed=derive_seed(settings.seed, "evaluation"),
            prefix=f"evaluation-{step:06d}",
            done=lambda _: advance(1),
        )
    scored = score(rollouts, n=chosen.num_samples, resamples=chosen.num_bootstrap, seed=settings.seed, step=step)
    return scored, rollouts
