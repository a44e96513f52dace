"""The first departure from a reference solution's derivation."""

import pytest

from stepalign.critics.arithmetic.departure import first_departure
from stepalign.critics.arithmetic.locators import by_derivation
from stepalign.records import Grade, Problem, Rollout

PENS = Problem(
    id="pens",
    statement="A shop sells 24 red pens and 15 blue ones a day, for 3 dollars each. What does it take in 7 days?",
    answer="819",
    solution="It sells 24 + 15 = <<24+15=39>>39 pens a day.\nThat is 39 * 3 = <<39*3=117>>117 dollars.\n"
    "In 7 days it takes 117 * 7 = <<117*7=819>>819 dollars.\n#### 819",
)
CUBE = Problem(
    id="cube",
    statement="The first side takes 9 minutes, the next ones 20 minutes, the last ones 9 minutes. How long is it?",
    answer="38",
    solution="It takes 9 + 20 + 9 = 38 minutes.",
)
WATER = Problem(
    id="water",
    statement="Two girls each got 1/6 of 24 liters. Then a boy got 6 liters. How many liters were left?",
    answer="10",
    solution="A girl got 24 * 1/6 = 4.\nBoth got 4 * 2 = 8.\nAll got 8 + 6 = 14 liters.\n24 - 14 = 10 were left.",
)
REST = ["39 * 3 = 117", "117 * 7 = 819"]


@pytest.mark.parametrize(
    ("problem", "steps", "expected"),
    [
        (PENS, ["24 + 15 = 39", "39 - 3 = 36", "36 * 7 = 252"], 2),  # a quantity that the reference does not have
        (PENS, ["24 * 3 = 72", "15 * 3 = 45", "72 + 45 = 117", "117 - 7 = 110"], 4),  # another way, until then
        (PENS, ["24 - 15 = 9", "9 + 2 * 15 = 39", "39 + 3 = 42", "42 * 7 = 294"], 3),  # a detour that comes back
        (PENS, ["24 + 15 = 38", "38 * 3 = 114", "114 * 7 = 798"], 1),  # a false equation
        (PENS, ["24 * 3 = 72 dollars a day", "72 * 7 = 504"], 1),  # a part instead of the whole
        (PENS, ["24 + 15 = 39", *REST, "819 + 24 = 843"], 4),  # on behind the answer
        (PENS, ["24 + 15 = 39", "A week has 5 working days.", "39 * 3 * 5 = 585"], 2),  # a number from nowhere
        (PENS, ["24 + 15 = 39", "Takings = pens - price", "Takings = 39 - 3 = 36"], 2),  # a formula in words
        (PENS, ["24 + 15 = 39", "39 * 3 = 117", "So it is $117."], 2),  # an unfinished way: its last result
        (PENS, ["I add the pens.", "So it is a lot."], 2),  # nothing to judge: the last step
        (CUBE, ["First 9, then 20.", "The last sides take 9.", "The top takes 9.", "9 + 20 + 9 + 9 = 47"], 3),
        (WATER, ["24 * 1/6 = 4", "4 + 6 = 10 taken", "24 - 10 = 14"], 2),  # 10 by chance: not the reference's 24 - 14
    ],
)
def test_the_first_departure(problem: Problem, steps: list[str], expected: int) -> None:
    departure = first_departure(problem, steps)
    assert departure is not None
    assert departure.step == expected


@pytest.mark.parametrize(
    "steps",
    [
        ["24 + 15 = 39", *REST],
        ["24 * 3 = 72", "15 * 3 = 45", "72 * 7 = 504", "45 * 7 = 315", "504 + 315 = 819"],
        ["3 * 7 = 21", "21 * 24 = 504", "21 * 15 = 315", "504 + 315 = 819"],
    ],
)
def test_ways_to_the_answer_do_not_depart(steps: list[str]) -> None:
    assert first_departure(PENS, steps, is_whole=False) is None


def test_without_a_solution_equations_and_origins_decide() -> None:
    bare = Problem(id="bare", statement=PENS.statement, answer=PENS.answer)
    departure = first_departure(bare, ["24 - 15 = 9", "There are 50 pens.", "50 * 3 = 150"])
    assert departure is not None
    assert departure.step == 2


@pytest.mark.parametrize(
    ("text", "finish", "correct", "expected"),
    [
        ("### Step 1: Add\n24 + 15 = 39\n\n### Step 2: Go on\n39 *", "length", False, 2),
        ("### Step 1: Add\n24 + 16 = 40\n\n### Step 2: Go on\n40 *", "length", False, 1),
        ("### Step 1: Add\n24 + 15 = 38\n\n### Final Answer:\n\\boxed{819}", "stop", True, 1),
        ("### Step 1: Add\n24 - 15 = 9\n\n### Final Answer:\n\\boxed{819}", "stop", True, None),
        ("I do not know.", "stop", False, 1),
    ],
)
def test_grade_and_end_of_a_rollout_are_used(text: str, finish: str, correct: bool, expected: int | None) -> None:
    grade = Grade(correct=correct, outcome="correct" if correct else "wrong")
    values = {"id": "r", "problem_id": "pens", "completion_ids": (), "token_starts": (), "text": text, "finish": finish}
    assert by_derivation(PENS, Rollout(**values, grade=grade)).step == expected


def test_a_long_solution_takes_linear_memory() -> None:
    lines = ["24 + 15 = 39"] + [f"{39 * 2**k} + {39 * 2**k} = {39 * 2 ** (k + 1)}" for k in range(200)]
    departure = first_departure(PENS, lines)
    assert departure is not None
    assert departure.step == 2
