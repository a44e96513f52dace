"""Files of critiques: a critic that reads one, and rollouts whose critiques are written to one.

    stepalign critique quickstart rollouts.jsonl --problems problems.jsonl

A second start asks only for what is missing. `STEM-settings.json` keeps what the results depend on, because rollouts
that are sampled again have the same ids. `critic.kind = "replay"` reads critiques of an earlier run, of a person or
planted ones, which belong to rollouts by id. Left out: matching those by text, because the checks reject a critique of
another text wherever it copies anything.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

from pydantic.dataclasses import dataclass

from stepalign import config
from stepalign.append_log import AppendLog
from stepalign.critics import Critic, ServedCritic
from stepalign.critics.validation import ValidatedCritic
from stepalign.data import prepare
from stepalign.errors import StepalignError
from stepalign.io import differences, flat, read_json, read_jsonl, remove_leftovers, to_json, write_json, write_jsonl
from stepalign.records import CriticResult, Critique, CritiqueFailure, Problem, Rollout
from stepalign.rewards import Grader

_UNANSWERED = frozenset({"server", "timeout"})
"""Faults of a request that are no property of the rollout, so that a second start asks again."""

_ELSEWHERE = "delete the file, or name another with --out"


class ReplayCritic:
    """The results in a file. Each keeps the name of the critic that wrote it."""

    name = "replay"

    def __init__(self, path: Path) -> None:
        self._path = path
        self._results: dict[str, Critique | CritiqueFailure] = {}
        for result in read_jsonl(path, CriticResult):  # type: ignore[var-annotated, arg-type]
            earlier = self._results.get(result.rollout_id)
            if earlier is not None and not is_unanswered(earlier):
                raise StepalignError(f"{path}: rollout {result.rollout_id} is answered twice")
            self._results[result.rollout_id] = result

    @classmethod
    def from_config(cls, settings: config.ReplayCriticConfig, *, grader: Grader, **_: object) -> ValidatedCritic:
        """Build the critic of a recipe, with its validation."""
        return ValidatedCritic(cls(settings.path), settings, grader)

    def critique(self, attempts: Iterable[tuple[Problem, Rollout]]) -> Iterator[Critique | CritiqueFailure]:
        """Yield one result an attempt, in the order of the attempts."""
        for _, rollout in attempts:
            detail = f"{self._path} has no critique of it"
            yield self._results.get(rollout.id) or CritiqueFailure(
                rollout_id=rollout.id, critic=self.name, reason="missing", detail=detail
            )


def read_attempts(
    rollouts: Path | str | Sequence[Rollout], source: Path | str | config.ProblemsConfig, limit: int | None = None
) -> list[tuple[Problem, Rollout]]:
    """Pair graded rollouts, the first `limit`, with their problems from a file or a recipe's training problems."""
    path = rollouts if isinstance(rollouts, Path | str) else "rollouts"
    if isinstance(source, Path | str):
        problems, place = read_jsonl(Path(source), Problem), str(source)
    else:
        problems, place = prepare(source)[0], "the recipe"
    by_id = {problem.id: problem for problem in problems}
    attempts: dict[str, tuple[Problem, Rollout]] = {}
    given = read_jsonl(Path(rollouts), Rollout) if isinstance(rollouts, Path | str) else rollouts
    for rollout in given[:limit]:
        if rollout.problem_id not in by_id:
            raise StepalignError(f"{path}: rollout {rollout.id}: no problem {rollout.problem_id!r} in {place}")
        if rollout.grade is None:
            raise StepalignError(f"{path}: rollout {rollout.id} is not graded")
        if rollout.id in attempts:
            raise StepalignError(f"{path}: rollout {rollout.id} is there twice")
        attempts[rollout.id] = by_id[rollout.problem_id], rollout
    return list(attempts.values())


def critique_all(
    critic: Critic,
    attempts: Sequence[tuple[Problem, Rollout]],
    path: Path,
    advance: Callable[[int], None] = lambda _: None,
    *,
    made_with: Mapping[str, Any] | None = None,
    date: date | None = None,
) -> list[Critique | CritiqueFailure]:
    """Have a critic write the results that a file (JSONL) does not have yet, and return all of them.

    Results are appended as they come. At the end the file is written once more, in the order of the attempts.

    Args:
        critic: the critic.
        attempts: graded rollouts with their problems. A second start may have more.
        path: the file.
        advance: called with the number of further results, those of the file first.
        made_with: the settings that critiques depend on, by key. They and a digest of each attempt are kept in
            `STEM-settings.json` beside the file. None, where the caller holds the folder, keeps and compares nothing.
        date: the date that chat templates show, which is kept beside the settings.

    Raises:
        StepalignError: the file is damaged, belongs to other rollouts or another critic, or cannot be written.
    """
    order = [rollout.id for _, rollout in attempts]
    remove_leftovers(path.parent, f".{path.name}.*.tmp")
    log: AppendLog[Critique | CritiqueFailure] = AppendLog(path, CriticResult)  # type: ignore[arg-type]
    results = _read(log, set(order), critic.name)
    if made_with is not None:
        digests = {one[1].id: _digest(one) for one in attempts}
        _claim(path, Basis(made_with=made_with, attempts=digests, date=str(date) if date else None), results)
    advance(len(results))
    pending = [attempt for attempt in attempts if attempt[1].id not in results]
    if pending and isinstance(critic, ServedCritic):
        critic.check_servers()
    for result in critic.critique(pending):
        log.append(result)
        results[result.rollout_id] = result
        advance(1)
    ordered = [results[rollout_id] for rollout_id in order]
    write_jsonl(path, ordered)
    return ordered


@dataclass(frozen=True, kw_only=True)
class Basis:
    """Inputs of the results in a file."""

    made_with: Mapping[str, Any]
    """Settings by key."""
    attempts: Mapping[str, str]
    """A digest of each attempt, by rollout."""
    date: str | None = None
    """The date that chat templates show."""


def settings_path(critiques: Path) -> Path:
    """Return the path of the file that keeps what a file of critiques depends on."""
    return critiques.with_name(f"{critiques.stem}-settings.json")


def _claim(path: Path, basis: Basis, results: Iterable[str]) -> None:
    """Write what a file's results depend on beside it, or refuse kept results that depend on something else."""
    file = settings_path(path)
    if results := set(results):
        if not file.exists():
            raise StepalignError(
                f"{path}: {file.name}, which says what its results depend on, is missing: {_ELSEWHERE}"
            )
        kept = read_json(file, Basis)
        for name, digest in basis.attempts.items():
            if name in results and kept.attempts.get(name) != digest:
                fault = f"the result of rollout {name} is of another text, grade or problem under the same id"
                raise StepalignError(f"{path}: {fault}: {_ELSEWHERE}")
        different = differences(dict(flat(kept.made_with)), dict(flat(basis.made_with)))
        if lines := [f"{key}: {before!r} → {after!r}" for key, before, after in different]:
            found = "\n  ".join(lines)
            raise StepalignError(
                f"{path}: its results were made by other settings: {_ELSEWHERE}; what differs:\n  {found}"
            )
    write_json(file, vars(basis))


def _digest(attempt: tuple[Problem, Rollout]) -> str:
    return hashlib.blake2b("\n".join(map(to_json, attempt)).encode(), digest_size=8).hexdigest()


def is_unanswered(result: Critique | CritiqueFailure) -> bool:
    """Return whether a second start asks for a result again: a model's, or a locator's or mender's part of it."""
    if isinstance(result, CritiqueFailure) and result.reason.removeprefix("locator: ") in _UNANSWERED:
        return True
    return lacks_reply(result, _UNANSWERED)


def lacks_reply(result: Critique | CritiqueFailure, faults: frozenset[str]) -> bool:
    """Return whether the program had to correct because each request to a mender ended in one of these faults."""
    is_programs = isinstance(result, CritiqueFailure) or result.mender_failed
    return is_programs and bool(result.retried) and faults.issuperset(result.retried)


def _read(
    log: AppendLog[Critique | CritiqueFailure], expected: set[str], critic: str
) -> dict[str, Critique | CritiqueFailure]:
    """Read the results of an earlier start, by rollout."""
    results = {}
    for result in log.read():
        if result.rollout_id not in expected:
            raise StepalignError(f"{log.place}: rollout {result.rollout_id} is not among these rollouts: {_ELSEWHERE}")
        if critic not in (result.critic, ReplayCritic.name):
            raise StepalignError(f"{log.place}: a result of {result.critic}, not of {critic}: {_ELSEWHERE}")
        if not is_unanswered(result):
            results[result.rollout_id] = result
    log.truncate()
    return results
