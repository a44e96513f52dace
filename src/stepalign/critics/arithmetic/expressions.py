"""Arithmetic expressions with exact values: numbers under + − × ÷, whole powers and percentages.

Everything is a `Fraction`, and nothing reaches Python's own evaluator. Numbers beyond `MAX_BITS` have no
value, so that no expression of a model's costs more than it is worth (`9^{9999}`).
"""

import operator
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

MAX_BITS = 4096


@dataclass(frozen=True)
class Literal:
    """The expression's number with this index."""

    index: int


@dataclass(frozen=True)
class Operation:
    """`+ - * /` of two operands; `neg`, `%` and `^` (a whole power) of one."""

    sign: str
    operands: "tuple[Tree, ...]"
    power: int = 1


Tree = Literal | Operation


@dataclass(frozen=True)
class Number:
    """A number as it is written."""

    start: int
    end: int
    text: str
    value: Fraction

    @property
    def decimals(self) -> int:
        """Digits after the point."""
        return len(self.text.partition(".")[2])


@dataclass(frozen=True)
class Expression:
    """One side of an equation."""

    start: int
    end: int
    text: str
    """From its first number to its last, without the units behind it."""
    tree: Tree
    literals: tuple[Number, ...]
    judged: bool
    """False where something beside it (a variable, a mixed number) makes its value uncertain."""

    @property
    def computes(self) -> bool:
        """Whether it holds an operation."""
        return isinstance(self.tree, Operation) and self.tree.sign not in ("neg", "%")

    @property
    def percent(self) -> bool:
        """Whether it holds a percentage."""
        return any(operation.sign == "%" for operation in _operations(self.tree))

    @property
    def divides(self) -> bool:
        """Whether its value may need rounding to be written down."""
        return any(operation.sign in ("/", "%") for operation in _operations(self.tree))

    def replaced(self, literals: Sequence[Fraction]) -> "Expression":
        """The same expression with other numbers in it."""
        numbers = (replace(number, value=value) for number, value in zip(self.literals, literals, strict=True))
        return replace(self, literals=tuple(numbers))

    def values(self) -> tuple[Fraction, ...]:
        """Its value, under both readings of `%` (a hundredth, a mere unit). Empty where it has none (1/0)."""
        numbers = [number.value for number in self.literals]
        readings = (Fraction(1, 100), Fraction(1)) if self.percent else (Fraction(1),)
        found = (_evaluate(self.tree, numbers, percent) for percent in readings)
        return tuple(dict.fromkeys(value for value in found if value is not None))

    def parts(self) -> list[Fraction]:
        """The values of the operations inside it, the innermost first."""
        numbers = [number.value for number in self.literals]
        found = (_evaluate(tree, numbers, Fraction(1, 100)) for tree in _operations(self.tree))
        return [value for value in found if value is not None]

    def operands(self) -> list[Fraction] | None:
        """The signed terms of a plain sum of numbers; None where it is anything else."""
        return _terms(self.tree, [number.value for number in self.literals])


def _evaluate(tree: Tree, literals: Sequence[Fraction], percent: Fraction) -> Fraction | None:
    """The value of a tree; None for a division by zero and for numbers beyond `MAX_BITS`."""
    if isinstance(tree, Literal):
        return literals[tree.index]
    operands = [_evaluate(operand, literals, percent) for operand in tree.operands]
    known = [operand for operand in operands if operand is not None]
    if len(known) < len(operands) or sum(map(_bits, known)) * max(tree.power, 1) > MAX_BITS:
        return None
    if tree.sign == "/" and known[1] == 0:
        return None
    if tree.sign == "%":
        return known[0] * percent
    if tree.sign == "^":
        return Fraction(known[0] ** tree.power)
    return _COMPUTE[tree.sign](*known)


_COMPUTE: dict[str, Callable[..., Fraction]] = {
    "+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv, "neg": operator.neg,
}  # fmt: skip


def _bits(number: Fraction) -> int:
    return number.numerator.bit_length() + number.denominator.bit_length()


def _operations(tree: Tree) -> Iterator[Operation]:
    if isinstance(tree, Operation):
        for operand in tree.operands:
            yield from _operations(operand)
        yield tree


def _terms(tree: Tree, literals: Sequence[Fraction]) -> list[Fraction] | None:
    if isinstance(tree, Literal):
        return [literals[tree.index]]
    if tree.sign not in ("+", "-", "neg"):
        return None
    terms = [_terms(operand, literals) for operand in tree.operands]
    signs = {"+": (1, 1), "-": (1, -1), "neg": (-1,)}[tree.sign]
    signed: list[Fraction] = []
    for sign, found in zip(signs, terms, strict=True):
        if found is None:
            return None
        signed += [sign * term for term in found]
    return signed
