"""What is still to add: a sum's terms against what a solver has added so far.

Any order is right as long as every number that a step adds is there to be added: a term not used yet, or the
result of an earlier step. So a miscopied, repeated or invented term shows in the step that uses it, and a
dropped one remains. A result may also stand for the size of something still to be taken away.
"""

import re
from collections.abc import Iterable, Sequence
from fractions import Fraction

from stepalign.critics.arithmetic.equations import find, numbers
from stepalign.critics.arithmetic.expressions import Literal, Operation
from stepalign.data.sums import derivations

Terms = tuple[Fraction, ...]


def terms(meta: object) -> Terms | None:
    """A problem's signed terms, where its `meta["terms"]` tells them."""
    found = meta.get("terms") if isinstance(meta, dict) else None
    if not isinstance(found, list) or not found or not all(type(term) is int for term in found):
        return None
    return tuple(map(Fraction, found))


def after(left: Terms, text: str) -> Terms | None:
    """What is left to add after a step, its result first; None where the step adds what is not there."""
    done: list[Fraction] | None = None
    for chain in find(text):
        total: Fraction | None = None
        for part in chain.parts:
            if not (part.computes and part.judged) or part.operands() == done:
                continue
            operands = part.operands()
            value = next(iter(part.values()), None)
            taken = None if operands is None or value is None else _take(left, operands, value)
            if taken is None:
                if value == total:
                    continue  # the same sum, written again
                return None
            left, total, done = taken, value, operands
    return left


def remaining(left: Terms, number: int, examples: Iterable[str]) -> list[str]:
    """The steps from what is left to the sum, from left to right.

    Args:
        left: the running total, then the terms.
        number: of the first of these steps.
        examples: steps of the solver, the one to imitate first; where none fits, the plain format is used.
    """
    pieces = []
    styles = list(examples)
    steps = derivations([int(term) for term in left])["left to right"] if len(left) > 1 else []
    for at, step in enumerate(steps, start=number):
        styled = (_styled(style, step.equation, at) for style in styles)
        pieces.append(next(filter(None, styled), f"### Step {at}: {step.text}\n{step.equation}"))
    return pieces


def _take(left: Terms, operands: Sequence[Fraction], value: Fraction) -> Terms | None:
    for sign in (1, -1):
        rest = list(left)
        try:
            for operand in operands:
                rest.remove(sign * operand)
        except ValueError:
            continue
        return (sign * value, *rest)
    return None


def _styled(example: str, equation: str, number: int) -> str | None:
    """A step in another's words, with this equation's numbers; None where that is not safe."""
    old, new = _shape(example), _shape(equation)
    if old is None or new is None or old[0] != new[0] or len(set(old[1])) < 3:
        return None
    renamed = dict(zip(old[1], new[1], strict=True))
    found = numbers(example)
    if any(one.value not in renamed for one in found):
        return None
    pieces, at = [], 0
    for one in found:
        pieces += [example[at : one.start], str(renamed[one.value])]
        at = one.end
    text = "".join([*pieces, example[at:]])
    heading, line_break, body = text.partition("\n")
    return _NUMBER.sub(str(number), heading, count=1) + line_break + body


_NUMBER = re.compile(r"(?<=Step )\d{1,9}|(?<=step )\d{1,9}|(?<=STEP )\d{1,9}")


def _shape(text: str) -> tuple[str, tuple[Fraction, ...]] | None:
    """The sign and the numbers of a text's one equation `a + b = c` or `a - b = c`."""
    shapes = set()
    for chain in find(text):
        tree = chain.parts[0].tree
        if len(chain.parts) != 2 or not isinstance(tree, Operation) or tree.sign not in ("+", "-"):
            return None
        if not all(isinstance(operand, Literal) for operand in tree.operands) or chain.result is None:
            return None
        shapes.add((tree.sign, (*(literal.value for literal in chain.parts[0].literals), chain.result)))
    return shapes.pop() if len(shapes) == 1 else None
