"""Several seeds' evaluations of one condition as one, with intervals over seeds and problems.

Each resample draws seeds with replacement and, independently, problems; a difference draws each side's seeds for itself
and the same problems for both. With one seed only problems are drawn, and the interval says nothing about seeds.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from stepalign.errors import StepalignError
from stepalign.evaluation.bootstrap import draws, interval
from stepalign.evaluation.compare import Difference
from stepalign.evaluation.metrics import METRICS, Evaluation, Measure, Metric
from stepalign.seeding import derive_seed


def pool(evaluations: Sequence[Evaluation], *, seed: int = 0) -> Evaluation:
    """One evaluation whose values are the seeds' means.

    Raises:
        StepalignError: they differ in step, n or problems.
    """
    first = evaluations[0]
    values = _values(evaluations)
    means = _resampled(values, _counts(len(first.problem_ids), first.resamples, seed), seed, "seeds")
    low, high = interval(means)
    by_problem = values.mean(axis=0)
    return Evaluation(
        step=first.step,
        n=first.n,
        problem_ids=first.problem_ids,
        measures={
            metric: Measure(
                value=float(by_problem[:, column].mean()),
                low=float(low[column]),
                high=float(high[column]),
                by_problem=tuple(by_problem[:, column].tolist()),
            )
            for column, metric in enumerate(METRICS)
        },
        ties=sum(evaluation.ties for evaluation in evaluations),
        resamples=first.resamples,
        seed=seed,
    )


def difference(a: Sequence[Evaluation], b: Sequence[Evaluation], *, seed: int = 0) -> dict[Metric, Difference]:
    """By how much the second condition's seeds exceed the first's, metric by metric.

    Raises:
        StepalignError: n or problems differ.
    """
    first, second = _values(a), _values(b)
    if (a[0].n, a[0].problem_ids) != (b[0].n, b[0].problem_ids):
        raise StepalignError("conditions evaluated with another n or on other problems cannot be compared")
    problems = _counts(len(a[0].problem_ids), a[0].resamples, seed)
    means = _resampled(second, problems, seed, "second") - _resampled(first, problems, seed, "first")
    low, high = interval(means)
    value = second.mean(axis=(0, 1)) - first.mean(axis=(0, 1))
    return {
        metric: Difference(
            value=float(value[column]),
            low=float(low[column]),
            high=float(high[column]),
            above=float((means[:, column] > 0).mean()),
        )
        for column, metric in enumerate(METRICS)
    }


def _values(evaluations: Sequence[Evaluation]) -> Float[np.ndarray, "seeds problems metrics"]:
    first = evaluations[0]
    for other in evaluations[1:]:
        if (other.n, other.problem_ids) != (first.n, first.problem_ids):
            raise StepalignError("seeds evaluated with another n or on other problems cannot be pooled")
    return np.array([[one.measures[metric].by_problem for metric in METRICS] for one in evaluations]).swapaxes(1, 2)


def _counts(problems: int, resamples: int, seed: int) -> Float[np.ndarray, "resamples problems"]:
    return draws(problems, resamples, derive_seed(seed, "bootstrap")) / problems


def _resampled(
    values: Float[np.ndarray, "seeds problems metrics"],
    problems: Float[np.ndarray, "resamples problems"],
    seed: int,
    name: str,
) -> Float[np.ndarray, "resamples metrics"]:
    seeds = draws(len(values), len(problems), derive_seed(seed, "bootstrap", name)) / len(values)
    means: Float[np.ndarray, "resamples metrics"] = np.einsum("rs,spm,rp->rm", seeds, values, problems, optimize=True)
    return means
