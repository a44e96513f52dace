"""A reference solution as steps that a critique can go on with.

A solution in the solver's own format has its steps; any other is taken paragraph by paragraph, or line by
line where it is one paragraph. Where that would tear a displayed formula apart, the whole solution is one
step.
"""

import re
from collections.abc import Set
from dataclasses import dataclass
from fractions import Fraction

from stepalign.critics.arithmetic.equations import find, numbers
from stepalign.trace import parse


@dataclass(frozen=True)
class Step:
    """One step of the reference solution."""

    title: str
    body: str
    result: Fraction | None
    """What its last equation computes."""

    def numbered(self, number: int) -> str:
        """The step in the solver's format."""
        return f"{f'### Step {number}: {self.title}'.rstrip()}\n{self.body}"


def steps(solution: str) -> list[Step]:
    """The solution's steps, without the lines that only state the final answer (`#### 72`)."""
    trace = parse(solution)
    if trace.steps:
        found = [(section.title, trace.content(section).partition("\n")[2].strip()) for section in trace.steps]
    else:
        text = _ANSWER_LINE.sub("", solution).strip()
        found = [_titled(piece) for piece in _pieces(text)] if text else []
    return [Step(title, body, result(body)) for title, body in found]


def remaining(solution: str, obtained: Set[Fraction]) -> list[Step]:
    """The steps whose results are not obtained yet, and what stands between them."""
    every = steps(solution)
    first = next((i for i, step in enumerate(every) if step.result is not None and step.result not in obtained), None)
    if first is None:
        return every if not obtained or all(step.result is None for step in every) else []
    begin = first if obtained else 0
    return [step for step in every[begin:] if step.result is None or step.result not in obtained]


def values(solution: str) -> set[Fraction]:
    """Every number of the solution and everything it computes."""
    computed = {chain.result for chain in find(solution)} - {None}
    return {number.value for number in numbers(solution)} | {value for value in computed if value is not None}


def result(text: str) -> Fraction | None:
    """What the last equation in a text computes."""
    return next((chain.result for chain in reversed(find(text)) if chain.result is not None), None)


_ANSWER_LINE = re.compile(r"^[ \t]{0,3}####[^#\n]*$", re.MULTILINE)
_ITEM = re.compile(r"\d{1,3}[.)][ \t]{1,4}([^\n]{1,120}?):?[ \t]{0,4}\n")


def _pieces(text: str) -> list[str]:
    pieces = [piece for piece in re.split(r"\n[ \t]*\n", text) if piece.strip()]
    if len(pieces) == 1:
        pieces = [line for line in text.split("\n") if line.strip()]
    if not all(map(_balanced, pieces)):
        return [text]
    return [piece.strip() for piece in pieces if re.search(r"\d", piece)] or [text]


def _balanced(piece: str) -> bool:
    pairs = (("\\[", "\\]"), ("\\begin{", "\\end{"))
    return piece.count("$$") % 2 == 0 and all(piece.count(left) == piece.count(right) for left, right in pairs)


def _titled(piece: str) -> tuple[str, str]:
    """A numbered item's first line is its title: `1. Initial amounts:`."""
    match = _ITEM.match(piece)
    return (match[1], piece[match.end() :]) if match else ("", piece)
