"""A reference solution as a derivation, and the quantities that another way to its answer may compute.

Reachable are its results and the expressions in them, parts of its sums and products (`12 + 6` of `12 + 5 + 6`), and
products with the terms of a sum one by one (`3 * 4 + 3 * 5` for `3 * (4 + 5)`).
"""

from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from itertools import combinations

from stepalign.critics.arithmetic.equations import evaluate, find_numbers
from stepalign.critics.arithmetic.expressions import ANNOTATION
from stepalign.critics.arithmetic.quantities import PRIME, Quantity, Sources, computations, constant, inverse

_MAX_PARTS = 8
"""Terms of a sum, or factors of a product, of which every part is reachable."""


class Derivation:
    """The computations of a reference solution.

    `values` are the values that it computes, `stated` all its numbers, `computed` the residues of what it computes and
    `reachable` of what another way may compute. `answer` is None where it is not a number.
    """

    def __init__(self, statement: str, solution: str, answer: str) -> None:
        self.sources = Sources(statement)
        found = computations(ANNOTATION.sub("", solution), self.sources)
        self.results = [one.stated for one in found]
        self.quantities = [variant for one in found for variant in one.variants]
        self.answer = evaluate(answer)
        self.stated = {number.value for number in find_numbers(solution)}
        expressions = [one for quantity in self.quantities for one in quantity.written() if one.operands]
        expressions = [one for one in expressions if not one.is_trivial]
        self.values = {one.value for one in expressions}.union(self.results)
        self.computed = {one.residue for one in expressions}
        reachable = self.computed.union(*(_parts(quantity) for quantity in self.quantities))
        reachable -= self.sources.residues - self.computed
        reachable |= {-residue % PRIME for residue in reachable}
        hundred = constant(Fraction(100)).residue
        scaled = {residue * factor % PRIME for residue in self.computed for factor in (hundred, inverse(hundred))}
        self.reachable = reachable | scaled

    def gives(self, value: Fraction, operand: Fraction) -> bool:
        """Return whether it computes a value from an operand, or from an expression of that value."""
        return any(
            one.value == value and any(part.value == operand for part in one.written()) for one in self.quantities
        )

    def adds(self, value: Fraction, operand: Fraction) -> bool:
        """Return whether it computes a value by adding something to an operand."""
        sums = (one for one in self.quantities if one.sign == "+" and one.value == value)
        return any(part.value == operand for one in sums for part in one.written())


def _parts(quantity: Quantity) -> Iterator[int]:
    """Yield the residues of the parts of a sum or of a product."""
    terms = quantity.terms()
    yield from _sums(terms, range(2, len(terms)))
    factors = [factor for factor in quantity.factors() if factor[1].value != 1]
    for part in _subsets(factors, range(2, len(factors))):
        if residue := _product(part):
            yield from (residue, inverse(residue))
    for place, (power, factor) in enumerate(factors):
        rest = _product([*factors[:place], *factors[place + 1 :]])
        if power > 0 and len(factors) > 1:
            yield from _shares(factor, rest)
    if quantity.sign in ("+", "-") and (base := quantity.operands[0]).residue:
        yield from _shares(base, quantity.residue * inverse(base.residue))


def _shares(total: Quantity, ratio: int) -> Iterator[int]:
    """Yield a ratio's products with the parts of a sum without differences."""
    terms = total.terms()
    if len(terms) > 1 and all(sign > 0 for sign, _ in terms):
        yield from (part * ratio % PRIME for part in _sums(terms, range(1, len(terms))))


def _sums(terms: Sequence[tuple[int, Quantity]], sizes: range) -> Iterator[int]:
    return (sum(sign * term.residue for sign, term in part) % PRIME for part in _subsets(terms, sizes))


def _subsets(parts: Sequence[tuple[int, Quantity]], sizes: Iterable[int]) -> Iterator[tuple[tuple[int, Quantity], ...]]:
    return (subset for size in sizes if len(parts) <= _MAX_PARTS for subset in combinations(parts, size))


def _product(factors: Iterable[tuple[int, Quantity]]) -> int:
    """Return the residue of a product; 0 where a factor is 0."""
    residue = 1
    for power, factor in factors:
        if not factor.residue:
            return 0
        residue = residue * (factor.residue if power > 0 else inverse(factor.residue)) % PRIME
    return residue
