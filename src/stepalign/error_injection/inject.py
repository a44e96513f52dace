"""One slip put into a correct step-tagged trace, its consequences carried on to a wrong final answer.

A slip is made where an equation can be judged (`critics.equations`), in one of four ways: a result is off, an operator
is another one, an operand is miscopied, a term is left out. What follows from it in the rest of the trace is
recomputed by `critics.mending`, so that every equation after the slip is true under its own operands: the trace has one
error and is otherwise what its writer would have written.

A place is taken only if nothing about it is in doubt: a value that the slip changes is nowhere else in the trace or the
problem something of its own, no false equation stands beside the slip's, and the final answer comes out different.
Plausible consequences (whole numbers stay whole) are preferred. Left out: slips in words, in algebra and in the
problem's reading.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from os.path import commonprefix
from random import Random
from typing import get_args

from stepalign.critics.arithmetic import equations
from stepalign.critics.arithmetic.equations import Chain, linked
from stepalign.critics.arithmetic.expressions import Expression, Literal, Number
from stepalign.critics.arithmetic.lexer import Token, scan
from stepalign.critics.arithmetic.repair import Changes, recompute, written
from stepalign.records import PlantedSlip, Problem, SlipKind
from stepalign.seeding import derive_seed
from stepalign.trace import Section, Trace, boxed, parse

KINDS: tuple[SlipKind, ...] = get_args(SlipKind)

NOT_STEPS = "not in steps with a boxed final answer"
ANNOTATED = "calculator annotations"
NOT_TRUE = "an equation that does not hold"
NO_PLACE = "no place for a slip"


class NotPlantable(Exception):
    """A trace that no slip can be put into; the message is a short reason that can be counted."""


def plant(problem: Problem, text: str, *, rollout_id: str, seed: int, kinds: Sequence[SlipKind] = KINDS) -> PlantedSlip:
    """Put one slip into a correct trace. The same arguments give the same slip.

    Args:
        problem: its statement's numbers are never mistaken for results.
        text: a correct solution in steps, with a final answer section.
        rollout_id: the record's.
        seed: what decides between the places and sizes that are possible.
        kinds: what may be planted; which of them is drawn first is decided by the seed, each as likely.

    Raises:
        NotPlantable: with the reason.
    """
    trace = parse(text)
    if (
        not trace.steps
        or trace.answer_section is None
        or trace.answer_section is not trace.sections[-1]
        or not boxed(text)
    ):
        raise NotPlantable(NOT_STEPS)
    if "<<" in text:
        raise NotPlantable(ANNOTATED)
    if _false(text):
        raise NotPlantable(NOT_TRUE)
    draw = Random(derive_seed(seed, "slip", problem.id, text))
    original = _Original(problem, trace)
    order = draw.sample(kinds, len(kinds))
    edits = {kind: draw.sample(found, len(found)) for kind in order if (found := list(original.edits(kind)))}
    for plausible in (True, False):
        for kind, places in edits.items():
            for edit in places:
                wrong = original.carried(edit, plausible=plausible)
                if wrong is not None and (place := _place(text, wrong)) is not None:
                    step = next(k for k, s in enumerate(trace.steps, start=1) if s.start <= edit.start < s.end)
                    return PlantedSlip(
                        rollout_id=rollout_id,
                        problem_id=problem.id,
                        kind=kind,
                        step=step,
                        start=place.start,
                        end=place.end,
                        text=wrong,
                        correct_text=text,
                    )
    raise NotPlantable(NO_PLACE)


@dataclass(frozen=True)
class _Edit:
    """What to write in the place of `text[start:end]`."""

    start: int
    end: int
    new: str
    equation: int | None = None
    """Where the slip's equation begins, if its result follows; None where the result itself is what is off."""
    changes: tuple[tuple[Fraction, Fraction], ...] = ()


class _Original:
    """A correct trace with everything about it that each try needs."""

    def __init__(self, problem: Problem, trace: Trace) -> None:
        self.trace, self.text = trace, trace.text
        self.chains = equations.find(self.text)
        self.numbers = equations.numbers(self.text)
        self.stated = [number.value for number in equations.numbers(problem.statement)]
        self.answer = equations.value(boxed(self.text)[-1])
        self.computed = _computed(self.text)

    def edits(self, kind: SlipKind) -> Iterator[_Edit]:
        """Every slip of a kind at every equation of a step that computes something and states the result."""
        for chain in self.chains:
            if not _plain(chain) or not any(s.start <= chain.start < s.end for s in self.trace.steps):
                continue
            match kind:
                case "arithmetic":
                    yield from _another_result(chain)
                case "sign":
                    yield from _another_operator(chain)
                case "copied number":
                    yield from _another_operand(chain, self.stated)
                case "dropped term":
                    yield from _one_term_less(chain)

    def carried(self, edit: _Edit, *, plausible: bool) -> str | None:
        """The whole trace with a slip and what follows from it; None where anything about it is in doubt."""
        sections = self.trace.sections
        own = next(i for i, section in enumerate(sections) if section.start <= edit.start < section.end)
        kept = edit.end if edit.equation is None else edit.equation
        rest = self.text[edit.end : sections[own].end]
        if edit.equation is None:
            pieces = [self.text[: edit.start], edit.new]
        else:
            pieces = [self.text[:kept]]
            rest = self.text[kept : edit.start] + edit.new + rest
        changes: Changes = dict(edit.changes)
        for text in (rest, *map(self.trace.content, sections[own + 1 :])):
            piece, changes = recompute(text, changes)
            pieces.append(piece)
        wrong = "".join(pieces)
        return wrong if self._sound(edit, wrong, changes, plausible) else None

    def _sound(self, edit: _Edit, wrong: str, changes: Changes, plausible: bool) -> bool:
        boxes = boxed(wrong)
        stated = equations.value(boxes[-1]) if boxes else None
        if stated is None or self.answer is None or stated == self.answer:
            return False
        if self.computed == self.answer and _computed(wrong) != stated:
            return False
        if list(map(_outline, parse(wrong).sections)) != list(map(_outline, self.trace.sections)):
            return False
        # A result that is off is the only equation that may be false, and it must be.
        if _false(wrong) != (edit.equation is None):
            return False
        if stated < 0 or any(chain.result is not None and chain.result < 0 for chain in equations.find(wrong)):
            return False
        numbers = equations.numbers(wrong)
        return (not plausible or _likely(self.numbers, numbers)) and not self._in_doubt(edit, numbers, changes)

    def _in_doubt(self, edit: _Edit, numbers: Sequence[Number], changes: Changes) -> bool:
        """Whether a number after the slip may, or may not, stand for a value that the slip changed."""
        old = [number for number in self.numbers if number.start >= edit.end]
        new = numbers[len(numbers) - len(old) :]
        if len(new) != len(old):
            return True
        known = {*self.stated, *(number.value for number in self.numbers if number.start < edit.start)}
        derived = dict(edit.changes)
        results = {chain.parts[-1].literals[-1].start for chain in self.chains if chain.result is not None}
        for before, after in zip(old, new, strict=True):
            if before.value not in changes:
                continue
            if before.start not in results:
                if before.value in known or derived.get(before.value) != after.value:
                    return True
            elif after.value != before.value:
                derived[before.value] = after.value
            else:
                known.add(before.value)
        return False


# ── what goes wrong ────────────────────────────────────────────────────────────────────────────────────────────


def _another_result(chain: Chain) -> Iterator[_Edit]:
    """One more or less in its last digit or in tens, two digits exchanged, another first digit."""
    (literal,) = chain.parts[-1].literals
    unit = Fraction(1) if literal.value.denominator == 1 else Fraction(1, 10**literal.decimals)
    sizes = [unit, Fraction(1)] + [Fraction(10**k) for k in (1, 2) if literal.value > 2 * 10**k]
    near = [literal.value + sign * size for size in sizes for sign in (1, -1)]
    for value in dict.fromkeys([*near, *_transposed(literal.value), *_another_digit(literal)]):
        if value > 0 and value != literal.value:
            new, shown = written(value, literal)
            yield _Edit(literal.start, literal.end, new, changes=((literal.value, shown),))


def _another_operand(chain: Chain, stated: Sequence[Fraction]) -> Iterator[_Edit]:
    """Two digits exchanged, another first digit, or another of the problem's numbers in its place."""
    there = {literal.value for literal in chain.parts[0].literals}
    for literal in chain.parts[0].literals:
        for value in dict.fromkeys([*_transposed(literal.value), *_another_digit(literal), *stated]):
            if value and value not in there:
                yield _Edit(literal.start, literal.end, written(value, literal)[0], chain.start)


_OTHER = {
    "+": ("-",), "-": ("+",), "−": ("+",), "–": ("+",), "*": ("+", "/"), "×": ("+", "÷"), "x": ("+",),
    "/": ("*",), "÷": ("×",), r"\times": ("+", r"\div"), r"\cdot": ("+",), r"\div": (r"\times",),
}  # fmt: skip
_OPERATOR = re.compile(r"\\times|\\cdot|\\div|[-+−–*×÷/]|\bx\b")


def _another_operator(chain: Chain) -> Iterator[_Edit]:
    """A sum for a difference, a quotient or a sum for a product, a product for a quotient."""
    for match in _operators(chain.parts[0]):
        for new in _OTHER[match[0]]:
            yield _Edit(chain.start + match.start(), chain.start + match.end(), new, chain.start)


def _one_term_less(chain: Chain) -> Iterator[_Edit]:
    """Leaves out a number with the sign before it; two must stay, or nothing would be computed."""
    part = chain.parts[0]
    operators = _operators(part)
    if len(part.literals) < 3 or len(operators) != len(part.literals) - 1 or re.search(r"[()]", part.text):
        return
    if len({match[0] in "+-−–" for match in operators}) > 1:  # a term of a sum, a factor of a product
        return
    for match, literal in zip(operators, part.literals[1:], strict=True):
        gap = len(part.text[: match.start()]) - len(part.text[: match.start()].rstrip())
        yield _Edit(chain.start + match.start() - gap, literal.end, "", chain.start)


def _operators(part: Expression) -> list[re.Match[str]]:
    """The operators that stand alone between two numbers, in a part's own text."""
    found = []
    for left, right in zip(part.literals, part.literals[1:], strict=False):
        matches = list(_OPERATOR.finditer(part.text, left.end - part.start, right.start - part.start))
        if len(matches) == 1:
            found += matches
    return found


def _transposed(value: Fraction) -> list[Fraction]:
    """A whole number with two neighbouring digits exchanged: 85 → 58."""
    if value.denominator != 1 or value < 10:
        return []
    digits = str(value)
    swapped = (digits[:i] + digits[i + 1] + digits[i] + digits[i + 2 :] for i in range(len(digits) - 1))
    return [Fraction(new) for new in swapped if not new.startswith("0")]


def _another_digit(literal: Number) -> list[Fraction]:
    """A number with its first digit one more or less: 85 → 95."""
    size = Fraction(1)
    while size * 10 <= literal.value:
        size *= 10
    return [value for value in (literal.value + size, literal.value - size) if value > 0]


# ── what follows, and whether it will do ───────────────────────────────────────────────────────────────────────


def _plain(chain: Chain) -> bool:
    """Whether a chain computes one thing, exactly what it says, and ends in one number."""
    last = chain.parts[-1]
    if not chain.parts[0].computes or not isinstance(last.tree, Literal):
        return False
    pairs = list(zip(chain.parts, chain.parts[1:], strict=False))
    return all(linked(left, right) and (not right.computes or left.values() == right.values()) for left, right in pairs)


def _outline(section: Section) -> tuple[str, int | None]:
    return section.kind, section.number


def _false(text: str) -> int:
    """How many equations of a text do not hold."""
    return sum(len(chain.false_links()) for chain in equations.find(text))


def _computed(text: str) -> Fraction | None:
    """What the last equation of a text computes."""
    return next((chain.result for chain in reversed(equations.find(text)) if chain.result is not None), None)


def _likely(before: Sequence[Number], after: Sequence[Number]) -> bool:
    """Whether whole numbers stayed whole and none became 0."""
    decimals, zero = max(number.decimals for number in before), any(number.value == 0 for number in before)
    return all(number.decimals <= decimals and (zero or number.value) for number in after)


def _place(correct: str, wrong: str) -> Token | None:
    """The number or sign that holds the first character which differs; None where that is between two (70 → 7)."""
    at = len(commonprefix([correct, wrong]))
    token = next((token for token in scan(wrong) if token.start <= at < token.end), None)
    return token if token is not None and (token.kind in _COUNTS or token.text == "x") else None


_COUNTS = {"number", "plus", "minus", "times", "divide", "equals", "rough"}
