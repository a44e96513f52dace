import pytest

from stepalign import config
from stepalign.data import load, split
from stepalign.errors import StepalignError

PROBLEMS = load(config.SumsConfig(count=312)).problems


def test_the_split_is_whole_and_keeps_the_order() -> None:
    train, held_out = split(PROBLEMS, 30, seed=0)
    assert (len(train), len(held_out)) == (282, 30)
    assert [p for p in PROBLEMS if p in held_out] == held_out
    assert [p for p in PROBLEMS if p not in held_out] == train


def test_the_split_depends_on_the_seed_and_not_on_the_order() -> None:
    held_out = {p.id for p in split(PROBLEMS, 30, seed=0)[1]}
    assert {p.id for p in split(PROBLEMS[::-1], 30, seed=0)[1]} == held_out
    assert {p.id for p in split(PROBLEMS, 30, seed=1)[1]} != held_out


def test_fewer_problems_leave_most_of_the_hold_out_where_it_is() -> None:
    held_out = {p.id for p in split(PROBLEMS, 30, seed=0)[1]}
    of_fewer = {p.id for p in split(PROBLEMS[:300], 30, seed=0)[1]}
    assert len(held_out & of_fewer) >= 24


def test_nothing_is_held_out_where_nothing_is_asked_for() -> None:
    assert split(PROBLEMS, 0, seed=0) == (list(PROBLEMS), [])


@pytest.mark.parametrize("holdout", [312, 400])
def test_holding_out_everything_is_an_error(holdout: int) -> None:
    with pytest.raises(StepalignError, match=f"holdout = {holdout}, but there are 312 problems"):
        split(PROBLEMS, holdout, seed=0)
