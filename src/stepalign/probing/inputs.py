"""Inputs of a probe: rollouts with their problems, the critic's results and their first errors.

Rollouts are read from files or sampled. Missing prompts, grades and critiques are then added.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from stepalign import config
from stepalign.append_log import AppendLog
from stepalign.config import registry
from stepalign.console import Console
from stepalign.contexts import Context
from stepalign.critics import Critic
from stepalign.critics.error_spans import rollout_error_span
from stepalign.critics.files import critique_all, is_unanswered
from stepalign.critics.first_error import ErrorSpan
from stepalign.critics.own_model import OwnModel
from stepalign.errors import StepalignError
from stepalign.io import read_jsonl
from stepalign.probing.folder import Probe, write_inputs
from stepalign.records import CriticResult, Critique, CritiqueFailure, Mark, PlantedSlip, Problem, Rollout
from stepalign.rollouts.generate import Solver
from stepalign.seeding import derive_seed
from stepalign.trace import parse_rollout, step_spans

_ASKED = "asked.jsonl"
"""The critic's results until all are there."""


def mark_from_slip(slip: PlantedSlip) -> Mark:
    """Mark a planted slip, whose place is known exactly."""
    return _mark(slip.rollout_id, slip, "planted")


def mark_from_critique(rollout: Rollout, critique: Critique) -> Mark | None:
    """Mark the first error that a critique reports. None where something is only missing (case C)."""
    error = None if critique.case == "C" else rollout_error_span(rollout, critique)
    return _mark(rollout.id, error, "critique") if error and parse_rollout(rollout).steps else None


def _mark(rollout_id: str, error: ErrorSpan | PlantedSlip, source: Literal["planted", "critique"]) -> Mark:
    return Mark(
        rollout_id=rollout_id,
        step=error.step,
        start=error.start,
        end=error.end,
        departure=error.departure,
        source=source,
    )


def rollouts_file(path: Path) -> Path:
    """Return the file of rollouts that `read` reads."""
    return path / "rollouts.jsonl" if path.is_dir() else path


def read(path: Path, problems: Callable[[], Sequence[Problem]] = tuple, *, limit: int | None = None) -> Probe:
    """Read a file of rollouts, or a folder with `rollouts.jsonl`.

    A folder may also hold `problems.jsonl`, `critiques.jsonl`, `marks.jsonl` and the `slips.jsonl` of
    `stepalign plant`. Records of other rollouts are left out.

    Args:
        path: the file or folder.
        problems: returns the problems where the folder has none.
        limit: the number of rollouts, from the first.

    Raises:
        StepalignError: a file is missing or malformed; a rollout occurs twice or has no problem.
    """

    def optional(name: str, kind: Any) -> list[Any]:
        return read_jsonl(path / name, kind) if path.is_dir() and (path / name).exists() else []

    file = rollouts_file(path)
    rollouts = read_jsonl(file, Rollout)
    if not rollouts:
        raise StepalignError(f"{file}: no rollouts")
    by_id = {problem.id: problem for problem in optional("problems.jsonl", Problem) or problems()}
    for rollout_id, count in Counter(rollout.id for rollout in rollouts).items():
        if count > 1:
            raise StepalignError(f"{file}: rollout {rollout_id!r} occurs twice")
    for rollout in rollouts:
        if rollout.problem_id not in by_id:
            raise StepalignError(f"{file}: rollout {rollout.id}: no problem {rollout.problem_id!r}")
        if rollout.trace_format != (wanted := by_id[rollout.problem_id].trace_format):
            fault = f"trace_format is {rollout.trace_format!r}, its problem's is {wanted!r}"
            raise StepalignError(f"{file}: rollout {rollout.id}: {fault}")
    rollouts = rollouts[:limit]
    ids, problem_ids = {rollout.id for rollout in rollouts}, {rollout.problem_id for rollout in rollouts}
    slips = [mark_from_slip(slip) for slip in optional("slips.jsonl", PlantedSlip)]
    marks = optional("marks.jsonl", Mark)
    _check_marks(path / "slips.jsonl", slips, rollouts)
    _check_marks(path / "marks.jsonl", marks, rollouts)
    return _with_marks(
        Probe(
            problems=tuple(problem for problem in by_id.values() if problem.id in problem_ids),
            rollouts=tuple(rollouts),
            critic_results=tuple(one for one in optional("critiques.jsonl", CriticResult) if one.rollout_id in ids),
            marks=(*slips, *marks),
        )
    )


def _check_marks(path: Path, marks: Iterable[Mark], rollouts: Iterable[Rollout]) -> None:
    """Raise a StepalignError for a mark outside its rollout's steps or text."""
    by_id = {rollout.id: rollout for rollout in rollouts}
    for mark in marks:
        if (rollout := by_id.get(mark.rollout_id)) is None:
            continue
        steps, length = len(step_spans(rollout, parse_rollout(rollout))), len(rollout.text)
        if mark.step > steps:
            raise StepalignError(f"{path}: rollout {rollout.id}: an error in step {mark.step} of {steps}")
        if mark.end > length:
            span = f"the characters [{mark.start}, {mark.end})"
            raise StepalignError(f"{path}: rollout {rollout.id}: an error in {span} of a text with {length}")


def _with_marks(given: Probe) -> Probe:
    """Mark each rollout's first error: the known one, else that of its critique."""
    known = {mark.rollout_id: mark for mark in given.marks}
    critiques = given.critiques
    marks = (
        known.get(rollout.id) or (rollout.id in critiques and mark_from_critique(rollout, critiques[rollout.id]))
        for rollout in given.rollouts
    )
    return replace(given, marks=tuple(mark for mark in marks if mark))


def group_size(templates: Iterable[Context], settings: config.Recipe, *, contrast: bool = False) -> int:
    """Return the rollouts to sample of each problem: one, or a whole group where a context shows siblings.

    A wrong context shows a failed sibling, unless the context shows a critique.

    Raises:
        StepalignError: the recipe's groups have one rollout.
    """
    showing = [one.name for one in templates if one.needs_siblings or (contrast and not one.needs_critique)]
    if showing and settings.training.num_generations == 1:
        raise StepalignError(
            f"context {showing[0]!r} shows another rollout of the problem, but training.num_generations = 1: set 2 or "
            "more, or give rollouts"
        )
    return settings.training.num_generations if showing else 1


def prepare(
    given: Probe,
    settings: config.Recipe,
    solver: Solver,
    console: Console,
    folder: Path,
    *,
    adapter: str | None = None,
    num_samples: int = 1,
) -> Probe:
    """Add missing rollouts, prompts, grades and, where the recipe has a critic, critiques.

    Existing ones stay as they are, but a critic is asked again where its server gave no answer. Everything is written
    to `folder`, the critic's results as they come.

    Args:
        given: without rollouts, `num_samples` of each problem are sampled.
        settings: sampling, critic, model and seed are used.
        solver: samples, grades and encodes prompts.
        console: shows progress.
        folder: of the probe.
        adapter: the sampler's; None samples from the base.
        num_samples: rollouts of each problem, where they are sampled (`group_size`).
    """
    problems, log = {problem.id: problem for problem in given.problems}, folder / _ASKED
    if not given.rollouts:
        with console.stage("sample", len(problems) * num_samples) as advance:
            sampled = solver.generate_rollouts(
                given.problems,
                num_samples,
                settings.sampling,
                adapter=adapter,
                policy_step=0,
                seed=derive_seed(settings.seed, "probe"),
                prefix="probe",
                on_rollout=lambda _: advance(1),
            )
        given = replace(given, rollouts=tuple(sampled))
    write_inputs(given, folder)
    size, rollouts = len(solver.chat.tokenizer), []
    for rollout in given.rollouts:
        if (largest := max((*rollout.prompt_ids, *rollout.completion_ids), default=0)) >= size:
            fault = f"token {largest}, but the tokenizer has {size}: these are another model's rollouts"
            raise StepalignError(f"rollout {rollout.id}: {fault}")
        problem, thinking = problems[rollout.problem_id], settings.sampling.enable_thinking
        ids = rollout.prompt_ids or solver.prompt_ids(problem, thinking=thinking)
        rollouts.append(replace(rollout, prompt_ids=ids))
    if ungraded := [rollout for rollout in rollouts if rollout.grade is None]:
        graded = {rollout.id: rollout for rollout in solver.grader.grade(ungraded, problems)}
        rollouts = [graded.get(rollout.id, rollout) for rollout in rollouts]
    critic_results = [one for one in given.critic_results if settings.critic is None or not is_unanswered(one)]
    known = {result.rollout_id for result in critic_results}
    waiting = [(problems[rollout.problem_id], rollout) for rollout in rollouts if rollout.id not in known]
    if settings.critic is not None and waiting:
        own = OwnModel.of(solver, settings)
        critic: Critic = registry.build(
            settings.critic, grader=solver.grader, folder=folder, own=lambda: own, before=solver.prompt.before
        )
        with console.stage("critique", len(waiting)) as advance:
            critic_results += critique_all(critic, waiting, log, advance)
    complete = _with_marks(replace(given, rollouts=tuple(rollouts), critic_results=tuple(critic_results)))
    write_inputs(complete, folder)
    log.unlink(missing_ok=True)
    return complete


def answered(given: Probe, folder: Path) -> set[str]:
    """Return the rollouts that a critic has answered, in `given` or in what a stopped start kept in a folder."""
    log: AppendLog[Critique | CritiqueFailure] = AppendLog(folder / _ASKED, CriticResult)  # type: ignore[arg-type]
    return {one.rollout_id for one in (*given.critic_results, *log.read()) if not is_unanswered(one)}
