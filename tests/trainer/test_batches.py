"""Which problems, in which order."""

import pytest

from stepalign.errors import StepalignError
from stepalign.records import Problem
from stepalign.trainer.batches import batches


def test_an_epoch_shows_every_problem_once_in_an_order_of_its_own() -> None:
    problems = [Problem(id=str(i), statement=f"{i}?", answer="1") for i in range(5)]
    stream = batches(problems, 2, seed=0)
    shown = [problem.id for _ in range(5) for problem in next(stream)]
    assert sorted(shown[:5]) == sorted(shown[5:]) == ["0", "1", "2", "3", "4"]
    assert shown[:5] != shown[5:]


def test_no_problems_are_an_error_rather_than_an_endless_search() -> None:
    with pytest.raises(StepalignError, match="no problems to draw batches from"):
        next(batches([], 2, seed=0))
