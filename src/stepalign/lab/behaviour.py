"""Errors in attempts at the lab's sums: wrong operands, slipped results, slips left wrong.

Avg@n alone does not tell what a condition taught. An attempt is right if it adds the numbers of a derivation and leaves
no slip uncorrected, so it can fail in two ways.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
from jaxtyping import Float

from stepalign.evaluation.stats import Interval, bootstrap
from stepalign.records import Problem, Rollout

DERIVATIONS = ("left to right", "right to left", "pairs")
"""The names that `data.sums` gives them."""


@dataclass(frozen=True)
class Attempt:
    """Counts read from an attempt's equations, corrections aside."""

    equations: int
    slips: int
    """Results that are wrong where they first stand."""
    uncorrected: int
    """Steps whose last result is wrong."""
    on_derivation: bool
    """True if the numbers added are those of a derivation, the attempt's own slips carried on."""


BEHAVIOURS: dict[str, Callable[[Attempt], float]] = {
    "takes a derivation's numbers": lambda attempt: float(attempt.on_derivation),
    "results slipped": lambda attempt: attempt.slips / max(attempt.equations, 1),
    "results left wrong": lambda attempt: attempt.uncorrected / max(attempt.equations, 1),
}
"""Shares: of attempts, of an attempt's results, of its results."""

_EQUATION = re.compile(r"(Wait: )?(\d+) \+ (\d+) = (\d+)")


def behaviours(
    runs: Sequence[Sequence[Rollout]], problems: Mapping[str, Problem], *, resamples: int, seed: int
) -> dict[str, Interval]:
    """Estimate each of `BEHAVIOURS` from the attempts of each run at the same sums.

    Intervals are over problems, and over runs where there are several.
    """
    values = np.array([_values(rollouts, problems) for rollouts in runs])
    return dict(zip(BEHAVIOURS, bootstrap(values, resamples=resamples, seed=seed), strict=True))


def _values(rollouts: Sequence[Rollout], problems: Mapping[str, Problem]) -> Float[np.ndarray, "problems behaviours"]:
    """Return the mean shares of each problem's attempts, in the order of the problems' ids."""
    shares: dict[str, list[list[float]]] = {rollout.problem_id: [] for rollout in rollouts}
    for rollout in rollouts:
        attempt = read(rollout.text, cast(list[int], problems[rollout.problem_id].meta["terms"]))
        shares[rollout.problem_id].append([share(attempt) for share in BEHAVIOURS.values()])
    return np.array([np.mean(shares[name], axis=0) for name in sorted(shares)])


def read(text: str, terms: Sequence[int]) -> Attempt:
    """Read an attempt's equations and compare them with the derivations."""
    steps: list[tuple[int, int, int]] = []
    slips = 0
    for correction, *numbers in _EQUATION.findall(text):
        left, right, result = map(int, numbers)
        if correction and steps:
            steps[-1] = (left, right, result)
        else:
            slips += left + right != result
            steps.append((left, right, result))
    values = [*terms, *(result for *_, result in steps)]
    used = [step[:2] for step in steps]
    on_derivation = any(
        len(steps) == len(pairs) and used == [(values[a], values[b]) for a, b in pairs]
        for pairs in (operations(name, len(terms)) for name in DERIVATIONS)
    )
    uncorrected = sum(left + right != result for left, right, result in steps)
    return Attempt(len(steps), slips, uncorrected, on_derivation)


def operations(derivation: str, terms: int) -> list[tuple[int, int]]:
    """List a derivation's additions by place: places of terms first, then of each step's result."""
    if derivation == "left to right":
        return [(0, 1), *((terms + k, k + 2) for k in range(terms - 2))]
    if derivation == "right to left":
        return [(terms - 2, terms - 1), *((terms - 3 - k, terms + k) for k in range(terms - 2))]
    additions: list[tuple[int, int]] = []
    level = list(range(terms))
    while len(level) > 1:
        pairs = list(zip(level[::2], level[1::2], strict=False))
        level = [terms + len(additions) + k for k in range(len(pairs))] + level[len(pairs) * 2 :]
        additions += pairs
    return additions
