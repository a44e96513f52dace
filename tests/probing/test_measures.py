import itertools
import random

import numpy as np
import pytest

from stepalign.probing.measures import _auroc, measure, rollout_means, token_regions
from stepalign.records import Credit, Grade, Mark, Rollout

TEXT = "### Step 1: a\n1\n### Step 2: b\n2\n### Step 3: c\n3\n### Final Answer:\n\\boxed{3}"
STARTS = tuple(TEXT.index(part) for part in ("### Step 1", "1\n###", "### Step 2", "2\n###", "### Step 3", "3\n###"))
STARTS = (*STARTS, TEXT.index("### Final"), len(TEXT))
"""Two tokens a step, heading and number; one for the answer and an EOS that counts for it."""


def rollout(name: str, *, problem: str = "p", correct: bool = False) -> Rollout:
    return Rollout(
        id=name, problem_id=problem, completion_ids=tuple(range(8)), text=TEXT, token_starts=STARTS, finish="stop",
        grade=Grade(correct=correct, outcome="correct" if correct else "wrong"),
    )  # fmt: skip


def mark(name: str, step: int = 2) -> Mark:
    start = STARTS[2 * step - 1]
    return Mark(rollout_id=name, step=step, start=start, end=start + 1, departure=start, source="planted")


def credit(name: str, *values: float, context: str = "c") -> Credit:
    return Credit(rollout_id=name, context=context, prompt="", student=(-1.0,) * 8, teacher=[v - 1 for v in values])


def test_one_rollouts_measures_are_those_done_by_hand() -> None:
    found = rollout_means(rollout("r"), credit("r", 1, -1, 2, -4, 0.5, -0.5, 1, 1), mark("r"))
    assert found == pytest.approx(
        {
            "first_token": 1,
            "before": 2 / 3,
            "before_negative": 1 / 3,
            "at": -4,
            "at_negative": 1,
            "departure": -4,
            "departure_negative": 1,
            "after": 2 / 4,
            "after_negative": 1 / 4,
            "rest": 4 / 7,
            "rest_negative": 2 / 7,
            "diffuseness": 1 / 5,  # of −1 and −4 up to the end of step 2
        }
    )
    pooled = measure([rollout("r")], [mark("r")], [credit("r", 1, -1, 2, -4, 0.5, -0.5, 1, 1)], seed=0).contexts["c"]
    assert {name: interval.value for name, interval in pooled.items()} == pytest.approx(
        {**found, "contrast": 4 / 7 + 4, "first_error": 1, "auroc": 1}
    )


def test_a_correct_rollout_is_measured_as_a_whole() -> None:
    found = rollout_means(rollout("r", correct=True), credit("r", 1, -1, 2, 2, 2, 2, 2, 2), None)
    assert found == pytest.approx({"first_token": 1, "correct": 12 / 8, "correct_negative": 1 / 8})


def test_a_wrong_rollout_that_nobody_marked_counts_for_its_first_token_only() -> None:
    assert rollout_means(rollout("r"), credit("r", 3, *[-9] * 7), None) == {"first_token": 3}


def test_an_error_in_the_first_step_says_nothing_of_diffuseness() -> None:
    assert "diffuseness" not in rollout_means(rollout("r"), credit("r", *[-1] * 8), mark("r", step=1))


def test_a_set_is_pooled_over_tokens_and_its_interval_is_over_problems() -> None:
    rollouts = [rollout("a", correct=True), rollout("b", correct=True), rollout("c", problem="q", correct=True)]
    credits = [credit("a", *[1.0] * 8), credit("b", *[1.0] * 8), credit("c", *[4.0] * 8)]
    found = measure(rollouts, [], credits, seed=0).contexts["c"]["correct"]
    assert (found.value, found.n) == (2.0, 3)
    # Two problems: every resample has one, the other or both of them, a and b always together.
    assert (found.low, found.high) == (1.0, 4.0)


def test_equal_seeds_give_equal_intervals_and_all_contexts_see_the_same_resamples() -> None:
    draws = random.Random(0)
    rollouts = [rollout(str(k), problem=str(k), correct=True) for k in range(20)]
    credits = [
        credit(one.id, *values, context=context)
        for one in rollouts
        for values in [[draws.gauss(0, 1) for _ in range(8)]]
        for context in ("one", "two")
    ]
    found = measure(rollouts, [], credits, seed=3)
    assert found == measure(rollouts, [], credits, seed=3)
    assert found.contexts["one"] == found.contexts["two"]
    assert found.contexts["one"]["correct"].low < found.contexts["one"]["correct"].value


def test_credit_as_a_process_reward_against_chance_and_length() -> None:
    rollouts = [rollout("hit"), rollout("miss"), rollout("tie"), rollout("right", problem="q", correct=True)]
    marks = [mark("hit"), mark("miss"), mark("tie")]
    credits = [
        credit("hit", 0, 0, 0, -5, 0, -1, 0, 0),
        credit("miss", 0, 0, 0, -1, 0, -5, 0, 0),
        credit("tie", 0, -2, 0, -2, 0, 0, 0, 0),
        credit("right", *[0.0] * 8),
    ]
    found = measure(rollouts, marks, credits, seed=0)
    assert found.contexts["c"]["first_error"].value == pytest.approx((1 + 0 + 1 / 2) / 3)
    # Wrong steps score −5, −1, −2; right ones 0, 0, −2 before them and four of 0 in the correct rollout.
    assert found.contexts["c"]["auroc"].value == pytest.approx((7 + 6 + 6.5) / 21)
    assert found.baselines["chance"]["first_error"].value == pytest.approx(1 / 4)
    assert found.baselines["chance"]["auroc"].value == 0.5
    assert found.baselines["length"]["first_error"].value == pytest.approx(1 / 4)  # all steps have two tokens
    assert found.baselines["length"]["auroc"].value == 0.5


def test_the_area_is_that_of_all_pairs_however_often_steps_are_drawn() -> None:
    generator = np.random.default_rng(0)
    scores, wrong = generator.integers(0, 5, 30).astype(float), generator.random(30) < 0.3
    weights = generator.integers(0, 3, (4, 30)).astype(float)
    for weight, area in zip(weights, _auroc(scores, wrong, weights), strict=True):
        below = total = 0.0
        for i, j in itertools.product(range(30), repeat=2):
            if wrong[i] and not wrong[j]:
                pair = weight[i] * weight[j]
                below += pair * ((scores[i] < scores[j]) + (scores[i] == scores[j]) / 2)
                total += pair
        assert area == pytest.approx(below / total)


def test_what_cannot_be_measured_is_not_there() -> None:
    found = measure([rollout("r", correct=True)], [], [credit("r", *[1.0] * 8)], seed=0)
    assert set(found.contexts["c"]) == {"first_token", "correct", "correct_negative"}
    assert found.baselines == {"chance": {}, "length": {}}


def test_regions_are_the_steps_in_tokens_and_what_is_before_at_and_after() -> None:
    known = mark("r")
    start = STARTS.index(known.start)
    regions = token_regions(rollout("r"), known)
    assert regions.steps == ((0, 2), (2, 4), (4, 6), (6, 8))
    assert (regions.error, regions.departure, regions.wrong_step) == ((start, start + 1), start, 2)
    assert [regions.place_of(position) for position in range(2, 5)] == ["before", "at", "after"]
    assert [regions.step_of(position) for position in range(8)] == [1, 1, 2, 2, 3, 3, 4, 4]
    unmarked = token_regions(rollout("r"), None)
    assert (unmarked.error, unmarked.wrong_step, unmarked.place_of(0)) == (None, None, "")
