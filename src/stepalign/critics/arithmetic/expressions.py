"""Exact values of arithmetic expressions: + − × ÷, whole powers and percentages.

Values are `Fraction`s, computed from postfix code, never by Python's own evaluator. A number beyond `MAX_BITS` has no
value, so that no expression in a model's text is expensive (`9^{9999}`).
"""

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

from stepalign.critics.arithmetic.lexer import Number

MAX_BITS = 4096
NUMBER = "number"


@dataclass(frozen=True)
class Expression:
    """One side of an equation."""

    start: int
    end: int
    text: str
    """From its first number to its last, without the units after it."""
    code: tuple[str, ...]
    """Postfix: `NUMBER` (the next literal), `+ - * /` of two operands, `neg`, `%` and `^2` (whole powers) of one."""
    literals: tuple[Number, ...]
    is_certain: bool
    """False where a neighbour (a variable, a mixed number) makes the value uncertain."""

    @property
    def computes(self) -> bool:
        """True if its last operation is not a sign or a percentage."""
        return self.code[-1] not in (NUMBER, "neg", "%")

    def with_values(self, values: Sequence[Fraction]) -> "Expression":
        """Return the same expression with other numbers in it."""
        literals = (replace(number, value=value) for number, value in zip(self.literals, values, strict=True))
        return replace(self, literals=tuple(literals))

    def values(self) -> tuple[Fraction, ...]:
        """Return its value under both readings of `%`: a hundredth, a mere unit. Empty for no value (1/0)."""
        readings = (Fraction(1, 100), Fraction(1)) if "%" in self.code else (Fraction(1),)
        values = (self._evaluate(percent)[-1] for percent in readings)
        return tuple(dict.fromkeys(value for value in values if value is not None))

    def intermediate_values(self) -> list[Fraction]:
        """Return the values of its operations, the innermost first."""
        results = zip(self.code, self._evaluate(Fraction(1, 100)), strict=True)
        return [value for item, value in results if item != NUMBER and value is not None]

    def sum_terms(self) -> list[Fraction] | None:
        """Return the signed terms of a plain sum of numbers; None for any other expression."""
        stack: list[list[Fraction]] = []
        literals = iter(self.literals)
        for item in self.code:
            if item == NUMBER:
                stack.append([next(literals).value])
            elif item in ("+", "-", "neg"):
                terms = stack.pop()
                left = [] if item == "neg" else stack.pop()
                stack.append(left + (terms if item == "+" else [-term for term in terms]))
            else:
                return None
        return stack[0]

    def _evaluate(self, percent: Fraction) -> list[Fraction | None]:
        """Return the value of each item of the code. The last one is the whole."""
        stack: list[Fraction | None] = []
        results: list[Fraction | None] = []
        literals = iter(self.literals)
        for item in self.code:
            if item == NUMBER:
                stack.append(next(literals).value)
            else:
                right = stack.pop()
                left = stack.pop() if item in ("+", "-", "*", "/") else Fraction(0)  # `neg` is 0 - right
                stack.append(None if left is None or right is None else _apply(item, left, right, percent))
            results.append(stack[-1])
        return results


def _apply(sign: str, left: Fraction, right: Fraction, percent: Fraction) -> Fraction | None:
    """Compute one operation; None for a division by zero and for numbers beyond `MAX_BITS`."""
    power = int(sign[1:]) if sign[0] == "^" else 1
    if (_bits(left) + _bits(right)) * max(power, 1) > MAX_BITS or (sign == "/" and right == 0):
        return None
    if sign[0] == "^":
        return Fraction(right**power)
    return right * percent if sign == "%" else _OPERATORS[sign](left, right)


_OPERATORS: dict[str, Callable[[Fraction, Fraction], Fraction]] = {
    "+": operator.add, "-": operator.sub, "neg": operator.sub, "*": operator.mul, "/": operator.truediv,
}  # fmt: skip


def _bits(number: Fraction) -> int:
    return number.numerator.bit_length() + number.denominator.bit_length()
