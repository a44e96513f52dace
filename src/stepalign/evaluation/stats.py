"""Intervals: percentile bootstrap over problems, paired, and over seeds and problems.

Problems are resampled with replacement. A problem's samples stay together, because they agree more with one another
than with other problems' samples. A resample of several seeds also resamples the seeds, independently of the problems.
Where all problems have the same value, or there is one problem only, the interval has no width. Left out: resampling
within a problem, because its scatter is already part of the problem's value; bias-corrected intervals.
"""

from collections.abc import Iterable, Iterator
from dataclasses import asdict
from typing import Literal

import numpy as np
from jaxtyping import Float
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from stepalign.seeding import derive_seed

CONFIDENCE = 0.95

# A difference of two equal sums of shares can be some 1e-16 off zero.
_ROUNDING = 1e-9

_MOST_COUNTS = 2**23
"""Counts of problems in resamples that are held at once: 64 MiB, twice."""

Unit = Literal["problems", "seeds and problems"]


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Interval:
    """A value with its 95 % bootstrap interval."""

    value: float
    low: float
    high: float
    n: int
    """Number of problems, rollouts or traces behind the value."""
    over: Unit = "problems"
    """The unit that is resampled."""

    @property
    def includes_zero(self) -> bool:
        """True if the interval contains zero, up to rounding."""
        return self.low <= _ROUNDING and self.high >= -_ROUNDING

    def __format__(self, spec: str) -> str:
        """Format value and interval alike: `f"{interval:.1%}"` is `45.1% [41.9%, 48.5%]`."""
        return f"{self.value:{spec}} [{self.low:{spec}}, {self.high:{spec}}]"


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Difference(Interval):
    """Interval of a paired difference, second minus first."""

    above: float
    """Share of resamples in which the second is higher."""


def resample(num_problems: int, *, resamples: int, seed: int) -> Float[np.ndarray, "resamples problems"]:
    """Count how often each problem is in each resample."""
    return next(_blocks(num_problems, resamples, resamples, seed))


def _blocks(num: int, resamples: int, rows: int, seed: int) -> Iterator[Float[np.ndarray, "rows num"]]:
    """Yield the counts of `resample` in blocks of `rows` resamples. The draws are the same."""
    generator = np.random.default_rng(seed)
    for start in range(0, resamples, rows):
        size = min(rows, resamples - start)
        yield generator.multinomial(num, np.full(num, 1 / num), size=size).astype(float)


def interval(value: float, resampled: Float[np.ndarray, " resamples"], *, n: int, over: Unit = "problems") -> Interval:
    """Put the percentile interval of a resampled statistic around its value.

    Resamples in which the statistic is not finite are left out. Without any other, the interval has no width.
    """
    finite = resampled[np.isfinite(resampled)]
    tail = 100 * (1 - CONFIDENCE) / 2
    low, high = np.percentile(finite, [tail, 100 - tail]) if len(finite) else (value, value)
    return Interval(value=float(value), low=float(low), high=float(high), n=n, over=over)


def pooled_mean(values: Iterable[tuple[str, float]], *, resamples: int = 2000, seed: int = 0) -> Interval:
    """Estimate the mean of values, each with its problem. Those of one problem stay together."""
    sums: dict[str, tuple[float, int]] = {}
    for problem, value in values:
        total, count = sums.get(problem, (0.0, 0))
        sums[problem] = total + value, count + 1
    counts = np.vstack([np.ones(len(sums)), resample(len(sums), resamples=resamples, seed=seed)])
    totals, numbers = (counts @ np.array(list(sums.values()))).T
    means = totals / numbers
    return interval(means[0], means[1:], n=int(numbers[0]))


def bootstrap(values: Float[np.ndarray, "seeds problems metrics"], *, resamples: int, seed: int) -> list[Interval]:
    """Estimate the mean of each metric over seeds and problems. With one seed only the problems are resampled.

    The same `seed` (the run's) and number of problems give the same resampled problems.
    """
    num_seeds, n, _ = values.shape
    means = _resampled_means(values, resamples, seed, "seeds")
    over: Unit = "problems" if num_seeds == 1 else "seeds and problems"
    by_problem = values.mean(axis=0)
    return [interval(by_problem[:, k].mean(), means[:, k], n=n, over=over) for k in range(by_problem.shape[1])]


def paired_bootstrap(
    first: Float[np.ndarray, "seeds problems metrics"],
    second: Float[np.ndarray, "other_seeds problems metrics"],
    *,
    resamples: int,
    seed: int,
    same_seeds: bool = False,
) -> list[Difference]:
    """Estimate by how much the second mean exceeds the first, metric by metric.

    Both sides see the same resampled problems, so that the problems' difficulty does not widen the interval. Each
    side's seeds are resampled by themselves. With `same_seeds` the sides are the same runs at two steps, and a seed is
    resampled with both of its values.
    """
    num_problems = first.shape[1]
    over: Unit = "problems" if len(first) == len(second) == 1 else "seeds and problems"
    if same_seeds or over == "problems":  # problem by problem, so that equal values differ by exactly zero
        change = second - first
        value = np.array([change[:, :, k].mean() for k in range(change.shape[2])])
        resampled = _resampled_means(change, resamples, seed, "both")
    else:
        value = second.mean(axis=(0, 1)) - first.mean(axis=(0, 1))
        resampled = _resampled_means(second, resamples, seed, "second")
        resampled = resampled - _resampled_means(first, resamples, seed, "first")
    above = (resampled > _ROUNDING).mean(axis=0)
    return [
        Difference(**asdict(interval(value[k], resampled[:, k], n=num_problems, over=over)), above=float(above[k]))
        for k in range(len(value))
    ]


def _resampled_means(
    values: Float[np.ndarray, "seeds problems metrics"], resamples: int, seed: int, side: str
) -> Float[np.ndarray, "resamples metrics"]:
    """Return the means of each resample of problems, the same for every `side`, and of the side's seeds."""
    num_seeds, n, _ = values.shape
    rows = max(1, _MOST_COUNTS // n)
    every_counts = _blocks(n, resamples, rows, derive_seed(seed, "bootstrap"))
    if num_seeds == 1:
        means = [counts @ values[0] / n for counts in every_counts]
    else:
        every_seeds = _blocks(num_seeds, resamples, rows, derive_seed(seed, "bootstrap", side))
        means = [
            np.einsum("rs,spm,rp->rm", seeds / num_seeds, values, counts / n, optimize=True)
            for seeds, counts in zip(every_seeds, every_counts, strict=True)
        ]
    return np.concatenate(means)
