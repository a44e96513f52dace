"""Quantities as functions of a problem's numbers, so that equal values by chance are told from equal quantities.

Each number of the problem stands for a random residue modulo a prime, and computations are carried out on values and
on residues. Two quantities whose residues are equal are the same function of the problem's numbers, but for a chance
of about 1e-18: `4 + 6` is not `24 - 14`, although both are 10. A number that several quantities share may be any of
them, so a computation has several variants.
"""

import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import islice, product
from typing import NamedTuple

from stepalign.critics.arithmetic.equations import find_equations, find_numbers
from stepalign.critics.arithmetic.expressions import MAX_BITS, NUMBER, Expression

PRIME = 2**61 - 1
CONSTANTS = frozenset(map(Fraction, (0, 1, 2, 100)))
"""Numbers that a computation may use although no text states them."""
_CONSTANT = 2
"""The largest whole number that may count something instead of being one of the problem's."""
_MAX_ORIGINS, _MAX_VARIANTS = 3, 32
"""Origins of one number, and variants of one computation, that are followed."""
_MAX_DEPTH = 6
_MAX_COMPUTATIONS = 400
_PERCENT = Fraction(1, 100)
_FRACTION = re.compile(r"(?<![\d/.])(\d{1,3})/(\d{1,3})(?![\d/])")
_CARDINALS = {
    "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9, "ten": 10, "eleven": 11, "twelve": 12
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Quantity:
    """A number or a computation: its value, and its residue as a function of the problem's numbers."""

    value: Fraction
    residue: int
    sign: str = ""
    """The operation; empty for a number that no computation gave."""
    operands: tuple["Quantity", ...] = ()
    is_number: bool = True
    """It is written as one number. Its operands are those of the earlier computation that gave it."""
    origins: frozenset[int] = frozenset()
    """Residues of everything that it was computed from."""

    @property
    def is_trivial(self) -> bool:
        """True for a multiplication or division by one and an addition of zero."""
        if not self.operands:
            return False
        left, right = (operand.value for operand in self.operands)
        if self.sign in "*/":
            return right == 1 or (self.sign == "*" and left == 1)
        return right == 0 or (self.sign == "+" and left == 0)

    def numbers(self) -> list["Quantity"]:
        """Return the numbers of the expression as written."""
        return [one for one in self.written() if one.is_number]

    def written(self) -> Iterator["Quantity"]:
        """Yield the expression, the expressions in it and its numbers."""
        yield self
        if not self.is_number:
            for operand in self.operands:
                yield from operand.written()

    def terms(self, *, expand: bool = True, depth: int = _MAX_DEPTH) -> list[tuple[int, "Quantity"]]:
        """Return signed terms of a sum; with `expand`, a term that an earlier sum gave is divided as well."""
        if self.sign not in ("+", "-") or not depth or (self.is_number and not expand):
            return [(1, self)]
        left, right = (operand.terms(expand=expand, depth=depth - 1) for operand in self.operands)
        return [*left, *((sign if self.sign == "+" else -sign, term) for sign, term in right)]

    def factors(self, depth: int = _MAX_DEPTH) -> list[tuple[int, "Quantity"]]:
        """Return the factors of a product, earlier products divided as well, each with its exponent 1 or -1."""
        if self.sign not in ("*", "/") or not depth:
            return [(1, self)]
        left, right = (operand.factors(depth - 1) for operand in self.operands)
        return [*left, *((power if self.sign == "*" else -power, factor) for power, factor in right)]


def constant(value: Fraction) -> Quantity:
    """Return a number that does not depend on the problem."""
    return Quantity(value, value.numerator * inverse(value.denominator) % PRIME)


def inverse(residue: int) -> int:
    """Return the inverse of a residue that is not 0."""
    return pow(residue, -1, PRIME)


class Computation(NamedTuple):
    """A computation in a text: its variants, all of one value, and the value that the text gives it."""

    start: int
    variants: tuple[Quantity, ...]
    stated: Fraction

    @property
    def values(self) -> tuple[Fraction, Fraction]:
        """Its exact and its stated value."""
        return self.variants[0].value, self.stated


class Sources:
    """Quantities that the numbers of a text can stand for: the problem's numbers, and results computed before."""

    def __init__(self, statement: str, fallback: "Sources | None" = None) -> None:
        """Read a problem's numbers. `fallback` gives the numbers that are neither theirs nor results."""
        words = re.findall(r"[a-z]+", statement.lower())
        self.given = {number.value for number in find_numbers(statement)} - {0, 1}
        self.given |= {Fraction(_CARDINALS[word]) for word in words if word in _CARDINALS}
        self._fallback = fallback
        chance = random.Random(0)
        self._origins: dict[Fraction, list[Quantity]] = {}
        known = {value: Quantity(value, chance.randrange(1, PRIME)) for value in sorted(self.given)}
        for value, quantity in known.items():
            self.add(value, quantity)
        self.residues = {quantity.residue for quantity in known.values()}
        for value, quantity in known.items():
            if value < 1 or value <= 100:
                factor = Fraction(100) if value < 1 else _PERCENT
                self.add(value * factor, Quantity(value * factor, quantity.residue * constant(factor).residue % PRIME))
        for above, below in _FRACTION.findall(statement):
            if int(below):
                sides = [known.get(side, constant(side)) for side in (Fraction(above), Fraction(below))]
                quotient = _combine("/", *sides)
                self.add(quotient.value, quotient)

    def add(self, value: Fraction, quantity: Quantity) -> None:
        """Let a number of this value stand for a quantity."""
        origins = self._origins.setdefault(value, [])
        if all(origin.residue != quantity.residue for origin in origins):
            origins.append(quantity)

    def of(self, value: Fraction) -> list[Quantity]:
        """Return the quantities that a number can stand for, the latest last."""
        origins = self._origins.get(value) or (self._fallback._origins.get(value) if self._fallback else None) or []
        is_count = value.denominator == 1 and value <= _CONSTANT
        numbers = [*([constant(value)] if is_count or not origins else []), *origins][-_MAX_ORIGINS:]
        return [replace(number, value=value, is_number=True) for number in numbers]


def computations(text: str, sources: Sources) -> list[Computation]:
    """Read the computations of a text in order; the later ones may use the results of the earlier."""
    found: list[Computation] = []
    for chain in find_equations(text):
        for place, part in enumerate(chain.parts):
            if not (part.computes and part.is_certain) or len(found) >= _MAX_COMPUTATIONS:
                continue
            variants = tuple(_variants(part, sources))
            if not variants:
                continue
            after = (other for other in chain.parts[place + 1 :] if not other.computes and other.is_certain)
            results = [values[0] for other in after if (values := other.values())]
            found.append(Computation(part.start, variants, results[-1] if results else variants[0].value))
            for variant, value in product(variants, found[-1].values):
                sources.add(value, variant)
    return found


def _variants(expression: Expression, sources: Sources) -> Iterator[Quantity]:
    origins = [sources.of(number.value) for number in expression.literals]
    for numbers in islice(product(*origins), _MAX_VARIANTS):
        try:
            yield _evaluate(expression.code, numbers)
        except ArithmeticError:
            continue


def _evaluate(code: Sequence[str], numbers: Sequence[Quantity]) -> Quantity:
    stack: list[Quantity] = []
    rest = iter(numbers)
    for item in code:
        if item == NUMBER:
            stack.append(next(rest))
            continue
        right = stack.pop()
        if item == "neg":
            stack.append(_combine("-", constant(Fraction(0)), right))
        elif item == "%":
            stack.append(_combine("/", right, constant(Fraction(100))))
        elif item[0] == "^":
            power = right
            for _ in range(min(int(item[1:]), MAX_BITS) - 1):
                power = _combine("*", power, right)
            stack.append(power)
        else:
            stack.append(_combine(item, stack.pop(), right))
    return stack[-1]


def _combine(sign: str, left: Quantity, right: Quantity) -> Quantity:
    """Compute one operation; an ArithmeticError for a division by zero and for numbers beyond `MAX_BITS`."""
    value = compute(sign, left.value, right.value)
    a, b = left.residue, right.residue
    if sign == "/" and not b:
        raise ZeroDivisionError
    residue = {"+": a + b, "-": a - b, "*": a * b}[sign] if sign != "/" else a * inverse(b)
    origins = left.origins | right.origins | {a, b}
    return Quantity(value, residue % PRIME, sign, (left, right), is_number=False, origins=origins)


def compute(sign: str, left: Fraction, right: Fraction) -> Fraction:
    """Compute one operation on values; an ArithmeticError for a division by zero and beyond `MAX_BITS`."""
    bits = sum(side.numerator.bit_length() + side.denominator.bit_length() for side in (left, right))
    if bits > MAX_BITS:
        raise OverflowError
    if sign in "+-":
        return left + right if sign == "+" else left - right
    return left * right if sign == "*" else left / right
