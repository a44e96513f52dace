import random

import pytest

from stepalign.errors import StepalignError
from stepalign.evaluation.compare import compare
from stepalign.evaluation.metrics import METRICS, Evaluation, Measure


def evaluation(values: dict[str, float], n: int = 4) -> Evaluation:
    """The same value in every metric."""
    column = tuple(values.values())
    measure = Measure(value=sum(column) / len(column), low=0.0, high=1.0, by_problem=column)
    return Evaluation(
        step=0, n=n, problem_ids=tuple(values), measures=dict.fromkeys(METRICS, measure), ties=0, resamples=1
    )


def test_a_difference_is_second_minus_first() -> None:
    difference = compare(evaluation({"p": 0.25, "q": 0.5}), evaluation({"p": 0.5, "q": 1.0}), bootstrap=500, seed=0)
    assert difference["avg"].value == pytest.approx(0.375)
    # Two problems: a resample is (p, p), (p, q) or (q, q).
    assert difference["avg"].low == pytest.approx(0.25)
    assert difference["avg"].high == pytest.approx(0.5)
    assert difference["avg"].above == 1.0
    assert not difference["avg"].includes_zero


def test_problems_are_paired_by_id_and_not_by_place() -> None:
    a = evaluation({"p": 0.0, "q": 1.0})
    b = evaluation({"q": 1.0, "p": 0.0})
    difference = compare(a, b, bootstrap=200, seed=0)["avg"]
    assert (difference.low, difference.high) == (0.0, 0.0)
    assert difference.above == 0.0
    assert difference.includes_zero


def test_a_common_gain_on_problems_of_all_difficulties_is_seen() -> None:
    """Each adapter's own interval is about ±10 points wide; the paired difference is exact."""
    values = {f"p{i:02}": i / 29 * 0.9 for i in range(30)}
    gain = {problem: value + 0.05 for problem, value in values.items()}
    difference = compare(evaluation(values), evaluation(gain), bootstrap=500, seed=0)["avg"]
    assert difference.low == pytest.approx(0.05)
    assert difference.high == pytest.approx(0.05)


def test_noise_around_nothing_includes_zero() -> None:
    draw = random.Random(0)
    a, b = ({f"p{i:02}": draw.random() for i in range(30)} for _ in range(2))
    difference = compare(evaluation(a), evaluation(b), bootstrap=1000, seed=0)["avg"]
    assert difference.includes_zero
    assert difference.low < difference.value < difference.high
    assert 0 < difference.above < 1


def test_rounding_does_not_pass_for_a_gain() -> None:
    """0.1 + 0.2 against 0.3: equal sums that differ in the last bit."""
    a = evaluation({"p": 0.3, "q": 0.3})
    b = evaluation({"p": 0.1 + 0.2, "q": 0.1 + 0.2})
    assert compare(a, b, bootstrap=100, seed=0)["avg"].above == 0.0
    assert compare(a, b, bootstrap=100, seed=0)["avg"].includes_zero


def test_other_problems_or_another_n_cannot_be_compared() -> None:
    with pytest.raises(StepalignError, match=r"1 only in the first \('p'\); 1 only in the second \('r'\)"):
        compare(evaluation({"p": 0, "q": 1}), evaluation({"q": 1, "r": 0}), bootstrap=10, seed=0)
    with pytest.raises(StepalignError, match="n = 4 and n = 12"):
        compare(evaluation({"p": 0}), evaluation({"p": 0}, n=12), bootstrap=10, seed=0)
