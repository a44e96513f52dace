import numpy as np
import pytest

from stepalign.evaluation import stats
from stepalign.evaluation.stats import Interval, bootstrap, interval, paired_bootstrap, pooled_mean, resample


def test_a_resample_has_as_many_problems_as_there_are() -> None:
    counts = resample(7, resamples=50, seed=0)
    assert counts.shape == (50, 7)
    assert (counts.sum(axis=1) == 7).all()
    assert (resample(7, resamples=50, seed=0) == counts).all()
    assert (resample(7, resamples=50, seed=1) != counts).any()


def test_resamples_without_the_statistic_are_left_out() -> None:
    found = interval(0.5, np.array([np.nan, 0.25, 0.75, np.inf]), n=3)
    assert found.low == pytest.approx(0.2625)
    assert found.high == pytest.approx(0.7375)
    assert interval(0.5, np.array([np.nan]), n=3) == Interval(value=0.5, low=0.5, high=0.5, n=3)


def test_an_interval_names_what_is_resampled() -> None:
    values = np.random.default_rng(0).random((3, 10, 1))
    assert bootstrap(values[:1], resamples=10, seed=0)[0].over == "problems"
    assert bootstrap(values, resamples=10, seed=0)[0].over == "seeds and problems"
    assert paired_bootstrap(values[:1], values[:1], resamples=10, seed=0)[0].over == "problems"
    assert paired_bootstrap(values[:1], values, resamples=10, seed=0)[0].over == "seeds and problems"


def test_metrics_of_a_resample_see_the_same_problems() -> None:
    values = np.random.default_rng(0).random((1, 10, 1))
    first, second = bootstrap(np.concatenate([values, 1 - values], axis=2), resamples=100, seed=0)
    assert (1 - second.high, 1 - second.low) == pytest.approx((first.low, first.high))


def test_a_pooled_mean_weighs_values_alike_and_keeps_a_problem_together() -> None:
    found = pooled_mean([("a", 1.0), ("a", 1.0), ("a", 1.0), ("b", 0.0)])
    assert (found.value, found.low, found.high, found.n) == (0.75, 0.0, 1.0, 4)
    assert pooled_mean([("a", 0.0), ("a", 1.0)]) == Interval(value=0.5, low=0.5, high=0.5, n=2)
    each = [(str(k), float(k % 3)) for k in range(12)]
    alike = np.array([value for _, value in each])[None, :, None]
    assert pooled_mean(each).low == pytest.approx(bootstrap(alike, resamples=2000, seed=0)[0].low, abs=0.1)


@pytest.mark.parametrize(("low", "high", "includes"), [(-0.1, 0.1, True), (1e-12, 0.1, True), (0.01, 0.1, False)])
def test_an_interval_that_touches_zero_includes_it(low: float, high: float, includes: bool) -> None:
    assert Interval(value=0.05, low=low, high=high, n=1).includes_zero == includes


def test_a_gain_that_every_seed_has_is_certain_though_the_seeds_differ() -> None:
    before = np.array([[[0.2]] * 5, [[0.4]] * 5])
    apart = paired_bootstrap(before, before + 0.1, resamples=200, seed=0)[0]
    (same,) = paired_bootstrap(before, before + 0.1, resamples=200, seed=0, same_seeds=True)
    assert (apart.low < 0, apart.over) == (True, "seeds and problems")
    assert (same.low, same.high, same.over) == (pytest.approx(0.1), pytest.approx(0.1), "seeds and problems")


def test_many_resamples_are_drawn_in_blocks_with_the_same_result(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).random((2, 10, 2))
    sides = [(values[:1], values[1:]), (values, values[:1])]
    whole = [paired_bootstrap(*side, resamples=50, seed=3) for side in sides]
    monkeypatch.setattr(stats, "_MOST_COUNTS", 70)
    for side, differences in zip(sides, whole, strict=True):
        for one, other in zip(differences, paired_bootstrap(*side, resamples=50, seed=3), strict=True):
            assert (one.low, one.high) == pytest.approx((other.low, other.high), abs=1e-12)
