"""Files of critiques: a critic that reads one, and rollouts whose critiques are written to one.

    stepalign critique quickstart rollouts.jsonl --problems problems.jsonl

A second start asks only for what is missing. `critic.kind = "replay"` reads critiques of an earlier run, of a person or
planted ones, which belong to rollouts by id. Left out: matching by text, because the checks reject a critique of
another text wherever it copies anything.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from stepalign import config
from stepalign.append_log import AppendLog
from stepalign.critics import Critic, ServedCritic
from stepalign.critics.validation import ValidatedCritic
from stepalign.data import prepare
from stepalign.errors import StepalignError
from stepalign.io import read_jsonl, remove_leftovers, write_jsonl
from stepalign.records import CriticResult, Critique, CritiqueFailure, Problem, Rollout
from stepalign.rewards import Grader

UNANSWERED = frozenset({"server", "timeout"})
"""Reasons of failures that are no property of the rollout, so that a second start asks again."""

_ELSEWHERE = "delete the file, or name another with --out"


class ReplayCritic:
    """The results in a file. Each keeps the name of the critic that wrote it."""

    name = "replay"

    def __init__(self, path: Path) -> None:
        self._path = path
        self._results: dict[str, Critique | CritiqueFailure] = {}
        for result in read_jsonl(path, CriticResult):  # type: ignore[var-annotated, arg-type]
            if result.rollout_id in self._results:
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
) -> list[Critique | CritiqueFailure]:
    """Have a critic write the results that a file (JSONL) does not have yet, and return all of them.

    Results are appended as they come. At the end the file is written once more, in the order of the attempts.
    `advance` is called with the number of further results, those of the file first.

    Raises:
        StepalignError: the file is damaged, belongs to other rollouts or another critic, or cannot be written.
    """
    order = [rollout.id for _, rollout in attempts]
    remove_leftovers(path.parent, f".{path.name}.*.tmp")
    log: AppendLog[Critique | CritiqueFailure] = AppendLog(path, CriticResult)  # type: ignore[arg-type]
    results = _read(log, set(order), critic.name)
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
        if not (isinstance(result, CritiqueFailure) and result.reason in UNANSWERED):
            results[result.rollout_id] = result
    log.truncate()
    return results
