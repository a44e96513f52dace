"""Single values: an exact number or expression, with percent sign or unit; equality and keys.

Nothing is rounded. Expressions are equal if they are one rational function, or agree at fixed points to 25 digits;
numbers if they agree to 60. Points are positive and negative, but for `n`, which stands for a positive number.
"""

from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache
from typing import Any
from zlib import crc32

from stepalign.rewards.units import Unit

MIN_DECIMALS = 6
"""A decimal counts as a rounded or cut exact value from this many places and significant digits on."""
_DIGITS = 60


@dataclass(frozen=True)
class Scalar:
    """A value as a fraction or a sympy expression."""

    value: Any
    places: int | None = None
    """The decimal places of a literal; None for anything else."""
    significant: int = 0
    """The significant digits of a literal."""
    percent: bool = False
    unit: Unit | None = None
    rounded: "Scalar | None" = None
    """The decimal behind ≈, which may stand for the value."""

    @property
    def key(self) -> str:
        """A string that equal values with equal units share.

        Raises:
            ValueError: the value is too long to be written.
        """
        sign = "%" if self.percent else f" {self.unit}" if self.unit else ""
        return value_key(scaled(self).value) + sign


def same_scalar(reference: Scalar, answer: Scalar) -> bool:
    """Compare two values. A unit or percent sign that only one of them has does not count."""
    if reference.rounded or answer.rounded:
        return any(
            same_scalar(replace(one, rounded=None), replace(other, rounded=None))
            for one in (reference, reference.rounded)
            for other in (answer, answer.rounded)
            if one and other
        )
    marks = ["%" if scalar.percent else scalar.unit and scalar.unit.powers for scalar in (reference, answer)]
    if all(marks):
        return marks[0] == marks[1] and _same(scaled(reference), scaled(answer))
    if "%" in marks:
        flagged, plain = (reference, answer) if reference.percent else (answer, reference)
        hundredth = replace(flagged, value=flagged.value / 100, places=flagged.places and flagged.places + 2)
        return _same(flagged, plain) or _same(hundredth, plain)
    if _same(reference, answer):
        return True
    degrees = [scalar for scalar in (reference, answer) if scalar.unit and scalar.unit.powers == (("deg", 1),)]
    if len(degrees) != 1:
        return False
    from sympy import pi

    other = answer if degrees[0] is reference else reference
    return _same(replace(degrees[0], value=as_expression(degrees[0].value) * pi / 180, places=None), other)


def scaled(scalar: Scalar) -> Scalar:
    """Return an amount in base units."""
    factor = scalar.unit.factor if scalar.unit else 1
    return scalar if factor == 1 else Scalar(scalar.value * factor)


def _same(reference: Scalar, answer: Scalar) -> bool:
    if isinstance(reference.value, Fraction) and isinstance(answer.value, Fraction):
        if reference.value == answer.value:
            return True
    elif value_key(reference.value) == value_key(answer.value):
        return True
    if (reference.places is None) == (answer.places is None):
        symbols = free_symbols(reference.value)
        return (
            bool(symbols)
            and symbols == free_symbols(answer.value)
            and fingerprint(reference.value) == fingerprint(answer.value)
        )
    decimal, exact = (answer, reference) if reference.places is None else (reference, answer)
    return _rounds(decimal, exact.value)


def _rounds(decimal: Scalar, exact: Any) -> bool:
    """Return whether a decimal is an exact value, rounded or cut, with enough digits."""
    if (decimal.places or 0) < MIN_DECIMALS or decimal.significant < MIN_DECIMALS or free_symbols(exact):
        return False
    if not isinstance(exact, Fraction):
        approximate = exact.evalf(_DIGITS)
        if not approximate.is_Float:
            return False
        exact = Fraction(str(approximate))
    scale = Fraction(10) ** (decimal.places or 0)
    scaled, written = abs(exact) * scale, abs(decimal.value) * scale
    return bool(exact * decimal.value > 0 and written in (int(scaled), int(scaled + Fraction(1, 2))))


@lru_cache(maxsize=4096)
def value_key(value: Any) -> str:
    """Return a string that equal values share, and no others.

    Raises:
        ValueError: the value is too long to be written.
    """
    if isinstance(value, Fraction):
        return str(value)
    if not value.free_symbols:
        return _number_key(value, _DIGITS)
    from sympy import cancel

    symbols = sorted(value.free_symbols, key=str)
    if value.is_rational_function(*symbols) and all(atom.is_Symbol or atom.is_Rational for atom in value.atoms()):
        return str(cancel(value))
    points = fingerprint(value)
    if len(set(points)) == 1:
        return points[0]
    return f"f({', '.join(map(str, symbols))}): " + "; ".join(points)


def fingerprint(value: Any) -> tuple[str, ...]:
    """Return an expression's values at three fixed points, as strings."""
    from sympy import Rational

    points = []
    for turn in range(3):
        place = {
            symbol: Rational(crc32(f"{symbol}{turn}".encode()) % 997 + 200, 501)
            * (-1 if turn == 2 and str(symbol) != "n" else 1)
            for symbol in value.free_symbols
        }
        points.append(_number_key(value.subs(place), 25))
    return tuple(points)


def _number_key(value: Any, digits: int) -> str:
    """Write a constant: exactly where it is rational, else with that many digits."""
    if value.is_infinite or value.is_Rational:
        return str(value)
    approximate = value.evalf(digits + 5, maxn=500)
    real, imaginary = approximate.as_real_imag()
    if not (real.is_Float or real.is_Rational) or not (imaginary.is_Float or imaginary.is_Rational):
        return str(value)
    parts = [_part_key(value, part, side, digits) for side, part in enumerate((real, imaginary))]
    if parts[1] == "0":
        return parts[0]
    return f"{parts[0]} + {parts[1]}*I"


def _part_key(value: Any, part: Any, side: int, digits: int) -> str:
    from sympy import Rational, im, re

    if part == 0 or abs(part) < Rational(1, 10**400):
        return "0"
    written = Fraction(str(part.evalf(digits)))
    near = written.limit_denominator(10**9)
    if near and abs(written - near) * 10 ** (digits - 8) < abs(near):
        distance = ((re, im)[side](value) - Rational(near.numerator, near.denominator)).evalf(5, maxn=500)
        if distance == 0 or abs(distance) < abs(part) * Rational(1, 10**400) or not distance.is_number:
            return str(near)
        return f"{near} {distance:+}"
    return str(part.evalf(digits))


def free_symbols(value: Any) -> set[Any]:
    """Return the variables of a value."""
    return set() if isinstance(value, Fraction) else set(value.free_symbols)


def exact(number: Any) -> Any:
    """Return a sympy expression, a rational number as a fraction."""
    return Fraction(int(number.p), int(number.q)) if number.is_Rational else number


def as_expression(value: Any) -> Any:
    """Return a value as a sympy expression."""
    from sympy import Rational

    return Rational(value.numerator, value.denominator) if isinstance(value, Fraction) else value
