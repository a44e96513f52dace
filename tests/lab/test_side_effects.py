"""Side effects: what repeats, what became worse, and what did not."""

import pytest

from stepalign.evaluation.stats import Difference
from stepalign.lab.side_effects import broken
from stepalign.records import Rollout
from stepalign.trainer.step_metrics import NGRAM, repeated


def rollout(ids: tuple[int, ...]) -> Rollout:
    return Rollout(
        id="1",
        problem_id="a",
        completion_ids=ids,
        text="x" * len(ids),
        token_starts=tuple(range(len(ids))),
        finish="stop",
    )


def change(value: float, width: float = 0.0) -> Difference:
    return Difference(value=value, low=value - width, high=value + width, n=9, above=0.5)


@pytest.mark.parametrize(
    ("ids", "share"),
    [
        (tuple(range(20)), 0),
        (tuple(range(NGRAM)) * 2, 1 / (NGRAM + 1)),
        ((7,) * (NGRAM + 9), 0.9),
        ((1, 2), 0),
    ],
)
def test_repeated_pieces_are_a_share_of_all(ids: tuple[int, ...], share: float) -> None:
    assert repeated(rollout(ids)) == pytest.approx(share)


def effects(**changed: tuple[float, float, float]) -> dict[str, tuple[float, float, Difference]]:
    """Nothing has changed but what is given: before, after, half of the interval's width."""
    names = ("avg", "pass", "formatted", "truncated", "repeated", "length", "distinct")
    ends = dict.fromkeys(names, (1.0, 1.0, 0.0)) | changed
    return {name: (before, after, change(after - before, width)) for name, (before, after, width) in ends.items()}


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({}, []),
        ({"avg": (0.5, 0.4, 0.2), "repeated": (0.1, 0.105, 0.0), "length": (100, 95, 0)}, []),
        ({"avg": (0.4, 0.5, 0.0), "truncated": (0.5, 0.1, 0.0), "distinct": (0.4, 0.8, 0.0)}, []),
        ({"avg": (0.5, 0.4, 0.05), "pass": (0.9, 0.5, 0.1), "formatted": (1, 0.9, 0)}, ["Avg@12", "Pass@12", "format"]),
        ({"repeated": (0.1, 0.3, 0.0), "truncated": (0, 0.2, 0.1)}, ["truncation", "repetition"]),
        ({"length": (100, 80, 1)}, ["shorter"]),
        ({"length": (100, 120, 1), "distinct": (0.9, 0.5, 0.1)}, ["longer", "diversity"]),
    ],
)
def test_only_what_is_worse_by_enough_and_by_more_than_its_interval_is_named(
    changed: dict[str, tuple[float, float, float]], named: list[str]
) -> None:
    assert broken(effects(**changed), 12) == named
