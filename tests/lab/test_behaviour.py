"""Two kinds of failure told apart, with intervals over problems."""

import pytest

from stepalign.lab.behaviour import BEHAVIOURS, DERIVATIONS, behaviours, operations, read
from stepalign.records import Problem, Rollout

RIGHT = "### Step 1: Add 1 and 2\n1 + 2 = 3\n\n### Step 2: Add 3 and 3\n3 + 3 = 6\n\n### Final Answer:\n\\boxed{6}"
CORRECTED = RIGHT.replace("1 + 2 = 3\n", "1 + 2 = 4\nWait: 1 + 2 = 3\n")
SLIPPED = RIGHT.replace("3 + 3 = 6", "3 + 3 = 7")
WRONG_OPERANDS = RIGHT.replace("Add 1 and 2\n1 + 2 = 3", "Add 2 and 2\n2 + 2 = 4")


def attempt(name: str, problem: str, text: str) -> Rollout:
    return Rollout(id=name, problem_id=problem, completion_ids=(0,), text=text, token_starts=(0,), finish="stop")


def test_wrong_numbers_slips_and_corrections_are_counted_apart() -> None:
    problems = {name: Problem(id=name, statement="?", answer="6", meta={"terms": [1, 2, 3]}) for name in "ab"}
    attempts = [
        attempt("1", "a", RIGHT),
        attempt("2", "a", CORRECTED),
        attempt("3", "b", SLIPPED),
        attempt("4", "b", WRONG_OPERANDS),
    ]
    found = behaviours([attempts], problems, resamples=500, seed=0)
    assert [(found[name].value, found[name].n) for name in BEHAVIOURS] == [(0.75, 2), (0.25, 2), (0.125, 2)]
    # Problems are resampled, not attempts.
    assert f"{next(iter(found.values())):.0%}" == "75% [50%, 100%]"


def test_seeds_that_differ_widen_the_interval() -> None:
    problems = {name: Problem(id=name, statement="?", answer="6", meta={"terms": [1, 2, 3]}) for name in "ab"}
    runs = [[attempt(f"{name}{text}", name, text) for name in "ab"] for text in (RIGHT, WRONG_OPERANDS)]
    numbers = behaviours(runs, problems, resamples=500, seed=0)["takes a derivation's numbers"]
    assert (numbers.value, numbers.low, numbers.high, numbers.over) == (0.5, 0.0, 1.0, "seeds and problems")


@pytest.mark.parametrize(
    ("text", "slips", "uncorrected"),
    [
        ("3 + 4 = 8. Wait: 3 + 4 = 7", 1, 0),
        ("3 + 4 = 8. Wait: 3 + 4 = 6. Wait: 3 + 4 = 7", 1, 0),
        ("3 + 4 = 8. Wait: 3 + 4 = 6.", 1, 1),
        ("3 + 4 = 7. Wait: 3 + 4 = 8.", 0, 1),
    ],
)
def test_the_last_result_of_a_step_is_the_one_that_is_left(text: str, slips: int, uncorrected: int) -> None:
    found = read(text, [3, 4])
    assert (found.slips, found.uncorrected) == (slips, uncorrected)


@pytest.mark.parametrize("terms", range(2, 9))
def test_every_derivation_uses_every_number_once(terms: int) -> None:
    for derivation in DERIVATIONS:
        used = [place for pair in operations(derivation, terms) for place in pair]
        assert sorted(used) == list(range(2 * terms - 2))


def test_a_number_taken_twice_leaves_every_derivation() -> None:
    assert read("2 + 3 = 5\n5 + 3 = 8", [2, 3, 4]).on_derivation is False
    assert read("2 + 3 = 5\n5 + 4 = 9", [2, 3, 4]).on_derivation is True
