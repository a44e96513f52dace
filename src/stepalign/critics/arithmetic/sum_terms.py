"""Track the terms of a sum that a solver has still to add.

Any order is right as long as each number that a step adds is one of the remaining terms or the result of an earlier
step. So a miscopied, repeated or invented term shows in the step that uses it, and a dropped term remains at the end. A
result may also stand for the size of a number still to be taken away.
"""

import re
from collections.abc import Iterable, Sequence
from fractions import Fraction

from stepalign.critics.arithmetic.equations import find_equations, find_numbers
from stepalign.critics.arithmetic.expressions import NUMBER
from stepalign.critics.arithmetic.lexer import replace_spans

Terms = tuple[Fraction, ...]

_STEP_NUMBER = re.compile(r"(?<=Step )\d{1,9}|(?<=step )\d{1,9}|(?<=STEP )\d{1,9}")


def problem_terms(meta: object) -> Terms | None:
    """Return a problem's signed terms; None where its `meta["terms"]` is not a list of integers."""
    terms = meta.get("terms") if isinstance(meta, dict) else None
    if not isinstance(terms, list) or not terms or not all(type(term) is int for term in terms):
        return None
    return tuple(map(Fraction, terms))


def terms_after(terms: Terms, step: str) -> Terms | None:
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


def remaining_steps(terms: Terms, number: int, examples: Iterable[str]) -> list[str]:
    """Return the steps that add the terms from left to right.

    Args:
        terms: the running total, then the other terms.
        number: of the first of these steps.
        examples: steps of the solver to imitate, the best first. The plain format is used where none fits.
    """
    steps, examples = [], list(examples)
    total, *rest = terms
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


def _imitate(example: str, sign: str, numbers: tuple[Fraction, ...], step_number: int) -> str | None:
    """Write `a + b = c` in another step's words. None if one of its numbers has no counterpart."""
    equations = set()
    for chain in find_equations(example):
        first = chain.parts[0]
        if len(chain.parts) != 2 or first.code != (NUMBER, NUMBER, sign) or chain.result is None:
            return None
        equations.add((*(literal.value for literal in first.literals), chain.result))
    old = equations.pop() if len(equations) == 1 else ()
    new = dict(zip(old, numbers, strict=False))
    written = find_numbers(example)
    if len(new) < 3 or any(number.value not in new for number in written):
        return None
    edits = {number.start: (number.end, str(new[number.value])) for number in written}
    heading, line_break, body = replace_spans(example, edits).partition("\n")
    return _STEP_NUMBER.sub(str(step_number), heading, count=1) + line_break + body
