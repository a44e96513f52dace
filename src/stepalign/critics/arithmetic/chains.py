"""Chains of expressions joined by equals signs, and the truth of each equation.

An equation holds by the conventions of people who write solutions: rounding to the decimals shown, running chains,
both readings of a percent sign, and plain conversions between units of one kind.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise

from stepalign.critics.arithmetic.expressions import Expression

Link = tuple[Expression, Expression]
"""Two sides of an equation: neighbours in a chain, or the last computation before two plain numbers and the second."""


@dataclass(frozen=True)
class Chain:
    """Expressions joined by equals signs. `approximate[i]` is true where the sign after part i is ≈."""

    parts: tuple[Expression, ...]
    approximate: tuple[bool, ...]

    @property
    def start(self) -> int:
        """Start of its first part."""
        return self.parts[0].start

    def false_links(self) -> list[Link]:
        """Return the equations that do not hold."""
        return [
            (left, right)
            for left, right, approximate in self._links()
            if is_decidable(left, right) and not holds(left, right, approximate)
        ]

    def _links(self) -> Iterator[tuple[Expression, Expression, bool]]:
        """Yield each part behind what it is compared with: the part before, or the computation that this repeats.

        A number that counts something else (`Area of 4 bedrooms = 121 * 4`) is no side of an equation.
        """
        source: tuple[Expression, bool] | None = None
        for (left, right), approximate in zip(pairwise(self.parts), self.approximate, strict=True):
            if left.computes:
                source = left, False
            elif not left.is_certain:
                source = None
            if left.is_label and right.computes and not left.computes:
                continue
            if source is None or right.computes or left.units != right.units:
                yield left, right, approximate
            else:
                source = source[0], source[1] or approximate
                yield source[0], right, source[1]

    @property
    def result(self) -> Fraction | None:
        """Computed value as its last part states it; None where no equation can be decided."""
        links = [link for link in pairwise(self.parts) if is_decidable(*link)]
        if not links:
            return None
        left, right = links[-1]
        return (left if right.computes and not left.computes else right).values()[0]


def is_decidable(left: Expression, right: Expression) -> bool:
    """Tell whether arithmetic alone decides an equation: both sides have a value, and one computes it."""
    certain = left.is_certain and right.is_certain and (left.computes or right.computes)
    return bool(certain and left.values() and right.values())


def holds(left: Expression, right: Expression, approximate: bool = False) -> bool:
    """Tell whether an equation is true by the conventions of people who write solutions.

    A side that is one number may be rounded in its last digit (`10 / 3 = 3.33`, `7 / 2 = 4`); a whole number may be
    rounded only where the other side divides or is within 0.1 %. `≈` allows 0.2 %, or 5 % within the last
    digit shown.
    A running chain (`2 + 3 = 5 + 1 = 6`) holds where the right side's first number is the left side's value.
    """
    running = [right.literals[0].value] if left.computes and right.computes else []
    values = [(a, b) for a in left.values() for b in [*right.values(), *running]]
    return any(_agree(a, b, left, right, approximate) or _converts(a, b, left, right) for a, b in values)


def _agree(a: Fraction, b: Fraction, left: Expression, right: Expression, approximate: bool) -> bool:
    """Tell whether the values of two sides agree within the rounding of their notation."""
    if a == b:
        return True
    for side, other, value in ((right, left, b), (left, right, a)):
        if not side.computes:
            number = side.literals[0]
            unit = Fraction(1, 10**number.decimals)
            unit /= 100 if "%" in side.code and abs(value) < 1 else 1
            if approximate:
                if abs(a - b) * 500 <= abs(a):
                    return True
                zeros = 0 if number.decimals else len(number.text) - len(number.text.rstrip("0"))
                return abs(a - b) * 20 <= max(abs(a), abs(b)) and abs(a - b) < unit * 10**zeros
            may_round = number.decimals > 0 or {"/", "%"} & {*other.code} or abs(a - b) * 1000 < abs(a)
            return bool(may_round) and abs(a - b) < unit
    return approximate and abs(a - b) * 20 <= max(abs(a), abs(b))


_SIZES: tuple[dict[str, Fraction], ...] = tuple(
    {name: Fraction(size) for name, size in (pair.split(":") for pair in kind.split())}
    for kind in (
        "second:1 minute:60 hour:3600 day:86400 week:604800 month:2419200",
        "day:1 week:7 month:30 year:365",
        "week:1 month:4 year:52",
        "month:1 year:12 decade:120",
        "inch:1 inche:1 foot:12 feet:12 ft:12 yard:36 mile:63360",
        "mm:1 millimeter:1 cm:10 centimeter:10 m:1000 meter:1000 km:1000000 kilometer:1000000",
        "teaspoon:1/6 tablespoon:1/2 ounce:1 oz:1 cup:8 pint:16 pound:16 lb:16 quart:32 gallon:128 ton:32000",
        "mg:1 milligram:1 g:1000 gram:1000 kg:1000000 kilogram:1000000",
        "ml:1 milliliter:1 l:1000 liter:1000",
        "penny:1 pennie:1 nickel:5 dime:10 quarter:25 dollar:100",
    )
)
"""Sizes of units within a kind. A month is 4 weeks, or 30 days, or a twelfth of a year."""
CONVERTIBLE = frozenset(unit for kind in _SIZES for unit in kind)
"""Units, singular, whose numbers alone do not decide an equation with another unit."""


def _converts(a: Fraction, b: Fraction, left: Expression, right: Expression) -> bool:
    """Tell whether two sides in different units may be the same quantity: converted, or a sum in several units."""
    for kind in _SIZES:
        ours, theirs = left.units & kind.keys(), right.units & kind.keys()
        if any(len(units) > 1 and {"+", "-"} & {*side.code} for units, side in ((ours, left), (theirs, right))):
            return True
        if any(a * kind[one] == b * kind[other] for one in ours for other in theirs):
            return True
    return False
