"""What a probe looks at: rollouts with their problems, the critic's answers, and where they go wrong."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from stepalign.errors import StepalignError
from stepalign.io import read_jsonl, write_jsonl
from stepalign.probing import error_spans as marks
from stepalign.records import CriticResult, Critique, CritiqueFailure, Mark, PlantedSlip, Problem, Rollout


@dataclass(frozen=True, kw_only=True)
class Material:
    """Rollouts and what is known about them."""

    rollouts: Sequence[Rollout]
    problems: Mapping[str, Problem]
    """By id; those of the rollouts, or more."""
    answers: Sequence[Critique | CritiqueFailure] = ()
    known: Sequence[Mark] = ()
    """Errors that were planted, or marked by hand."""

    @cached_property
    def critiques(self) -> dict[str, Critique]:
        """By rollout id."""
        return {answer.rollout_id: answer for answer in self.answers if isinstance(answer, Critique)}

    @cached_property
    def marks(self) -> tuple[Mark, ...]:
        """Where rollouts first go wrong: as known, else as a critique says."""
        found = {mark.rollout_id: mark for mark in self.known}
        for rollout in self.rollouts:
            critique = self.critiques.get(rollout.id)
            if rollout.id not in found and critique is not None:
                mark = marks.of_critique(rollout, critique)
                if mark is not None:
                    found[rollout.id] = mark
        return tuple(found[rollout.id] for rollout in self.rollouts if rollout.id in found)

    def first(self, count: int | None) -> "Material":
        """The first rollouts alone, with what belongs to them."""
        rollouts = self.rollouts[:count]
        ids, of_problem = {rollout.id for rollout in rollouts}, {rollout.problem_id for rollout in rollouts}
        return replace(
            self,
            rollouts=rollouts,
            problems={name: problem for name, problem in self.problems.items() if name in of_problem},
            answers=[answer for answer in self.answers if answer.rollout_id in ids],
            known=[mark for mark in self.known if mark.rollout_id in ids],
        )

    def write(self, folder: Path) -> None:
        """Write `problems.jsonl`, `rollouts.jsonl`, `critiques.jsonl` and `marks.jsonl`."""
        write_jsonl(folder / "problems.jsonl", self.problems.values())
        write_jsonl(folder / "critiques.jsonl", self.answers)
        write_jsonl(folder / "marks.jsonl", self.marks)
        write_jsonl(folder / "rollouts.jsonl", self.rollouts)


def read(path: Path, problems: Mapping[str, Problem] | None = None) -> Material:
    """Read a file of rollouts, or a folder with `rollouts.jsonl` and any of the rest.

    Beside `problems.jsonl`, `critiques.jsonl` and `marks.jsonl`, a folder may hold the `slips.jsonl` that
    `stepalign plant` writes.

    Args:
        path: the file or folder.
        problems: by id, where the folder has none.

    Raises:
        StepalignError: a file is missing or holds something else, a rollout is there twice or without its problem.
    """
    alone = not path.is_dir()
    rollouts = read_jsonl(path if alone else path / "rollouts.jsonl", Rollout)
    if not rollouts:
        raise StepalignError(f"{path}: no rollouts")

    def beside(name: str, kind: Any) -> list[Any]:
        return [] if alone or not (path / name).exists() else read_jsonl(path / name, kind)

    there = {problem.id: problem for problem in beside("problems.jsonl", Problem)} or dict(problems or {})
    seen: set[str] = set()
    for rollout in rollouts:
        if rollout.id in seen:
            raise StepalignError(f"{path}: rollout {rollout.id!r} is there twice")
        if rollout.problem_id not in there:
            raise StepalignError(f"{path}: rollout {rollout.id}: no problem {rollout.problem_id!r}")
        seen.add(rollout.id)
    planted = [marks.of_slip(slip) for slip in beside("slips.jsonl", PlantedSlip)]
    return Material(
        rollouts=rollouts,
        problems=there,
        answers=beside("critiques.jsonl", CriticResult),
        known=[*planted, *beside("marks.jsonl", Mark)],
    ).first(None)
