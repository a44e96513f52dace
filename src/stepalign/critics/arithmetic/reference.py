"""Split a reference solution into steps that can continue a solver's own.

A solution in the solver's format has its steps. Any other is split into paragraphs, or into lines if it is one
paragraph. A solution whose displayed formulas would be torn apart stays one step.
"""

import re
from collections.abc import Set
from fractions import Fraction
from typing import NamedTuple

from stepalign.critics.arithmetic.equations import find_equations, find_numbers, last_result
from stepalign.trace import parse

_ANSWER_LINE = re.compile(r"^[ \t]{0,3}####[^#\n]*$", re.MULTILINE)
_ITEM = re.compile(r"\d{1,3}[.)][ \t]{1,4}([^\n]{1,120}?):?[ \t]{0,4}\n")
_PAIRS = (("\\[", "\\]"), ("\\begin{", "\\end{"))


class Step(NamedTuple):
    """Step of a reference solution. `result` is the value of its last equation."""

    title: str
    body: str
    result: Fraction | None


def split_steps(solution: str) -> list[Step]:
    """Return a solution's steps, without lines that only state the final answer (`#### 72`)."""
    trace = parse(solution)
    if trace.steps:
        parts = [(section.title, trace.content(section).partition("\n")[2].strip()) for section in trace.steps]
    else:
        parts = [_split_title(piece) for piece in _pieces(_ANSWER_LINE.sub("", solution).strip())]
    return [Step(title, body, last_result(body)) for title, body in parts]


def remaining_steps(solution: str, obtained: Set[Fraction]) -> list[Step]:
    """Return the steps without an obtained result, from the first that computes a new one."""
    steps = split_steps(solution)
    missing = [i for i, step in enumerate(steps) if step.result is not None and step.result not in obtained]
    if not obtained or all(step.result is None for step in steps):
        return steps
    return [step for step in steps[missing[0] :] if step.result not in obtained] if missing else []


def known_values(solution: str) -> set[Fraction]:
    """Return the numbers of a solution and the values that it computes."""
    computed = {chain.result for chain in find_equations(solution) if chain.result is not None}
    return {number.value for number in find_numbers(solution)} | computed


def _pieces(text: str) -> list[str]:
    pieces = [piece for piece in re.split(r"\n[ \t]*\n", text) if piece.strip()]
    if len(pieces) == 1:
        pieces = [line for line in text.split("\n") if line.strip()]
    if any(p.count("$$") % 2 or any(p.count(left) != p.count(right) for left, right in _PAIRS) for p in pieces):
        return [text]
    return [piece.strip() for piece in pieces if re.search(r"\d", piece)] or [text] * bool(text)


def _split_title(piece: str) -> tuple[str, str]:
    """Return the title and body of a numbered item (`1. Initial amounts:`); other pieces have no title."""
    match = _ITEM.match(piece)
    return (match[1], piece[match.end() :]) if match else ("", piece)
