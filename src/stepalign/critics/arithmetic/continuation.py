"""Continue a solution behind the steps that can stay: with a sum's other terms, or with the reference solution's steps.

Terms of a sum may be added in any order, as long as each number that a step adds is one of the remaining terms or the
result of an earlier step. So a miscopied, repeated or invented term shows in the step that uses it, and a dropped term
remains at the end. A result may also stand for the size of a number still to be taken away.

A reference solution in the solver's format has its steps. Any other is split into paragraphs, or into lines if it is
one paragraph. A solution whose displayed formulas would be torn apart stays one step.
"""

import re
from collections.abc import Callable, Iterable, Sequence, Set
from fractions import Fraction
from typing import NamedTuple

from stepalign.critics.arithmetic.equations import find_equations, find_numbers, last_result
from stepalign.critics.arithmetic.expressions import NUMBER, replace_spans
from stepalign.trace import parse

Terms = tuple[Fraction, ...]
_MAX_EXAMPLES, _MAX_EXAMPLE = 8, 2_000
"""Steps whose words a new step may have, and characters of such a step."""


class Continuation(NamedTuple):
    """Number of the solver's steps to keep, and the steps after them."""

    num_kept: int
    steps: Sequence[str]
    reason: str


def problem_terms(meta: object) -> Terms | None:
    """Return a problem's signed terms; None where its `meta["terms"]` is not a list of integers."""
    terms = meta.get("terms") if isinstance(meta, dict) else None
    if not isinstance(terms, list) or not terms or not all(type(term) is int for term in terms):
        return None
    return tuple(map(Fraction, terms))


def by_terms(terms: Terms, own: Sequence[str], number_after: Callable[[int], int]) -> Continuation:
    """Add the terms that the solver's steps leave. `number_after` numbers the step behind so many."""
    kept = 0
    while kept < len(own) and (after := _terms_after(terms, own[kept])) is not None:
        terms, kept = after, kept + 1
    # The nearest steps before show the solver's style best; a step with a wrong number still shows it.
    steps = _sum_steps(terms, number_after(kept), [*reversed(own[:kept]), *own[kept:]][:_MAX_EXAMPLES])
    return Continuation(kept, steps, "it adds a number that is not there to be added.")


def by_reference(
    solution: str, own: Sequence[str], given: Set[Fraction], number_after: Callable[[int], int]
) -> Continuation:
    """Go on with the reference solution, from the first step whose result it does not have."""
    known = known_values(solution)
    obtained: set[Fraction] = set()
    kept = 0
    for step in own:
        result, numbers = last_result(step), find_numbers(step)
        if result is not None and result not in known:
            break
        if result is None and numbers and numbers[-1].value not in known | given | obtained:
            break  # a step that cannot be computed must at least end in a known number
        obtained |= set() if result is None else {result}
        kept += 1
    texts = remaining_steps(solution, obtained, number_after(kept))
    return Continuation(kept, texts, "it does not lead to the answer.")


def remaining_steps(solution: str, obtained: Set[Fraction], first_number: int) -> list[str]:
    """Write the reference solution's steps under headings, from the first one whose result is not obtained yet."""
    steps = split_steps(solution)
    new = [i for i, step in enumerate(steps) if step.result is not None and step.result not in obtained]
    if obtained and any(step.result is not None for step in steps):
        steps = [step for step in steps[new[0] :] if step.result not in obtained] if new else []
    missing = enumerate(steps, start=first_number)
    return [f"{f'### Step {number}: {step.title}'.rstrip()}\n{step.body}" for number, step in missing]


def known_values(solution: str) -> set[Fraction]:
    """Return the numbers of a solution and the values that it computes."""
    computed = {chain.result for chain in find_equations(solution) if chain.result is not None}
    return {number.value for number in find_numbers(solution)} | computed


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
    parts = [(section.title, trace.content(section).partition("\n")[2].strip()) for section in trace.steps]
    for piece in [] if parts else _pieces(_ANSWER_LINE.sub("", solution).strip()):
        item = _ITEM.match(piece)  # a numbered item (`1. Initial amounts:`); other pieces have no title
        parts.append((item[1], piece[item.end() :]) if item else ("", piece))
    return [Step(title, body, last_result(body)) for title, body in parts]


def _pieces(text: str) -> list[str]:
    pieces = [piece for piece in re.split(r"\n[ \t]*\n", text) if piece.strip()]
    if len(pieces) == 1:
        pieces = [line for line in text.split("\n") if line.strip()]
    if any(p.count("$$") % 2 or any(p.count(left) != p.count(right) for left, right in _PAIRS) for p in pieces):
        return [text]
    return [piece.strip() for piece in pieces if re.search(r"\d", piece)] or [text] * bool(text)


def _terms_after(terms: Terms, step: str) -> Terms | None:
    """Return the terms after a step, its result first. None if it adds another number."""
    previous: list[Fraction] | None = None
    for chain in find_equations(step):
        total: Fraction | None = None
        for part in chain.parts:
            operands = part.sum_terms()
            if not (part.computes and part.is_certain) or operands == previous:
                continue
            value = next(iter(part.values()), None)
            remaining = None if operands is None or value is None else _combine(terms, operands, value)
            if remaining is not None:
                terms, total, previous = remaining, value, operands
            elif value != total:  # otherwise the same sum in other words
                return None
    return terms


def _combine(terms: Terms, operands: Sequence[Fraction], value: Fraction) -> Terms | None:
    """Replace operands by their sum. Their signs may be those of the terms or all reversed."""
    for sign in (1, -1):
        rest = list(terms)
        try:
            for operand in operands:
                rest.remove(sign * operand)
        except ValueError:
            continue
        return (sign * value, *rest)
    return None


def _sum_steps(terms: Terms, number: int, examples: Iterable[str]) -> list[str]:
    """Return steps that add the terms from left to right, in the words of the first example that fits."""
    total, *rest = terms
    steps = []
    for step_number, term in enumerate(rest, start=number):
        large, small = sorted((abs(total), abs(term)), reverse=True)
        if (total < 0) == (term < 0):
            sign, left, right, title = "+", abs(total), abs(term), f"Add {abs(total)} and {abs(term)}"
        else:
            sign, left, right, title = "-", large, small, f"Take {small} from {large}"
        total += term
        title += " (still to be taken away)" if total < 0 else ""
        plain = f"### Step {step_number}: {title}\n{left} {sign} {right} = {abs(total)}"
        imitations = (_imitate(example, sign, (left, right, abs(total)), step_number) for example in examples)
        steps.append(next(filter(None, imitations), plain))
    return steps


_STEP_NUMBER = re.compile(r"(?<=Step )\d{1,9}|(?<=step )\d{1,9}|(?<=STEP )\d{1,9}")


def _imitate(example: str, sign: str, numbers: tuple[Fraction, ...], step_number: int) -> str | None:
    """Write `a + b = c` in another step's words. None if one of its numbers has no counterpart."""
    if len(example) > _MAX_EXAMPLE:
        return None
    equations = set()
    for chain in find_equations(example):
        first = chain.parts[0]
        if len(chain.parts) != 2 or first.code != (NUMBER, NUMBER, sign) or chain.result is None:
            return None
        equations.add((*(literal.value for literal in first.literals), chain.result))
    new = dict(zip(equations.pop(), numbers, strict=True)) if len(equations) == 1 else {}
    written = find_numbers(example)
    if len(new) < 3 or any(number.value not in new for number in written):
        return None
    edits = {number.start: (number.end, str(new[number.value])) for number in written}
    heading, line_break, body = replace_spans(example, edits).partition("\n")
    return _STEP_NUMBER.sub(str(step_number), heading, count=1) + line_break + body
