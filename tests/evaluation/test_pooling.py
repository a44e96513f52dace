"""Seeds as one: means, and intervals that are wider where seeds differ."""

from collections.abc import Sequence

import pytest

from stepalign.errors import StepalignError
from stepalign.evaluation.metrics import METRICS, Evaluation, Measure
from stepalign.evaluation.pooling import difference, pool


def evaluation(values: Sequence[float], n: int = 4) -> Evaluation:
    """The same value in every metric."""
    measure = Measure(value=sum(values) / len(values), low=0.0, high=1.0, by_problem=tuple(values))
    return Evaluation(
        step=3,
        n=n,
        problem_ids=tuple(f"p{place}" for place in range(len(values))),
        measures=dict.fromkeys(METRICS, measure),
        ties=1,
        resamples=400,
    )


def test_values_are_means_over_seeds_problem_by_problem() -> None:
    pooled = pool([evaluation([0.0, 1.0]), evaluation([0.5, 1.0])])
    assert pooled.measures["avg"].by_problem == (0.25, 1.0)
    assert pooled.measures["avg"].value == pytest.approx(0.625)
    assert (pooled.step, pooled.n, pooled.ties) == (3, 4, 2)


def test_seeds_that_differ_widen_the_interval() -> None:
    alike, apart = pool([evaluation([0.5] * 20)] * 2), pool([evaluation([0.3] * 20), evaluation([0.7] * 20)])
    assert (alike.measures["avg"].low, alike.measures["avg"].high) == pytest.approx((0.5, 0.5))
    assert apart.measures["avg"].low == pytest.approx(0.3)
    assert apart.measures["avg"].high == pytest.approx(0.7)


def test_a_difference_pairs_problems_and_draws_each_sides_seeds() -> None:
    easy_to_hard = [place / 20 for place in range(20)]
    a = [evaluation(easy_to_hard)]
    b = [evaluation([value + 0.05 for value in easy_to_hard])]
    found = difference(a, b)["avg"]
    assert (found.value, found.low, found.high) == pytest.approx((0.05, 0.05, 0.05))
    spread = [
        evaluation([value + 0.15 for value in easy_to_hard]),
        evaluation([value - 0.05 for value in easy_to_hard]),
    ]
    assert difference(a, spread)["avg"].includes_zero


def test_other_problems_or_another_n_cannot_be_pooled() -> None:
    for other in (evaluation([0.5, 0.5, 0.5]), evaluation([0.5, 0.5], n=8)):
        with pytest.raises(StepalignError, match="cannot be pooled"):
            pool([evaluation([0.5, 0.5]), other])
        with pytest.raises(StepalignError, match="cannot be compared"):
            difference([evaluation([0.5, 0.5])], [other])
