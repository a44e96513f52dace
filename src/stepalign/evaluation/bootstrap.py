"""Percentile bootstrap over problems: how far a mean would move had other problems been held out.

Problems are drawn with replacement. A problem's samples stay together, because they agree more with one
another than with other problems' samples. Where every problem has the same value, or there is one problem
only, the interval has no width: the data then show no scatter to judge by. Left out: resampling within a
problem, whose scatter is already part of the problem's value, and bias-corrected intervals.
"""

import numpy as np
from jaxtyping import Float

LEVEL = 0.95
"""The share of resamples that lie inside an interval."""


def resampled_means(
    values: Float[np.ndarray, "problems metrics"], *, resamples: int, seed: int
) -> Float[np.ndarray, "resamples metrics"]:
    """The metrics' means over resampled problems. All metrics of a resample see the same problems."""
    problems = len(values)
    generator = np.random.default_rng(seed)
    counts = generator.multinomial(problems, np.full(problems, 1 / problems), size=resamples)
    means: Float[np.ndarray, "resamples metrics"] = counts @ values / problems
    return means


def interval(
    means: Float[np.ndarray, "resamples metrics"],
) -> tuple[Float[np.ndarray, " metrics"], Float[np.ndarray, " metrics"]]:
    """The lower and upper ends of each metric's 95 % percentile interval."""
    tail = 100 * (1 - LEVEL) / 2
    low, high = np.percentile(means, [tail, 100 - tail], axis=0)
    return low, high
