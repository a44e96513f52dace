"""Two adapters on the same problems: a paired bootstrap over problems.

An easy problem is easy for both adapters. Resampling both on the same problems takes that common part out
of the difference, so two adapters whose own intervals overlap may still differ clearly. Left out: a
correction for many comparisons, which is the reader's to make.
"""

import numpy as np
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from stepalign.errors import StepalignError
from stepalign.evaluation.bootstrap import interval, resampled_means
from stepalign.evaluation.metrics import METRICS, Evaluation, Metric
from stepalign.seeding import derive_seed

# A difference of two equal sums of shares can be some 1e-16 off zero.
_ROUNDING = 1e-9


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Difference:
    """By how much the second adapter's metric exceeds the first's, with the 95 % interval."""

    value: float
    low: float
    high: float
    above: float
    """The share of resamples in which the second adapter's value is larger."""

    @property
    def includes_zero(self) -> bool:
        """Whether the interval leaves open that there is no difference."""
        return self.low <= _ROUNDING and self.high >= -_ROUNDING


def compare(a: Evaluation, b: Evaluation, *, bootstrap: int, seed: int) -> dict[Metric, Difference]:
    """The differences b − a, metric by metric.

    Args:
        a: the first adapter's evaluation.
        b: the second's, on the same problems and with the same n.
        bootstrap: how many resamples of the problems stand behind the intervals.
        seed: the run's seed.

    Raises:
        StepalignError: where n or the problems differ.
    """
    if a.n != b.n:
        raise StepalignError(f"evaluations with n = {a.n} and n = {b.n} cannot be compared")
    if set(a.problem_ids) != set(b.problem_ids):
        raise StepalignError(f"not the same problems: {_only_in(a, b, 'first')}; {_only_in(b, a, 'second')}")
    differences = _values(b) - _values(a)
    means = resampled_means(differences, resamples=bootstrap, seed=derive_seed(seed, "bootstrap"))
    low, high = interval(means)
    above = (means > _ROUNDING).mean(axis=0)
    return {
        metric: Difference(
            value=float(differences[:, column].mean()),
            low=float(low[column]),
            high=float(high[column]),
            above=float(above[column]),
        )
        for column, metric in enumerate(METRICS)
    }


def _values(evaluation: Evaluation) -> np.ndarray:
    """[problems, metrics], problems sorted by id."""
    order = np.argsort(np.array(evaluation.problem_ids, dtype=object))
    columns = [evaluation.measures[metric].by_problem for metric in METRICS]
    return np.array(columns, dtype=np.float64).T[order]


def _only_in(a: Evaluation, b: Evaluation, which: str) -> str:
    extra = sorted(set(a.problem_ids) - set(b.problem_ids))
    named = ", ".join(map(repr, extra[:3])) + (", …" if len(extra) > 3 else "")
    return f"{len(extra)} only in the {which}" + (f" ({named})" if extra else "")
