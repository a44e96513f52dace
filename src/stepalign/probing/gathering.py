"""Material made ready to be looked at: rollouts drawn where none are given, prompts, grades and critiques added."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from stepalign import config
from stepalign.config import registry
from stepalign.console import Console
from stepalign.critics import Critic
from stepalign.critics.run import critique_all
from stepalign.critics.self_critic import OwnModel
from stepalign.errors import StepalignError
from stepalign.models import context_limit
from stepalign.probing.inputs import Material
from stepalign.records import Problem, Rollout
from stepalign.rollouts.generate import Solver
from stepalign.seeding import derive_seed


def drawn(
    problems: Sequence[Problem], settings: config.Recipe, solver: Solver, console: Console, *, adapter: str | None
) -> Material:
    """One graded rollout of each problem."""
    with console.stage("sample", len(problems)) as advance:
        rollouts = solver.generate_rollouts(
            problems,
            1,
            settings.sampling,
            adapter=adapter,
            policy_step=0,
            seed=derive_seed(settings.seed, "probe"),
            prefix="probe",
            on_rollout=lambda _: advance(1),
        )
    return Material(rollouts=rollouts, problems={problem.id: problem for problem in problems})


def settled(given: Material, settings: config.Recipe, solver: Solver, console: Console, folder: Path) -> Material:
    """The same rollouts with a prompt, a grade and, where the recipe has a critic, its answer.

    What is there already stays as it is. The critic's answers are kept in `folder` as they come.
    """
    rollouts = [_with_prompt(rollout, given, settings, solver) for rollout in given.rollouts]
    if any(rollout.grade is None for rollout in rollouts):
        rollouts = solver.grader.grade(rollouts, given.problems)
    answered = {answer.rollout_id for answer in given.answers}
    waiting = [(given.problems[one.problem_id], one) for one in rollouts if one.id not in answered]
    answers = list(given.answers)
    if settings.critic is not None and waiting:
        own = OwnModel(solver.chat, solver.sampler, context_limit(settings.model))
        critic: Critic = registry.build(settings.critic, grader=solver.grader, folder=folder, own=lambda: own)
        journal = folder / "asked.jsonl"
        with console.stage("critique", len(waiting)) as advance:
            answers += critique_all(critic, waiting, journal, advance)
    return replace(given, rollouts=rollouts, answers=answers)


def _with_prompt(rollout: Rollout, given: Material, settings: config.Recipe, solver: Solver) -> Rollout:
    known = len(solver.chat.tokenizer)
    if strange := [token for token in (*rollout.prompt_ids, *rollout.completion_ids) if token >= known]:
        raise StepalignError(
            f"rollout {rollout.id}: token {strange[0]}, but the model knows {known}: another model's rollouts"
        )
    if rollout.prompt_ids:
        return rollout
    problem = given.problems[rollout.problem_id]
    return replace(rollout, prompt_ids=solver.prompt_ids(problem, thinking=settings.sampling.enable_thinking))
