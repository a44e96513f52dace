"""Inject one slip into a correct trace and carry it on to a wrong answer.

A slip is made at an equation that arithmetic decides (`critics.arithmetic.equations`), in one of four ways: a wrong
result, another operator, a miscopied operand, a dropped term. `critics.arithmetic.repair` recomputes what follows, so
that every later equation is true under its own operands: the trace has one error.

A place is used only without doubt: no value that the slip changes has another meaning in the trace or the problem, no
other equation is false, and the final answer differs. Whole numbers stay whole where possible. Left out: slips in
words, in algebra and in the reading of the problem, because their consequences cannot be computed.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from os.path import commonprefix
from random import Random
from typing import get_args

from stepalign.critics.arithmetic.chains import Chain, is_decidable
from stepalign.critics.arithmetic.equations import evaluate, false_links, find_equations, find_numbers, last_result
from stepalign.critics.arithmetic.expressions import NUMBER, Expression, Number, Token, tokenize
from stepalign.critics.arithmetic.repair import Changes, format_like, recompute
from stepalign.records import PlantedSlip, Problem, SlipKind
from stepalign.seeding import derive_seed
from stepalign.trace import Trace, boxed, parse

KINDS: tuple[SlipKind, ...] = get_args(SlipKind)

NOT_STEPS = "not in steps with a boxed final answer"
ANNOTATED = "calculator annotations"
NOT_TRUE = "an equation that does not hold"
NO_PLACE = "no place for a slip"


class NotInjectable(Exception):
    """Trace without a place for a slip. The message is a short reason that can be counted."""


def inject_error(
    problem: Problem, text: str, *, rollout_id: str, seed: int, kinds: Sequence[SlipKind] = KINDS
) -> PlantedSlip:
    """Put one slip into a correct trace: a solution in steps, with a final-answer section.

    The seed selects the kind that is tried first, each with equal probability, and among the possible places and sizes.

    Raises:
        NotInjectable: with the reason.
    """
    trace = parse(text)
    if not (trace.steps and trace.answer_section and trace.answer_section is trace.sections[-1] and boxed(text)):
        raise NotInjectable(NOT_STEPS)
    if "<<" in text:
        raise NotInjectable(ANNOTATED)
    if false_links(text):
        raise NotInjectable(NOT_TRUE)
    random = Random(derive_seed(seed, "slip", problem.id, text))
    original = _Original(problem, trace)
    order = random.sample(kinds, len(kinds))
    edits = [(kind, random.sample(edits, len(edits))) for kind in order if (edits := list(original.edits(kind)))]
    for plausible_only in (True, False):
        for kind, edit in ((kind, edit) for kind, kind_edits in edits for edit in kind_edits):
            wrong = original.apply(edit, plausible_only)
            place = None if wrong is None else _first_wrong_token(text, wrong)
            if wrong is not None and place is not None:
                step = next(k for k, s in enumerate(trace.steps, start=1) if s.start <= edit.start < s.end)
                return PlantedSlip(
                    rollout_id=rollout_id, problem_id=problem.id, kind=kind, step=step,
                    start=place.start, end=place.end, text=wrong, correct_text=text,
                )  # fmt: skip
    raise NotInjectable(NO_PLACE)


@dataclass(frozen=True)
class _Edit:
    """Replacement of `text[start:end]`."""

    start: int
    end: int
    new: str
    equation: int | None = None
    """Start of the equation whose result follows; None where the result itself is wrong."""
    changes: tuple[tuple[Fraction, Fraction], ...] = ()


class _Original:
    """Correct trace with the facts that each attempt needs."""

    def __init__(self, problem: Problem, trace: Trace) -> None:
        self.trace, self.text = trace, trace.text
        self.chains = find_equations(self.text)
        self.numbers = find_numbers(self.text)
        self.stated = [number.value for number in find_numbers(problem.statement)]
        self.answer = evaluate(boxed(self.text)[-1])
        self.computes_answer = last_result(self.text) == self.answer

    def edits(self, kind: SlipKind) -> Iterator[_Edit]:
        """Yield every slip of a kind at the equations of the steps."""
        make: dict[SlipKind, Callable[[Chain], Iterator[_Edit]]] = {
            "arithmetic": _wrong_results, "sign": _other_operators, "dropped term": _dropped_terms,
            "copied number": lambda chain: _miscopied_operands(chain, self.stated),
        }  # fmt: skip
        for chain in self.chains:
            if _is_simple(chain) and any(s.start <= chain.start < s.end for s in self.trace.steps):
                yield from make[kind](chain)

    def apply(self, edit: _Edit, plausible_only: bool) -> str | None:
        """Return the whole trace with a slip and its consequences. None in case of doubt."""
        sections = self.trace.sections
        own = next(i for i, section in enumerate(sections) if section.start <= edit.start < section.end)
        after = self.text[edit.end : sections[own].end]
        if edit.equation is None:
            pieces = [self.text[: edit.start], edit.new]
        else:
            pieces = [self.text[: edit.equation]]
            after = self.text[edit.equation : edit.start] + edit.new + after
        changes: Changes = dict(edit.changes)
        for text in (after, *map(self.trace.content, sections[own + 1 :])):
            piece, changes = recompute(text, changes)
            pieces.append(piece)
        wrong = "".join(pieces)
        return wrong if self._is_sound(edit, wrong, changes, plausible_only) else None

    def _is_sound(self, edit: _Edit, wrong: str, changes: Changes, plausible_only: bool) -> bool:
        boxes = boxed(wrong)
        stated = evaluate(boxes[-1]) if boxes else None
        if stated is None or self.answer is None or stated == self.answer or stated < 0:
            return False
        if self.computes_answer and last_result(wrong) != stated:
            return False
        outline, old = ([(s.kind, s.number) for s in trace.sections] for trace in (parse(wrong), self.trace))
        # A wrong result makes its own equation false; every other equation must be true.
        if outline != old or len(false_links(wrong)) != (edit.equation is None):
            return False
        if any(chain.result is not None and chain.result < 0 for chain in find_equations(wrong)):
            return False
        numbers = find_numbers(wrong)
        # Plausible: whole numbers stay whole, and none becomes 0.
        decimals, has_zero = max(n.decimals for n in self.numbers), any(n.value == 0 for n in self.numbers)
        if plausible_only and not all(n.decimals <= decimals and (has_zero or n.value) for n in numbers):
            return False
        return not self._is_in_doubt(edit, numbers, changes)

    def _is_in_doubt(self, edit: _Edit, numbers: Sequence[Number], changes: Changes) -> bool:
        """Tell whether the meaning of a number after the slip is ambiguous."""
        old = [number for number in self.numbers if number.start >= edit.end]
        new = numbers[len(numbers) - len(old) :]
        if len(new) != len(old):
            return True
        known = {*self.stated, *(number.value for number in self.numbers if number.start < edit.start)}
        derived = dict(edit.changes)
        results = {chain.parts[-1].literals[-1].start for chain in self.chains if chain.result is not None}
        for before, after in ((a, b) for a, b in zip(old, new, strict=True) if a.value in changes):
            if before.start not in results:
                if before.value in known or derived.get(before.value) != after.value:
                    return True
            elif after.value != before.value:
                derived[before.value] = after.value
            else:
                known.add(before.value)
        return False


def _wrong_results(chain: Chain) -> Iterator[_Edit]:
    """Change the last digit, the tens or the first digit by one, or exchange two digits."""
    (number,) = chain.parts[-1].literals
    unit = Fraction(1) if number.value.denominator == 1 else Fraction(1, 10**number.decimals)
    sizes = [unit, Fraction(1)] + [Fraction(10**k) for k in (1, 2) if number.value > 2 * 10**k]
    near = [number.value + sign * size for size in sizes for sign in (1, -1)]
    for value in dict.fromkeys([*near, *_misread(number)]):
        if value > 0 and value != number.value:
            new, rounded = format_like(value, number)
            yield _Edit(number.start, number.end, new, changes=((number.value, rounded),))


def _miscopied_operands(chain: Chain, stated: Sequence[Fraction]) -> Iterator[_Edit]:
    """Exchange two digits, change the first digit, or write another of the problem's numbers."""
    operands = chain.parts[0].literals
    for number in operands:
        for value in dict.fromkeys([*_misread(number), *stated]):
            if value and all(value != operand.value for operand in operands):
                yield _Edit(number.start, number.end, format_like(value, number)[0], chain.start)


_OTHER_OPERATORS = {
    "+": ("-",), "-": ("+",), "−": ("+",), "–": ("+",), "*": ("+", "/"), "×": ("+", "÷"), "x": ("+",),
    "/": ("*",), "÷": ("×",), r"\times": ("+", r"\div"), r"\cdot": ("+",), r"\div": (r"\times",),
}  # fmt: skip
_OPERATOR = re.compile(r"\\times|\\cdot|\\div|[-+−–*×÷/]|\bx\b")


def _other_operators(chain: Chain) -> Iterator[_Edit]:
    """Replace an operator: a difference by a sum, a product by a sum or quotient, and so on."""
    for match in _operators(chain.parts[0]):
        for new in _OTHER_OPERATORS[match[0]]:
            yield _Edit(chain.start + match.start(), chain.start + match.end(), new, chain.start)


def _dropped_terms(chain: Chain) -> Iterator[_Edit]:
    """Leave out a term of a sum or a factor of a product. Two must stay."""
    part = chain.parts[0]
    operators = _operators(part)
    is_one_kind = len({match[0] in "+-−–" for match in operators}) == 1 and not re.search(r"[()]", part.text)
    if len(part.literals) < 3 or len(operators) != len(part.literals) - 1 or not is_one_kind:
        return
    for match, number in zip(operators, part.literals[1:], strict=True):
        yield _Edit(chain.start + len(part.text[: match.start()].rstrip()), number.end, "", chain.start)


def _operators(part: Expression) -> list[re.Match[str]]:
    """Return the operators that stand alone between two numbers, in a part's own text."""
    spans = ((left.end - part.start, right.start - part.start) for left, right in pairwise(part.literals))
    matches = (list(_OPERATOR.finditer(part.text, *span)) for span in spans)
    return [between[0] for between in matches if len(between) == 1]


def _misread(number: Number) -> list[Fraction]:
    """Exchange two neighbouring digits (85 → 58) or change the first digit by one (85 → 95)."""
    digits = str(number.value) if number.value.denominator == 1 else ""
    swapped = (digits[:i] + digits[i + 1] + digits[i] + digits[i + 2 :] for i in range(len(digits) - 1))
    swaps = [Fraction(new) for new in swapped if not new.startswith("0")]
    size = Fraction(10 ** (len(str(int(number.value))) - 1))
    return swaps + [value for value in (number.value + size, number.value - size) if value > 0]


def _is_simple(chain: Chain) -> bool:
    """Tell whether a chain computes one thing exactly and ends in one number."""
    if not chain.parts[0].computes or chain.parts[-1].code != (NUMBER,):
        return False
    return all(
        is_decidable(left, right) and (not right.computes or left.values() == right.values())
        for left, right in pairwise(chain.parts)
    )


_WRONG_KINDS = {"number", "plus", "minus", "times", "divide", "equals", "approximately"}


def _first_wrong_token(correct: str, wrong: str) -> Token | None:
    """Return the number or sign with the first different character. None if it lies between two (70 → 7)."""
    at = len(commonprefix([correct, wrong]))
    token = next((token for token in tokenize(wrong) if token.start <= at < token.end), None)
    return token if token is not None and (token.kind in _WRONG_KINDS or token.text == "x") else None
