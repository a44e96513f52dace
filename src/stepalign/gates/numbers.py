"""Right numbers: operands of a solution's computations that come from the problem or from an earlier result.

In a sum of given terms each number may be used once, and a step's result is one more. Elsewhere a number may be used
again. Left out: whether the right ones of the problem's numbers are combined, which the answer tells.
"""

from collections import Counter
from fractions import Fraction

from stepalign.critics.arithmetic.continuation import problem_terms
from stepalign.critics.arithmetic.critic import Attempt
from stepalign.critics.arithmetic.equations import find_equations
from stepalign.critics.arithmetic.quantities import CONSTANTS
from stepalign.records import Problem, Rollout


def right_numbers(problem: Problem, rollout: Rollout) -> float | None:
    """Return the share of operands that are right; None without a computation."""
    terms = problem_terms(problem.meta)
    return _in_sum(terms, rollout) if terms else _known(Attempt(problem, rollout), rollout)


def _computations(rollout: Rollout) -> list[tuple[list[Fraction], list[Fraction]]]:
    """Return the operands and the stated values of each chain of equations that computes something.

    A chain without a value, like `5/0 = 3/0`, is left out.
    """
    found = []
    for chain in find_equations(rollout.text):
        operands = [number.value for part in chain.parts if part.computes for number in part.literals]
        stated = [value for part in chain.parts for value in part.values()]
        if operands and stated:
            found.append((operands, stated))
    return found


def _known(attempt: Attempt, rollout: Rollout) -> float | None:
    known, right, total = set(attempt.given | CONSTANTS), 0, 0
    for operands, stated in _computations(rollout):
        right, total = right + sum(abs(value) in known or value in known for value in operands), total + len(operands)
        known |= {*stated}
    return right / total if total else None


def _in_sum(terms: tuple[Fraction, ...], rollout: Rollout) -> float | None:
    left, right, total = Counter(terms), 0, 0
    before: tuple[list[Fraction], Fraction] | None = None
    for operands, stated in _computations(rollout):
        if before and Counter(operands) == Counter(before[0]):  # the same step once more, with another result
            left[before[1]] -= 1
        else:
            total += len(operands)
            for value in operands:
                right += left[value] > 0
                left[value] -= 1
        left = +left
        left[stated[-1]] += 1
        before = operands, stated[-1]
    return right / total if total else None
