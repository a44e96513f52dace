"""Inputs of a probe: rollouts with their problems, the critic's results and their first errors.

Rollouts are read from files or sampled. Missing prompts, grades and critiques are then added.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from stepalign import config
from stepalign.config import registry
from stepalign.console import Console
from stepalign.critics import Critic
from stepalign.critics.files import critique_all
from stepalign.critics.self_critic import OwnModel
from stepalign.errors import StepalignError
from stepalign.io import read_jsonl, write_jsonl
from stepalign.models import context_limit
from stepalign.probing.error_spans import mark_from_critique, mark_from_slip
from stepalign.records import CriticResult, Critique, Mark, PlantedSlip, Problem, Rollout
from stepalign.rollouts.generate import Solver
from stepalign.seeding import derive_seed


@dataclass(frozen=True, kw_only=True)
class ProbeInputs:
    """Rollouts with their problems, critiques and marks."""

    rollouts: Sequence[Rollout]
    problems: Mapping[str, Problem]
    """By id; those of the rollouts, or more."""
    critic_results: Sequence[CriticResult] = ()
    known_marks: Sequence[Mark] = ()
    """Errors that were planted, or marked by hand."""

    @cached_property
    def critiques(self) -> dict[str, Critique]:
        """Critiques by rollout id."""
        return {result.rollout_id: result for result in self.critic_results if isinstance(result, Critique)}

    @cached_property
    def marks(self) -> tuple[Mark, ...]:
        """First errors of the rollouts: the known ones, else those of the critiques."""
        known = {mark.rollout_id: mark for mark in self.known_marks}
        marks = (
            known.get(rollout.id)
            or (rollout.id in self.critiques and mark_from_critique(rollout, self.critiques[rollout.id]))
            for rollout in self.rollouts
        )
        return tuple(mark for mark in marks if mark)

    def first(self, count: int | None) -> "ProbeInputs":
        """Keep the first rollouts, and the records that belong to them."""
        rollouts = self.rollouts[:count]
        ids, problem_ids = {rollout.id for rollout in rollouts}, {rollout.problem_id for rollout in rollouts}
        return ProbeInputs(
            rollouts=rollouts,
            problems={name: problem for name, problem in self.problems.items() if name in problem_ids},
            critic_results=[result for result in self.critic_results if result.rollout_id in ids],
            known_marks=[mark for mark in self.known_marks if mark.rollout_id in ids],
        )

    def write(self, folder: Path) -> None:
        """Write `problems.jsonl`, `critiques.jsonl`, `marks.jsonl` and, last, `rollouts.jsonl`."""
        write_jsonl(folder / "problems.jsonl", self.problems.values())
        write_jsonl(folder / "critiques.jsonl", self.critic_results)
        write_jsonl(folder / "marks.jsonl", self.marks)
        write_jsonl(folder / "rollouts.jsonl", self.rollouts)


def read(path: Path, problems: Mapping[str, Problem] | None = None) -> ProbeInputs:
    """Read a file of rollouts, or a folder with `rollouts.jsonl`.

    A folder may also hold `problems.jsonl`, `critiques.jsonl`, `marks.jsonl` and the `slips.jsonl` of
    `stepalign plant`.

    Args:
        path: the file or folder.
        problems: by id, where the folder has none.

    Raises:
        StepalignError: a file is missing or malformed; a rollout occurs twice or has no problem.
    """
    is_folder = path.is_dir()
    rollouts = read_jsonl(path / "rollouts.jsonl" if is_folder else path, Rollout)
    if not rollouts:
        raise StepalignError(f"{path}: no rollouts")

    def optional(name: str, kind: Any) -> list[Any]:
        return read_jsonl(path / name, kind) if is_folder and (path / name).exists() else []

    problems = {problem.id: problem for problem in optional("problems.jsonl", Problem)} or dict(problems or {})
    ids: set[str] = set()
    for rollout in rollouts:
        if rollout.id in ids:
            raise StepalignError(f"{path}: rollout {rollout.id!r} occurs twice")
        if rollout.problem_id not in problems:
            raise StepalignError(f"{path}: rollout {rollout.id}: no problem {rollout.problem_id!r}")
        ids.add(rollout.id)
    planted = [mark_from_slip(slip) for slip in optional("slips.jsonl", PlantedSlip)]
    return ProbeInputs(
        rollouts=rollouts,
        problems=problems,
        critic_results=optional("critiques.jsonl", CriticResult),
        known_marks=[*planted, *optional("marks.jsonl", Mark)],
    ).first(None)


def prepare(
    given: ProbeInputs | Sequence[Problem],
    settings: config.Recipe,
    solver: Solver,
    console: Console,
    folder: Path,
    *,
    adapter: str | None = None,
) -> ProbeInputs:
    """Add missing rollouts, prompts, grades and, where the recipe has a critic, critiques.

    Existing ones stay as they are. Everything is written to `folder`, the critic's results as they come.

    Args:
        given: inputs, or problems of which one rollout each is sampled.
        settings: sampling, critic, model and seed are used.
        solver: samples, grades and encodes prompts.
        console: shows progress.
        folder: of the probe.
        adapter: the sampler's adapter; None samples from the base.
    """
    if not isinstance(given, ProbeInputs):
        with console.stage("sample", len(given)) as advance:
            rollouts = solver.generate_rollouts(
                given,
                1,
                settings.sampling,
                adapter=adapter,
                policy_step=0,
                seed=derive_seed(settings.seed, "probe"),
                prefix="probe",
                on_rollout=lambda _: advance(1),
            )
        given = ProbeInputs(rollouts=rollouts, problems={problem.id: problem for problem in given})
    given.write(folder)
    problems, thinking, log = given.problems, settings.sampling.enable_thinking, folder / "asked.jsonl"
    rollouts = [_with_prompt(rollout, problems, solver, thinking=thinking) for rollout in given.rollouts]
    if any(rollout.grade is None for rollout in rollouts):
        rollouts = solver.grader.grade(rollouts, problems)
    critic_results = list(given.critic_results)
    answered = {result.rollout_id for result in critic_results}
    waiting = [(problems[rollout.problem_id], rollout) for rollout in rollouts if rollout.id not in answered]
    if settings.critic is not None and waiting:
        own = OwnModel(solver.chat, solver.sampler, context_limit(settings.model))
        critic: Critic = registry.build(settings.critic, grader=solver.grader, folder=folder, own=lambda: own)
        with console.stage("critique", len(waiting)) as advance:
            critic_results += critique_all(critic, waiting, log, advance)
    complete = replace(given, rollouts=rollouts, critic_results=critic_results)
    complete.write(folder)
    log.unlink(missing_ok=True)
    return complete


def _with_prompt(rollout: Rollout, problems: Mapping[str, Problem], solver: Solver, *, thinking: bool) -> Rollout:
    size = len(solver.chat.tokenizer)
    largest = max((*rollout.prompt_ids, *rollout.completion_ids), default=0)
    if largest >= size:
        raise StepalignError(
            f"rollout {rollout.id}: token {largest}, but the tokenizer has {size}: these are another model's rollouts"
        )
    if rollout.prompt_ids:
        return rollout
    return replace(rollout, prompt_ids=solver.prompt_ids(problems[rollout.problem_id], thinking=thinking))
