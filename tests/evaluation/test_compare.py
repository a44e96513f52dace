import random
from collections.abc import Sequence

import pytest

from stepalign.errors import StepalignError
from stepalign.evaluation.metrics import METRICS, Evaluation, compare, pool
from stepalign.evaluation.stats import Interval


def evaluation(values: dict[str, float], n: int = 4) -> Evaluation:
    """The same value in every metric."""
    column = tuple(values.values())
    measure = Interval(value=sum(column) / len(column), low=0.0, high=1.0, n=len(column))
    return Evaluation(
        step=3,
        n=n,
        problem_ids=tuple(values),
        measures=dict.fromkeys(METRICS, measure),
        by_problem=dict.fromkeys(METRICS, column),
        ties=1,
        resamples=400,
    )


def seed_of(values: Sequence[float], n: int = 4) -> Evaluation:
    """One seed's evaluation of problems p00, p01, …"""
    return evaluation({f"p{place:02}": value for place, value in enumerate(values)}, n)


def test_a_difference_is_second_minus_first() -> None:
    difference = compare(evaluation({"p": 0.25, "q": 0.5}), evaluation({"p": 0.5, "q": 1.0}), resamples=500, seed=0)
    assert difference["avg"].value == pytest.approx(0.375)
    # Two problems: a resample is (p, p), (p, q) or (q, q).
    assert difference["avg"].low == pytest.approx(0.25)
    assert difference["avg"].high == pytest.approx(0.5)
    assert difference["avg"].above == 1.0
    assert not difference["avg"].includes_zero


def test_problems_are_paired_by_id_and_not_by_place() -> None:
    a = evaluation({"p": 0.0, "q": 1.0})
    b = evaluation({"q": 1.0, "p": 0.0})
    difference = compare(a, b, resamples=200, seed=0)["avg"]
    assert (difference.low, difference.high) == (0.0, 0.0)
    assert difference.above == 0.0
    assert difference.includes_zero


def test_a_common_gain_on_problems_of_all_difficulties_is_seen() -> None:
    """Each adapter's own interval is about ±10 points wide; the paired difference is exact."""
    values = {f"p{i:02}": i / 29 * 0.9 for i in range(30)}
    gain = {problem: value + 0.05 for problem, value in values.items()}
    difference = compare(evaluation(values), evaluation(gain), resamples=500, seed=0)["avg"]
    assert difference.low == pytest.approx(0.05)
    assert difference.high == pytest.approx(0.05)


def test_noise_around_nothing_includes_zero() -> None:
    draw = random.Random(0)
    a, b = ({f"p{i:02}": draw.random() for i in range(30)} for _ in range(2))
    difference = compare(evaluation(a), evaluation(b), resamples=1000, seed=0)["avg"]
    assert difference.includes_zero
    assert difference.low < difference.value < difference.high
    assert 0 < difference.above < 1


def test_rounding_does_not_pass_for_a_gain() -> None:
    """0.1 + 0.2 against 0.3: equal sums that differ in the last bit."""
    a = evaluation({"p": 0.3, "q": 0.3})
    b = evaluation({"p": 0.1 + 0.2, "q": 0.1 + 0.2})
    assert compare(a, b, resamples=100, seed=0)["avg"].above == 0.0
    assert compare(a, b, resamples=100, seed=0)["avg"].includes_zero


def test_other_problems_or_another_n_cannot_be_compared() -> None:
    with pytest.raises(StepalignError, match=r"1 only in the first \('p'\); 1 only in the second \('r'\)"):
        compare(evaluation({"p": 0, "q": 1}), evaluation({"q": 1, "r": 0}), resamples=10, seed=0)
    with pytest.raises(StepalignError, match="n = 4 and n = 12"):
        compare(evaluation({"p": 0}), evaluation({"p": 0}, n=12), resamples=10, seed=0)


def test_pooled_values_are_means_over_seeds_problem_by_problem() -> None:
    pooled = pool([seed_of([0.0, 1.0]), seed_of([0.5, 1.0])])
    assert pooled.by_problem["avg"] == (0.25, 1.0)
    assert pooled.measures["avg"].value == pytest.approx(0.625)
    assert pooled.measures["avg"].over == "seeds and problems"
    assert (pooled.step, pooled.n, pooled.ties) == (3, 4, 2)


def test_seeds_that_differ_widen_the_interval() -> None:
    alike, apart = pool([seed_of([0.5] * 20)] * 2), pool([seed_of([0.3] * 20), seed_of([0.7] * 20)])
    assert (alike.measures["avg"].low, alike.measures["avg"].high) == pytest.approx((0.5, 0.5))
    assert apart.measures["avg"].low == pytest.approx(0.3)
    assert apart.measures["avg"].high == pytest.approx(0.7)


def test_a_difference_over_seeds_pairs_problems_and_resamples_each_sides_seeds() -> None:
    easy_to_hard = [place / 20 for place in range(20)]
    a = [seed_of(easy_to_hard)]
    b = [seed_of([value + 0.05 for value in easy_to_hard])] * 2
    difference = compare(a, b, resamples=400, seed=0)["avg"]
    assert (difference.value, difference.low, difference.high) == pytest.approx((0.05, 0.05, 0.05))
    spread = [seed_of([value + 0.15 for value in easy_to_hard]), seed_of([value - 0.05 for value in easy_to_hard])]
    assert compare(a, spread, resamples=400, seed=0)["avg"].includes_zero


def test_seeds_on_other_problems_or_with_another_n_cannot_be_pooled() -> None:
    for other in (seed_of([0.5, 0.5, 0.5]), seed_of([0.5, 0.5], n=8)):
        with pytest.raises(StepalignError, match="cannot be pooled"):
            pool([seed_of([0.5, 0.5]), other])
        with pytest.raises(StepalignError, match="cannot be compared"):
            compare([seed_of([0.5, 0.5])], [other], resamples=10, seed=0)
