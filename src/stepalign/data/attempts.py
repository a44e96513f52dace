"""The solver's attempts at each problem, in a file with which a killed process can go on.

All attempts at one problem are appended at once, when the last of them is graded. A kill leaves at most a
half-written line, or too few attempts at the last problem, at the end of the file. Both are cut off and done again.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from stepalign import trace as traces
from stepalign.errors import StepalignError
from stepalign.io import AppendLog
from stepalign.records import Rollout


@dataclass(frozen=True, kw_only=True)
class AttemptStats:
    """Counts of the attempts at one problem."""

    attempts: int
    correct: int
    formatted: int

    @property
    def accuracy(self) -> float:
        """Avg@n: the share of attempts that are correct."""
        return self.correct / self.attempts

    @property
    def format_accuracy(self) -> float:
        """The share of attempts in the format (`trace.Trace.formatted`)."""
        return self.formatted / self.attempts


class AttemptLog:
    """Graded rollouts as JSON lines, grouped by problem, with the counts of every finished problem.

    Args:
        path: the file; it is created with the first problem.
        attempts: the number of attempts after which a problem is finished.

    Raises:
        StepalignError: naming the line, if the file is damaged in another way than by a kill.
    """

    def __init__(self, path: Path, attempts: int) -> None:
        self.attempts = attempts
        self.stats: dict[str, AttemptStats] = {}
        self._log = AppendLog(path, Rollout)
        self._read()

    def append(self, rollouts: Sequence[Rollout]) -> None:
        """Add all attempts at one problem; they are on the disk when this returns.

        Raises:
            ValueError: they are not `attempts` graded attempts at one problem.
        """
        problems = {rollout.problem_id for rollout in rollouts}
        if len(rollouts) != self.attempts or len(problems) != 1:
            raise ValueError(f"{self.attempts} attempts at one problem wanted, found {len(rollouts)} at {problems}")
        stats = _count(rollouts)
        self._log.append(*rollouts, durable=True)
        self.stats[rollouts[0].problem_id] = stats

    def _read(self) -> None:
        group: list[Rollout] = []
        end = 0
        for rollout in self._log.read():
            if rollout.problem_id in self.stats or (group and group[0].problem_id != rollout.problem_id):
                raise StepalignError(
                    f"{self._log.place}: an attempt at {rollout.problem_id} outside its group of {self.attempts}"
                )
            group.append(rollout)
            if len(group) == self.attempts:
                self.stats[rollout.problem_id] = _count(group)
                group, end = [], self._log.offset
        self._log.truncate(end)


def _count(rollouts: Iterable[Rollout]) -> AttemptStats:
    attempts = correct = formatted = 0
    for rollout in rollouts:
        if rollout.grade is None:
            raise ValueError(f"rollout {rollout.id} is not graded")
        attempts += 1
        correct += rollout.correct
        formatted += traces.parse(rollout.text).formatted
    return AttemptStats(attempts=attempts, correct=correct, formatted=formatted)
