"""The solver's attempts at each problem, in a file that a killed process can go on with.

All attempts at one problem are appended at once, when the last of them is graded. So what a kill can leave
behind is at the end of the file: a half-written line, or fewer attempts at the last problem than there should
be. Both are cut off and done again; nothing else ever is.
"""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from stepalign import trace as traces
from stepalign.errors import StepalignError
from stepalign.records import Rollout, explain, to_json


@dataclass(frozen=True, kw_only=True)
class Tally:
    """How the attempts at one problem went."""

    attempts: int
    correct: int
    formatted: int

    @property
    def accuracy(self) -> float:
        """Avg@n: the share of attempts that are correct."""
        return self.correct / self.attempts

    @property
    def format_accuracy(self) -> float:
        """The share of attempts in the format (`traces.Trace.formatted`)."""
        return self.formatted / self.attempts


class Journal:
    """Graded rollouts as JSON lines, grouped by problem, and the tally of every problem that is finished.

    Args:
        path: the file; it is made with the first problem.
        attempts: how many make a problem finished.

    Raises:
        StepalignError: naming the line, where the file is damaged otherwise than by a kill.
    """

    def __init__(self, path: Path, attempts: int) -> None:
        self.path = path
        self.attempts = attempts
        self.tallies: dict[str, Tally] = {}
        if path.exists():
            self._read()

    def append(self, rollouts: Sequence[Rollout]) -> None:
        """Add all attempts at one problem; they are on the disk when this returns.

        Raises:
            ValueError: where they are not `attempts` graded attempts at one problem.
        """
        problems = {rollout.problem_id for rollout in rollouts}
        if len(rollouts) != self.attempts or len(problems) != 1:
            raise ValueError(f"{self.attempts} attempts at one problem wanted, found {len(rollouts)} at {problems}")
        tally = _tally(rollouts)
        with self.path.open("ab") as file:
            file.write("".join(to_json(rollout) + "\n" for rollout in rollouts).encode())
            file.flush()
            os.fsync(file.fileno())
        self.tallies[rollouts[0].problem_id] = tally

    def _read(self) -> None:
        adapter = TypeAdapter(Rollout)
        begun: list[Rollout] = []
        finished_at = 0
        with self.path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if not line.endswith(b"\n"):
                    break
                where = f"{self.path}, line {number}"
                try:
                    rollout = adapter.validate_json(line)
                except ValidationError as error:
                    raise StepalignError(f"{where}: not a Rollout: {explain(error)}") from None
                if rollout.problem_id in self.tallies or (begun and begun[0].problem_id != rollout.problem_id):
                    raise StepalignError(
                        f"{where}: an attempt at {rollout.problem_id} outside its group of {self.attempts}"
                    )
                begun.append(rollout)
                if len(begun) == self.attempts:
                    self.tallies[rollout.problem_id] = _tally(begun)
                    begun = []
                    finished_at = file.tell()
        os.truncate(self.path, finished_at)


def _tally(rollouts: Iterable[Rollout]) -> Tally:
    attempts = correct = formatted = 0
    for rollout in rollouts:
        if rollout.grade is None:
            raise ValueError(f"rollout {rollout.id} is not graded")
        attempts += 1
        correct += rollout.correct
        formatted += traces.parse(rollout.text).formatted
    return Tally(attempts=attempts, correct=correct, formatted=formatted)
