"""Percentile bootstrap over problems: how far a mean would move had other problems been held out.

Problems are drawn with replacement. A problem's samples stay together, because they agree more with one
another than with other problems' samples. Where every problem has the same value, or there is one problem
only, the interval has no width: the data then show no scatter to judge by. Left out: resampling within a
problem, whose scatter is already part of the problem's value, and bias-corrected intervals.
"""

import numpy as np
from jaxtyping import Float, Int

LEVEL = 0.95
"""The share of resamples that lie inside an interval."""


def resampled_means(
    values: Float[np.ndarray, "problems metrics"], *, resamples: int, seed: int
) -> Float[np.ndarray, "resamples metrics"]:
    """The metrics' means over resampled problems. All metrics of a resample see the same problems."""
    means: Float[np.ndarray, "resamples metrics"] = draws(len(values), resamples, seed) @ values / len(values)
    return means


def draws(problems: int, resamples: int, seed: int) -> Int[np.ndarray, "resamples problems"]:
    """How often each problem is in each resample."""
    return np.random.default_rng(seed).multinomial(problems, np.full(problems, 1 / problems), size=resamples)


def interval(
    means: Float[np.ndarray, "resamples metrics"],
) -> tuple[Float[np.ndarray, " metrics"], Float[np.ndarray, " metrics"]]:
    """The lower and upper ends of each metric's 95 % percentile interval."""
    tail = 100 * (1 - LEVEL) / 2
    low, high = np.percentile(means, [tail, 100 - tail], axis=0)
    return low, high
