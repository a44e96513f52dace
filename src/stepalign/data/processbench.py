"""`Qwen/ProcessBench` (arXiv 2412.06559): solutions of real models, split into steps, with the first wrong step marked.

A row has `id`, `problem`, `steps`, `final_answer_correct` and `label`, the index of the first wrong step from 0, or -1.
The data set has no reference answers. As a source of problems it gives those whose answer is known: the boxed answer of
a solution whose final answer is right.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from stepalign import config
from stepalign.data import files
from stepalign.data.normalize import Candidate, cell, text
from stepalign.errors import StepalignError
from stepalign.io import short
from stepalign.trace import boxed

DATASET = "Qwen/ProcessBench"


@dataclass(frozen=True, kw_only=True)
class LabelledSolution:
    """A solution with the label that people gave it."""

    where: str
    """The row's place, for messages."""
    id: str
    statement: str
    steps: tuple[str, ...]
    correct: bool
    """The final answer is right."""
    first_error: int | None
    """The first wrong step, counted from 1; None where every step is right."""

    @property
    def answer(self) -> str:
        """The last boxed answer; empty without one."""
        return "".join(boxed("\n\n".join(self.steps))[-1:]).strip()


def read(path: Path) -> Iterator[LabelledSolution]:
    """Yield the solutions of a ProcessBench file (JSONL or Parquet).

    Raises:
        StepalignError: naming file, line, column, what was found and what is wanted.
    """
    ids = set()
    for _, where, row in files.rows(path):
        steps = cell(row, "steps", where)
        if (
            not isinstance(steps, list)
            or not steps
            or not all(isinstance(step, str) and step.strip() for step in steps)
        ):
            raise StepalignError(f"{where}: column 'steps': a list of texts is wanted, found {short(steps)}")
        label = cell(row, "label", where)
        if type(label) is not int or not -1 <= label < len(steps):
            wanted = f"the index of one of {len(steps)} steps from 0, or -1,"
            raise StepalignError(f"{where}: column 'label': {wanted} is wanted, found {short(label)}")
        correct = cell(row, "final_answer_correct", where)
        if not isinstance(correct, bool):
            raise StepalignError(
                f"{where}: column 'final_answer_correct': true or false is wanted, found {short(correct)}"
            )
        name = text(row, "id", where)
        if not name or name in ids:
            raise StepalignError(f"{where}: column 'id': {'it is empty' if not name else f'{name!r} is there twice'}")
        ids.add(name)
        yield LabelledSolution(
            where=where,
            id=name,
            statement=text(row, "problem", where),
            steps=tuple(steps),
            correct=correct,
            first_error=None if label == -1 else label + 1,
        )


def candidates(source: config.ProcessBenchConfig) -> Iterator[Candidate]:
    """Yield the problem of each solution whose final answer is right, with that answer."""
    for solution in read(source.path):
        if solution.correct:
            yield Candidate(
                where=solution.where,
                id=solution.id,
                statement=solution.statement,
                answer=solution.answer,
                source=DATASET,
            )
