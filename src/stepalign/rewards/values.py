"""Answers as typed values, their comparison, and their keys for majority votes.

`same` compares an answer with a reference, which says what counts: a name, a unit or an order that the reference lacks
does not. A `key` is a string that equal answers share. The rule of each kind is in `docs/grading.md`.
"""

import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from stepalign.rewards import notation
from stepalign.rewards.scalars import Scalar, as_expression, free_symbols, same_scalar, scaled, value_key


@dataclass(frozen=True)
class Words:
    """An answer that is no mathematics, or cannot be read."""

    text: str

    @property
    def key(self) -> str:
        """The words in lower case, singular."""
        return notation.words(self.text)


@dataclass(frozen=True)
class Choice:
    """A letter of a multiple choice, with the words of that choice left out."""

    key: str


@dataclass(frozen=True)
class Sequence:
    """Several values."""

    kind: Literal["tuple", "list", "set"]
    items: tuple["Value", ...]
    decimal: Scalar | None = None
    """The number that `1,22` is with a decimal comma."""

    @property
    def key(self) -> str:
        """The items' keys, sorted where order does not count."""
        keys = [item.key for item in self.items]
        return f"({', '.join(keys)})" if self.kind == "tuple" else f"{{{', '.join(sorted(keys))}}}"

    @property
    def is_assignment(self) -> bool:
        """True if each item has a name of its own, which stands for its place."""
        names = {item.name for item in self.items if isinstance(item, Named)}
        return len(names) == len(self.items) > 1


@dataclass(frozen=True)
class RealSet:
    """A set of real numbers with more than single points, as sympy simplifies it."""

    points: Any

    @property
    def key(self) -> str:
        """The set as sympy writes it, intervals with brackets."""
        from sympy import Interval

        if not isinstance(self.points, Interval):
            return str(self.points)
        left, right = "(" if self.points.left_open else "[", ")" if self.points.right_open else "]"
        return f"{left}{self.points.start}, {self.points.end}{right}"


@dataclass(frozen=True)
class Named:
    """A value with its name: `x = 3`, `f(n) = n + 1`, `x ∈ (0, 1)`."""

    name: str
    value: "Value"
    relation: "Relation | None" = field(default=None, compare=False)
    """The whole equation."""

    @property
    def key(self) -> str:
        """The name and the value's key."""
        return f"{self.name} = {self.value.key}"


@dataclass(frozen=True)
class Relation:
    """An equation or inequality that is not solved, up to a factor."""

    key: str


@dataclass(frozen=True)
class Matrix:
    """Rows of values."""

    rows: tuple[tuple["Value", ...], ...]

    @property
    def key(self) -> str:
        """The entries' keys, row by row."""
        return "matrix [" + "; ".join(", ".join(cell.key for cell in row) for row in self.rows) + "]"


@dataclass(frozen=True)
class Ratio:
    """`a : b : …`, or a time."""

    terms: tuple[Scalar, ...]
    is_time: bool
    units: tuple[object, ...] = ()
    """Each term's, where they differ."""

    @property
    def quotient(self) -> Scalar | None:
        """The value of `a : b`, which is no time."""
        above, below = self.terms[0].value, self.terms[1].value
        is_number = len(self.terms) == 2 and below and not self.is_time and not self.units
        return Scalar(above / below) if is_number else None

    @property
    def key(self) -> str:
        """The quotient, or the terms, those of a ratio without a common factor, with the units that differ."""
        if self.quotient:
            return f"ratio {self.quotient.key}"
        first = 1 if self.is_time else self.terms[0].value or 1
        return ":".join(Scalar(term.value / first).key for term in self.terms) + (str(self.units) if self.units else "")


Value = Scalar | Words | Choice | Sequence | RealSet | Named | Relation | Matrix | Ratio
_FUNCTION = re.compile(r"(\\?[a-zA-Z]+'*)\([a-zA-Z]\)")


def same(reference: Value, answer: Value) -> bool:
    """Compare an answer with a reference. In doubt they are not equal."""
    compare = next(
        (function for kind, function in _BY_KIND if isinstance(reference, kind) or isinstance(answer, kind)), None
    )
    return compare(reference, answer) if compare else reference.key == answer.key


def _same_scalar(reference: Value, answer: Value) -> bool:
    if isinstance(reference, Scalar) and isinstance(answer, Scalar):
        return same_scalar(reference, answer)
    scalar, other = (reference, answer) if isinstance(reference, Scalar) else (answer, reference)
    return isinstance(scalar, Scalar) and isinstance(other, Choice) and str(scalar.value) == other.key


def _same_ratio(reference: Value, answer: Value) -> bool:
    if isinstance(reference, Ratio) and isinstance(answer, Ratio):
        if reference.units and answer.units:
            return reference.key == answer.key
        return replace(reference, units=()).key == replace(answer, units=()).key
    ratio, other = (reference, answer) if isinstance(reference, Ratio) else (answer, reference)
    quotient = ratio.quotient if isinstance(ratio, Ratio) else None
    return quotient is not None and _same_scalar(quotient, other)


def _same_matrix(reference: Value, answer: Value) -> bool:
    if not (isinstance(reference, Matrix) and isinstance(answer, Matrix)):
        return False
    if [len(row) for row in reference.rows] != [len(row) for row in answer.rows]:
        return False
    return all(
        same(*pair) for rows in zip(reference.rows, answer.rows, strict=True) for pair in zip(*rows, strict=True)
    )


def _same_named(reference: Value, answer: Value) -> bool:
    if isinstance(reference, Named) and isinstance(answer, Named):
        if reference.name != answer.name:
            heads = [_FUNCTION.fullmatch(named.name) for named in (reference, answer)]
            alike = heads[0] and heads[1] and heads[0][1] == heads[1][1]  # f(x) = 1 and f(n) = 1
            if not alike or mentions(reference.value):
                is_solved = not mentions(reference.value) and not mentions(answer.value)
                return not is_solved and reference.relation is not None and reference.relation == answer.relation
        return same(reference.value, answer.value)
    named, other = (reference, answer) if isinstance(reference, Named) else (answer, reference)
    if isinstance(named, Named) and isinstance(other, Relation):
        return mentions(named.value) and named.relation == other
    return same(*(value.value if isinstance(value, Named) else value for value in (reference, answer)))


def mentions(value: Value) -> bool:
    """Return whether a value has variables, or may have."""
    if isinstance(value, Sequence):
        return any(map(mentions, value.items))
    return not isinstance(value, Scalar) or bool(free_symbols(value.value))


def _same_sequence(reference: Value, answer: Value) -> bool:
    if not isinstance(answer, Sequence):
        return isinstance(reference, Sequence) and _is_one_value(reference, answer)
    if not isinstance(reference, Sequence):
        return _is_one_value(answer, reference)
    ours, theirs = reference.items, answer.items
    if "set" in (reference.kind, answer.kind):
        ours, theirs = distinct(ours), distinct(theirs)
    if len(ours) != len(theirs) or (reference.kind == "tuple" and answer.kind == "set"):
        return False
    if reference.kind == "tuple" or reference.is_assignment != answer.is_assignment:
        return all(map(same, ours, theirs))
    remaining = list(theirs)
    for item in ours:
        found = next((other for other in remaining if same(item, other)), None)
        if found is None:
            return False
        remaining.remove(found)
    return True


def _is_one_value(sequence: Sequence, other: Value) -> bool:
    """Compare a sequence with a value of another kind: `(0, 1)` with an interval or a column, `{5}` with 5."""
    if sequence.kind == "tuple":
        if isinstance(other, Matrix):
            column = tuple(row[0] for row in other.rows if len(row) == 1)
            return len(column) == len(other.rows) and _same_sequence(sequence, Sequence("tuple", column))
        return isinstance(other, RealSet) and bool(as_set(sequence) == other.points)
    if isinstance(other, Scalar) and sequence.decimal and other.places is not None:
        return same_scalar(sequence.decimal, other)
    return len(sequence.items) == 1 and same(sequence.items[0], other)


def distinct(items: tuple[Value, ...]) -> tuple[Value, ...]:
    """Return the items without repetitions."""
    return tuple({item.key: item for item in items}.values())


def as_set(value: Value) -> Any:
    """Return a value as a sympy set of reals, or None; a pair as an open interval, where it has points."""
    from sympy import EmptySet, FiniteSet, Interval

    if isinstance(value, Named):
        return as_set(value.value)
    if isinstance(value, RealSet):
        return value.points
    if not isinstance(value, Sequence) or not all(isinstance(item, Scalar) for item in value.items):
        return None
    points = [as_expression(item.value) for item in value.items if isinstance(item, Scalar)]
    if not all(point.is_extended_real for point in points):
        return None
    if value.kind != "tuple" or len(points) != 2:
        return FiniteSet(*points)
    interval = Interval.open(*points)
    return None if interval is EmptySet else interval


def ratio_of(terms: list[Scalar], text: str) -> Ratio | Words:
    """Return the ratio of terms, those of one unit converted; words where a term would need another's unit."""
    units = ["%" if term.percent else term.unit.powers if term.unit else () for term in terms]
    is_mixed = len(set(units)) > 1
    if is_mixed and any(term.percent or (term.unit and term.unit.factor != 1) for term in terms):
        return Words(text)
    is_time = bool(re.fullmatch(r"\d{1,2}(?::[0-5]\d)+", text.replace(" ", "")))
    return Ratio(tuple(Scalar(scaled(term).value) for term in terms), is_time, tuple(units) if is_mixed else ())


def relation(mark: str, left: Scalar | None, right: Scalar | None) -> Relation | None:
    """Return an equation (`=`) or inequality (`<`, `\\le`, `\\ne`) as a polynomial with a leading factor of 1."""
    from sympy import Poly, fraction, together
    from sympy.polys.polyerrors import BasePolynomialError

    if left is None or right is None or left.percent or right.percent:
        return None
    difference = as_expression(left.value) - as_expression(right.value)
    symbols = sorted(difference.free_symbols, key=str)
    if not symbols:
        return None
    above, below = fraction(together(difference))
    is_equation = mark in ("=", "\\ne")
    if not is_equation:
        above, below = (difference, 1) if below.free_symbols else (above / below, 1)
    with suppress(BasePolynomialError):
        leading = Poly(above, *symbols).LC()
        above = (above / (leading if is_equation else abs(leading))).expand()
    return Relation(f"{value_key(above)} {mark} 0")


_BY_KIND: list[tuple[type, Callable[[Value, Value], bool]]] = [
    (Named, _same_named),
    (Sequence, _same_sequence),
    (Matrix, _same_matrix),
    (Ratio, _same_ratio),
    (Scalar, _same_scalar),
]
