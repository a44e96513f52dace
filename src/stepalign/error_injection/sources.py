"""Solutions to plant slips into, and natural wrong ones beside them, in the paper's step format.

Model solutions in the layout of OpenAI's grade-school-math examples (a question, the reference, and for each of several
models a solution with `<<48/2=24>>` annotations, `A: 72` at its end and whether it is correct), problems' own reference
solutions (GSM8K's, `gsm_symbolic`'s, any file's), and correct rollouts of one's own. Every line or paragraph of a
written solution becomes a step (`critics.reference`), its title what its result is called; annotations are removed.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stepalign.critics.arithmetic import reference
from stepalign.critics.arithmetic.equations import find_equations as find
from stepalign.data import columns as column
from stepalign.data import files
from stepalign.errors import StepalignError
from stepalign.records import Problem, Rollout


@dataclass(frozen=True, kw_only=True)
class Solution:
    """A solution in steps, correct or not by its final answer."""

    id: str
    problem: Problem
    text: str
    correct: bool
    rollout: Rollout | None = None
    """As it was sampled, where it was."""


def model_solutions(path: Path) -> Iterator[Solution]:
    """Every model's solution to every problem of a file, in its order; of equal ones to one problem the first.

    Raises:
        StepalignError: naming file, line and key, where it is laid out otherwise.
    """
    for number, where, row in files.rows(path):
        solution, answer = _split(column.text(row, "ground_truth", where))
        if answer is None:
            raise StepalignError(f"{where}, ground_truth: its last line must be `A: …` or `#### …`")
        problem = Problem(
            id=f"{path.stem}-{number - 1}",
            statement=column.text(row, "question", where).strip(),
            answer=answer,
            solution=solution,
            source=path.name,
        )
        seen = set()
        for model, attempt in row.items():
            if not isinstance(attempt, dict):
                continue
            place = f"{where}, {model}"
            text = in_steps(*_split(column.text(attempt, "solution", place)))
            if text is not None and text not in seen:
                seen.add(text)
                yield Solution(id=f"{problem.id}/{model}", problem=problem, text=text, correct=_truth(attempt, place))


def derivations(problems: Iterable[Problem]) -> Iterator[Solution]:
    """The problems' own reference solutions, where they have some."""
    for problem in problems:
        text = in_steps(problem.solution, problem.answer)
        if text is not None:
            yield Solution(id=f"{problem.id}/reference", problem=problem, text=text, correct=True)


def rollouts(attempts: Iterable[Rollout], problems: Iterable[Problem]) -> Iterator[Solution]:
    """Graded rollouts as they are.

    Raises:
        StepalignError: naming the rollout that has no grade, or no problem.
    """
    by_id = {problem.id: problem for problem in problems}
    for rollout in attempts:
        if rollout.problem_id not in by_id:
            raise StepalignError(f"rollout {rollout.id}: there is no problem {rollout.problem_id!r}")
        if rollout.grade is None:
            raise StepalignError(f"rollout {rollout.id} is not graded")
        yield Solution(
            id=rollout.id,
            problem=by_id[rollout.problem_id],
            text=rollout.text,
            correct=rollout.correct,
            rollout=rollout,
        )


def in_steps(solution: str, answer: str | None) -> str | None:
    """A written solution in the paper's format, without its end where there is no answer; None for no steps."""
    steps = reference.split_steps(_ANNOTATION.sub("", solution))
    if not steps:
        return None
    pieces = [
        f"### Step {k}: {step.title or _title(step.body)}".rstrip(": ") + f"\n{step.body.strip()}"
        for k, step in enumerate(steps, start=1)
    ]
    end = [] if answer is None else [f"### Final Answer:\n\\boxed{{{answer}}}"]
    return "\n\n".join([*pieces, *end])


_ANNOTATION = re.compile(r"<<[^<>]*>>")
_NAME = re.compile(r"[^\W\d_][^\W\d_'’-]*(?: [^\W\d_][^\W\d_'’-]*){0,5}")
_JOINS = {"so", "and", "because", "since", "then", "which", "but", "or", "if", "in", "for", "of", "to", "with", "at"}


def _title(body: str) -> str:
    """What the last result is called (`= 7 duck eggs are used`), or else how the line begins; no number, ever."""
    chains = find(body)
    named = _NAME.match(body[chains[-1].end :].lstrip()) if chains else None
    words = (named or _NAME.search(body) or [""])[0].split()
    while words and words[-1].lower() in _JOINS:
        words.pop()
    title = " ".join(words)
    return title[:1].upper() + title[1:]


def _split(text: str) -> tuple[str, str | None]:
    """A written solution and the answer that its last line gives (`A: 72`, `#### 72`); None where it gives none."""
    body, _, last = text.rstrip().rpartition("\n")
    answer = re.fullmatch(r"(?:A:|####)(.*)", last.strip())
    return (body, answer[1].strip().replace(",", "")) if answer else (text, None)


def _truth(attempt: dict[str, Any], where: str) -> bool:
    value = attempt.get("is_correct")
    if not isinstance(value, bool):
        raise StepalignError(f"{where}, is_correct: true or false is wanted, found {value!r}")
    return value
