"""Arithmetic mended in the solver's own text: results recomputed, corrected values carried forward.

`recompute` rewrites a text's equations under known changes of value (75 was 85 all along), from the first to
the last. Operands that stand for a changed value get the new one, results follow, and what follows from a
result is a change too, for the prose around and for the texts after. All else stays as it was written,
decimals and thousands separators included.

Left out: choosing what a number refers to. A value that is also one of the problem's own numbers may be
either; the caller tries both and looks whether the answer comes out right.
"""

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import pairwise

from stepalign.critics.arithmetic.equations import Chain, find, holds, linked, numbers
from stepalign.critics.arithmetic.expressions import Expression, Number, Operation

MAX_PLACES = 4
"""Decimals that a new number may need before it is rounded."""

_MONEY = 2
"""Decimals that are kept although they are zeros."""

Changes = Mapping[Fraction, Fraction]


def recompute(text: str, changes: Changes, protected: Set[Fraction] = frozenset()) -> tuple[str, Changes]:
    """A text with its equations made true, and the changes of value that hold after it.

    Args:
        text: one section of a rollout.
        changes: old value → new value, from earlier sections.
        protected: values that are also something else: operands and prose keep them.
    """
    mending = _Mending(dict(changes), protected)
    chains = find(text)
    for chain in chains:
        mending.chain(chain)
    judged = {literal.start for chain in chains for part in chain.parts if part.judged for literal in part.literals}
    for number in numbers(text):
        if number.start not in judged and mending.stands_for(number.value) != number.value:
            mending.write(number, mending.changes[number.value])
    return _without_echoes(text, mending.applied(text)), mending.changes


def replaced(text: str, changes: Changes) -> str:
    """A text with every number that has another value by now written anew."""
    mending = _Mending(dict(changes), frozenset())
    for number in numbers(text):
        if number.value in changes:
            mending.write(number, changes[number.value])
    return mending.applied(text)


@dataclass
class _Mending:
    changes: dict[Fraction, Fraction]
    protected: Set[Fraction]
    edits: dict[int, tuple[int, str]] = field(default_factory=dict)
    """Start → end and what to write there."""

    def stands_for(self, value: Fraction) -> Fraction:
        return value if value in self.protected else self.changes.get(value, value)

    def write(self, number: Number, value: Fraction) -> Fraction:
        """Write a value in a number's place; the value as it now reads."""
        text, shown = written(value, number)
        self.edits[number.start] = (number.end, text)
        return shown

    def applied(self, text: str) -> str:
        pieces, at = [], 0
        for start, (end, new) in sorted(self.edits.items()):
            if start >= at:
                pieces += [text[at:start], new]
                at = end
        return "".join([*pieces, text[at:]])

    def chain(self, chain: Chain) -> None:
        """Make a chain true from its first computation on; numbers before it are its result."""
        parts = [self._operands(part) for part in chain.parts]
        first = next((i for i, part in enumerate(parts) if part.computes and part.judged and part.values()), None)
        if first is None:
            return
        for i in range(first - 1, -1, -1):
            parts[i] = self._follow(parts[i + 1], parts[i], chain.parts[i + 1], chain.parts[i], rough=chain.rough[i])
        for i in range(first, len(parts) - 1):
            parts[i + 1] = self._follow(
                parts[i], parts[i + 1], chain.parts[i], chain.parts[i + 1], rough=chain.rough[i]
            )

    def _operands(self, part: Expression) -> Expression:
        """A computation with its operands' new values, written down."""
        if not (part.computes and part.judged):
            return part
        new = [self.stands_for(literal.value) for literal in part.literals]
        return self._with(part, new)

    def _with(self, part: Expression, values: Sequence[Fraction]) -> Expression:
        shown = [
            literal.value if literal.value == value else self.write(literal, value)
            for literal, value in zip(part.literals, values, strict=True)
        ]
        return part.replaced(shown)

    def _follow(
        self, left: Expression, right: Expression, old_left: Expression, old_right: Expression, *, rough: bool
    ) -> Expression:
        """The right side as the left side has it."""
        if not linked(left, right):
            return right
        changed = left.values() != old_left.values() or right.values() != old_right.values()
        if holds(left, right, rough) and not (changed and not _exactly(left, right)):
            return right
        target = left.values()[0]
        if not right.computes:
            return self._result(right, target)
        for index, literal in enumerate(right.literals):
            for candidate in (*left.parts(), target):
                values = [number.value for number in right.literals]
                values[index] = candidate
                if target in right.replaced(values).values():
                    return self._repaired(right, old_right, literal.value, values)
        values = [target, *(number.value for number in right.literals[1:])]  # a running chain
        return self._repaired(right, old_right, right.literals[0].value, values)

    def _repaired(
        self, right: Expression, old_right: Expression, old: Fraction, values: Sequence[Fraction]
    ) -> Expression:
        shown = [
            self.write(literal, value) if literal.value != value else literal.value
            for literal, value in zip(old_right.literals, values, strict=True)
        ]
        for literal, value in zip(old_right.literals, shown, strict=True):
            if literal.value != value and literal.value not in self.changes:
                self.changes[literal.value] = value
        return right.replaced(shown)

    def _result(self, right: Expression, target: Fraction) -> Expression:
        (literal,) = right.literals
        if right.percent:
            target = min(target, target * 100, key=lambda value: abs(value - literal.value))
        if isinstance(right.tree, Operation) and right.tree.sign == "neg":
            if target >= 0:
                sign = right.start + min(right.text.find(sign) % len(right.text) for sign in "-−–")
                text, shown = written(target, literal)
                self.edits[sign] = (literal.end, text)
                return right.replaced([-shown])
            target = -target
        shown = self.write(literal, target)
        self.changes[literal.value] = shown
        return right.replaced([shown])


def _without_echoes(old: str, new: str) -> str:
    """Mended text without the lines that corrected a slip and by now only say what the line before them says."""
    before, after = old.split("\n"), new.split("\n")
    if len(before) != len(after):
        return new
    said, says = map(_said, before), list(map(_said, after))
    pairs = zip(pairwise(said), pairwise(says), after[1:], strict=True)
    return "\n".join(
        [after[0], *(line for was, now, line in pairs if not now[1] or now[0] != now[1] or was[0] == was[1])]
    )


def _said(line: str) -> list[list[str]]:
    return [[" ".join(part.text.split()) for part in chain.parts] for chain in find(line)]


def _exactly(left: Expression, right: Expression) -> bool:
    return bool(set(left.values()) & {*right.values(), right.literals[0].value})


def written(value: Fraction, like: Number) -> tuple[str, Fraction]:
    """A value in the manner of another number, and what it then reads as (it may have been rounded)."""
    fewest = like.decimals if like.decimals <= _MONEY else 0
    exact = (places for places in range(fewest, MAX_PLACES + 1) if (value * 10**places).denominator == 1)
    places = next(exact, max(min(like.decimals, MAX_PLACES), _MONEY))
    whole = round(abs(value) * 10**places)
    digits = str(whole).rjust(places + 1, "0")
    front, back = (digits[:-places], digits[-places:]) if places else (digits, "")
    if "," in like.text:
        separator = "{,}" if "{,}" in like.text else ","
        front = f"{int(front):,}".replace(",", separator)
    sign = "-" if value < 0 and whole else ""
    return f"{sign}{front}{'.' if back else ''}{back}", Fraction(whole if not sign else -whole, 10**places)
