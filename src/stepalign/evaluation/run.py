"""Evaluation of a policy: sample each evaluation problem n times and score the rollouts."""

from collections.abc import Sequence
from pathlib import Path

from stepalign import config
from stepalign.console import Console
from stepalign.evaluation.metrics import Evaluation, score
from stepalign.io import write_jsonl
from stepalign.records import Problem, Rollout
from stepalign.rollouts.generate import Solver
from stepalign.seeding import derive_seed


def evaluate_policy(
    solver: Solver,
    problems: Sequence[Problem],
    settings: config.EvaluationConfig,
    console: Console,
    *,
    seed: int,
    adapter: str | None,
    step: int,
    out: Path | None = None,
) -> tuple[Evaluation, list[Rollout]]:
    """Evaluate a policy on at least one problem, and return the evaluation with its graded rollouts.

    The rollouts are written to `out` before they are scored. `adapter` None is the base. Seeds are the same at
    every `step`, so that evaluations differ by the policy alone.
    """
    with console.stage("evaluate", len(problems) * settings.num_samples / solver.world.size) as advance:
        rollouts = solver.generate_rollouts(
            problems,
            settings.num_samples,
            settings.sampling,
            adapter=adapter,
            policy_step=step,
            seed=derive_seed(seed, "evaluation"),
            prefix=f"evaluation-{step:06d}",
            on_rollout=lambda _: advance(1),
        )
    if out is not None:
        write_jsonl(out, rollouts)
    return score(rollouts, n=settings.num_samples, resamples=settings.num_bootstrap, seed=seed, step=step), rollouts
