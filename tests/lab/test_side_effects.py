"""Side effects: what repeats, what became worse, and what did not."""

import pytest

from stepalign.evaluation.stats import Difference
from stepalign.lab.side_effects import NGRAM, broken, repeated
from stepalign.records import Rollout


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


def test_only_what_is_worse_by_more_than_its_interval_is_named() -> None:
    still = {name: (1.0, 1.0, change(0.0)) for name in ("avg", "pass", "formatted", "truncated", "repeated", "length")}
    assert broken(still, 12) == []
    wide = still | {"avg": (0.5, 0.4, change(-0.1, 0.2)), "length": (100.0, 95.0, change(-5.0))}
    assert broken(wide, 12) == []
    worse = still | {
        "avg": (0.5, 0.4, change(-0.1)),
        "pass": (0.9, 0.5, change(-0.4, 0.1)),
        "repeated": (0.1, 0.3, change(0.2)),
        "length": (100.0, 80.0, change(-20.0)),
    }
    assert broken(worse, 12) == ["Avg@12 falls", "Pass@12 falls", "repetition", "shorter"]
