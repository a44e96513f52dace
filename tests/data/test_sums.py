import re
from collections import Counter
from typing import Any

import pytest

from stepalign import config
from stepalign.data import load
from stepalign.data.sums import derivations
from stepalign.errors import StepalignError
from stepalign.records import Problem

SHAPES: list[dict[str, Any]] = [
    {"terms": terms, "digits": digits, "subtract": subtract}
    for terms in (2, 3, 4, 5, 12)
    for digits in (1, 2, 3, 6)
    for subtract in (False, True)
]


def terms_of(problem: Problem) -> list[int]:
    terms = problem.meta["terms"]
    assert isinstance(terms, list)
    return [int(str(term)) for term in terms]


def evaluated(expression: str) -> int:
    """A sum worked out from its text; negative numbers do not match."""
    assert re.fullmatch(r"\d+( [+-] \d+)*", expression), expression
    return sum(int(term) for term in re.findall(r"[+-]?\d+", expression.replace(" ", "")))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_equation_of_every_solution_is_correct_and_without_negative_numbers(
    shape: dict[str, Any],
) -> None:
    count = 40 if shape["terms"] > 2 or shape["digits"] > 1 else 20
    for problem in load(config.SumsConfig(count=count, **shape)).problems:
        equations = re.findall(r"^(.*) = (.*)$", problem.solution, re.MULTILINE)
        assert equations, problem
        for left, right in equations:
            assert right.isdigit(), problem
            assert evaluated(left) == int(right), problem


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_statement_answer_and_meta_tell_the_same_sum(shape: dict[str, Any]) -> None:
    for problem in load(config.SumsConfig(count=20, **shape)).problems:
        terms = terms_of(problem)
        assert problem.statement == "Compute " + problem.statement[8:-1] + "."
        assert evaluated(problem.statement[8:-1]) == sum(terms) == int(problem.answer)
        assert len(terms) == shape["terms"]
        assert all(1 <= abs(term) < 10 ** shape["digits"] for term in terms)
        assert (min(terms) < 0) == shape["subtract"]
        assert problem.solution.endswith(f"\n\n### Final Answer:\n\\boxed{{{problem.answer}}}")


def test_from_left_to_right_nothing_goes_below_zero() -> None:
    for problem in load(config.SumsConfig(count=500, subtract=True)).problems:
        terms = terms_of(problem)
        assert all(sum(terms[: k + 1]) >= 0 for k in range(len(terms)))


def test_the_derivations_of_one_sum() -> None:
    found = {
        name: [(step.text, step.equation) for step in steps] for name, steps in derivations([47, 38, -15, 62]).items()
    }
    assert found == {
        "left to right": [
            ("Add 47 and 38", "47 + 38 = 85"),
            ("Take 15 from 85", "85 - 15 = 70"),
            ("Add 70 and 62", "70 + 62 = 132"),
        ],
        "right to left": [
            ("Take 15 from 62", "62 - 15 = 47"),
            ("Add 38 and 47", "38 + 47 = 85"),
            ("Add 47 and 85", "47 + 85 = 132"),
        ],
        "pairs": [
            ("Add 47 and 38", "47 + 38 = 85"),
            ("Take 15 from 62", "62 - 15 = 47"),
            ("Add 85 and 47", "85 + 47 = 132"),
        ],
        "places": [
            ("Work out the tens", "40 + 30 - 10 + 60 = 120"),
            ("Work out the ones", "7 + 8 - 5 + 2 = 12"),
            ("Add 120 and 12", "120 + 12 = 132"),
        ],
    }


def test_a_part_that_is_still_to_be_taken_away_says_so() -> None:
    steps = derivations([90, -40, -7])["right to left"]
    assert [(step.text, step.equation) for step in steps] == [
        ("Add 40 and 7 (still to be taken away)", "40 + 7 = 47"),
        ("Take 47 from 90", "90 - 47 = 43"),
    ]


def test_most_solutions_do_not_work_from_left_to_right() -> None:
    names = Counter(problem.meta["derivation"] for problem in load(config.SumsConfig(count=400)).problems)
    assert set(names) == {"left to right", "right to left", "pairs", "places"}
    assert names["left to right"] < 400 / 3


def test_all_sums_of_a_set_differ_and_a_longer_set_begins_with_the_shorter() -> None:
    long, short = (load(config.SumsConfig(count=count, terms=2, digits=1)) for count in (81, 30))
    assert len({problem.statement for problem in long.problems}) == 81
    assert long.problems[:30] == short.problems
    assert not long.dropped


def test_another_seed_gives_other_sums() -> None:
    one, other = (load(config.SumsConfig(count=50, seed=seed)).problems for seed in (0, 1))
    assert not {p.id for p in one} & {p.id for p in other}


def test_asking_for_more_sums_than_there_are_is_an_error() -> None:
    with pytest.raises(StepalignError, match="count = 82, but after 81 no new sum was found"):
        load(config.SumsConfig(count=82, terms=2, digits=1))


def test_a_sum_spells_its_id() -> None:
    problem = load(config.SumsConfig(count=1, subtract=True)).problems[0]
    assert problem.id == "sums-" + problem.statement[8:-1].replace(" ", "")
