"""Read solutions for error injection, right and wrong ones, in the paper's step format.

Sources: model solutions in the layout of OpenAI's grade-school-math examples, problems' own reference solutions
(GSM8K's, `gsm_symbolic`'s, any file's), and graded rollouts. Each line or paragraph of a written solution becomes a
step (`critics.arithmetic.continuation`); its title is the name of its result. `<<48/2=24>>` annotations are removed.
"""

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from stepalign import config, data
from stepalign.critics.arithmetic.continuation import split_steps
from stepalign.critics.arithmetic.equations import find_equations
from stepalign.critics.arithmetic.expressions import ANNOTATION
from stepalign.critics.files import read_attempts
from stepalign.data import files, normalize
from stepalign.errors import StepalignError
from stepalign.records import Problem, Rollout

SYMBOLIC = "gsm_symbolic"

_NAME = re.compile(r"[^\W\d_][^\W\d_'’-]*(?: [^\W\d_][^\W\d_'’-]*){0,5}")
_JOINS = {"so", "and", "because", "since", "then", "which", "but", "or", "if", "in", "for", "of", "to", "with", "at"}


@dataclass(frozen=True, kw_only=True)
class Solution:
    """Solution in steps. `correct` is its grade, `rollout` the sampled record if there is one."""

    id: str
    problem: Problem
    text: str
    correct: bool
    rollout: Rollout | None = None


def read_solutions(source: str, problems_file: Path | None, limit: int | None) -> Iterable[Solution]:
    """Read the solutions of a source, a JSONL file or `gsm_symbolic`, by its columns."""
    if source == SYMBOLIC:
        # About one derivation in seven has an equation that does not hold, or no place for a slip.
        generated = config.GsmSymbolicConfig(count=2 * limit if limit else 200)
        return reference_solutions(data.load(generated).problems)
    path = Path(source)
    try:
        with path.open(encoding="utf-8") as file:
            names = set(json.loads(file.readline()))
    except (OSError, ValueError, TypeError) as error:
        raise StepalignError(f"{source}: neither a JSONL file nor {SYMBOLIC!r}: {error}") from None
    if "ground_truth" in names:
        return model_solutions(path)
    if "completion_ids" in names:
        if problems_file is None:
            raise StepalignError(f"{source}: rollouts need the file of their problems: --problems FILE")
        return rollout_solutions(path, problems_file)
    written = config.Gsm8kConfig(path=path) if "question" in names else config.FileConfig(path=path)
    return reference_solutions(data.load(written).problems)


def model_solutions(path: Path) -> Iterator[Solution]:
    """Yield every model's solution to every problem of a file, without duplicates.

    Each row has `question`, `ground_truth` (its last line `A: 72`), and a table per model (`solution`, `is_correct`).
    """
    for number, where, row in files.rows(path):
        solution, answer = _split_answer(normalize.text(row, "ground_truth", where))
        if answer is None:
            raise StepalignError(f"{where}, ground_truth: its last line must be `A: …` or `#### …`")
        statement = normalize.text(row, "question", where).strip()
        name = f"{path.stem}-{number - 1}"
        problem = Problem(id=name, statement=statement, answer=answer, solution=solution, source=path.name)
        texts = set()
        for model, attempt in row.items():
            if not isinstance(attempt, dict):
                continue
            place, correct = f"{where}, {model}", attempt.get("is_correct")
            if not isinstance(correct, bool):
                raise StepalignError(f"{place}, is_correct: true or false is wanted, found {correct!r}")
            text = in_steps(*_split_answer(normalize.text(attempt, "solution", place)))
            if text is not None and text not in texts:
                texts.add(text)
                yield Solution(id=f"{name}/{model}", problem=problem, text=text, correct=correct)


def reference_solutions(problems: Iterable[Problem]) -> Iterator[Solution]:
    """Yield the reference solutions of the problems that have one."""
    for problem in problems:
        text = in_steps(problem.solution, problem.answer)
        if text is not None:
            yield Solution(id=f"{problem.id}/reference", problem=problem, text=text, correct=True)


def rollout_solutions(path: Path, problems_file: Path) -> Iterator[Solution]:
    """Yield graded rollouts unchanged."""
    for problem, rollout in read_attempts(path, problems_file):
        yield Solution(id=rollout.id, problem=problem, text=rollout.text, correct=rollout.correct, rollout=rollout)


def in_steps(solution: str, answer: str | None) -> str | None:
    """Write a solution in the paper's format; None without steps. No answer gives no final section."""
    steps = split_steps(ANNOTATION.sub("", solution))
    pieces = [
        f"### Step {k}: {step.title or _title(step.body)}".rstrip(": ") + f"\n{step.body.strip()}"
        for k, step in enumerate(steps, start=1)
    ]
    end = [] if answer is None else [f"### Final Answer:\n\\boxed{{{answer}}}"]
    return "\n\n".join([*pieces, *end]) if pieces else None


def _title(body: str) -> str:
    """Name the last result (`= 7 duck eggs are used`), or take the first words."""
    chains = find_equations(body)
    name = _NAME.match(body[chains[-1].parts[-1].end :].lstrip()) if chains else None
    words = (name or _NAME.search(body) or [""])[0].split()
    while words and words[-1].lower() in _JOINS:
        words.pop()
    title = " ".join(words)
    return title[:1].upper() + title[1:]


def _split_answer(text: str) -> tuple[str, str | None]:
    """Split a written solution from the answer in its last line (`A: 72`, `#### 72`), if it has one."""
    body, _, last = text.rstrip().rpartition("\n")
    answer = re.fullmatch(r"(?:A:|####)(.*)", last.strip())
    return (body, answer[1].strip().replace(",", "")) if answer else (text, None)
