"""Locators in order."""

from collections.abc import Iterator, Sequence
from typing import Literal

import pytest

from stepalign import config
from stepalign.critics.arithmetic.locators import DerivationLocator, EquationsLocator, OriginsLocator
from stepalign.critics.combined import CombinedLocator
from stepalign.critics.location import Location
from stepalign.records import Grade, Problem, Rollout

PROBLEM = Problem(id="p", statement="?", answer="1")


def rollout(*, correct: bool = False) -> Rollout:
    grade = Grade(correct=correct, outcome="correct" if correct else "wrong")
    return Rollout(id="r", problem_id="p", completion_ids=(), token_starts=(), text="", finish="stop", grade=grade)


class Says:
    """A locator that always says the same."""

    told = ("grade",)

    def __init__(self, name: str, step: int | None, *, guess: bool = False, unanswered: str = "") -> None:
        self.name, self.step, self.guess, self.unanswered, self.asked = name, step, guess, unanswered, 0

    def locate(self, attempts: Sequence[tuple[Problem, Rollout]]) -> Iterator[Location]:
        for _, one in attempts:
            self.asked += 1
            said = {"step": self.step, "reason": self.name, "is_guess": self.guess, "unanswered": self.unanswered}
            yield Location(rollout_id=one.id, prompt_tokens=5, **said)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("rule", "says", "expected", "asked"),
    [
        ("first", [(2, False), (3, False)], ("0", 2), [1, 0]),
        ("first", [(None, False), (3, False)], ("1", 3), [1, 1]),
        ("first", [(2, True), (3, False)], ("1", 3), [1, 1]),
        ("first", [(None, False), (2, True), (3, True)], ("1", 2), [1, 1, 1]),
        ("first", [(None, False), (None, False)], ("0", None), [1, 1]),
        ("vote", [(2, False), (3, False), (3, True)], ("1", 3), [1, 1, 1]),
        ("vote", [(2, False), (3, False), (None, False)], ("0", 2), [1, 1, 1]),
    ],
)
def test_the_order_or_the_vote_decides(
    rule: str, says: list[tuple[int | None, bool]], expected: tuple[str, int | None], asked: list[int]
) -> None:
    parts = [Says(str(number), step, guess=guess) for number, (step, guess) in enumerate(says)]
    locator = CombinedLocator(parts, rule)  # type: ignore[arg-type]
    (found,) = locator.locate([(PROBLEM, rollout())])
    assert (found.reason, found.step) == expected
    assert [part.asked for part in parts] == asked
    assert found.prompt_tokens == 5 * sum(asked)


@pytest.mark.parametrize("rule", ["first", "vote"])
def test_a_part_without_an_answer_leaves_the_whole_without_one(rule: Literal["first", "vote"]) -> None:
    parts = [Says("a", 2, guess=True), Says("b", None, unanswered="timeout"), Says("c", 2)]
    (found,) = CombinedLocator(parts, rule).locate([(PROBLEM, rollout())])
    assert (found.step, found.reason, found.unanswered) == (None, "b", "timeout")
    assert parts[2].asked == 0
    assert found.prompt_tokens == 10


def test_of_a_right_solution_the_first_is_asked_alone() -> None:
    parts = [Says("a", None), Says("b", 1)]
    (found,) = CombinedLocator(parts, "vote").locate([(PROBLEM, rollout(correct=True))])
    assert (found.step, parts[1].asked) == (None, 0)


def test_the_grade_decides_who_is_asked_so_it_is_told() -> None:
    parts = [EquationsLocator(), OriginsLocator()]
    assert CombinedLocator(parts, "first").told == ("grade",)
    assert CombinedLocator([*parts, DerivationLocator()], "vote").told == ("grade", "answer", "solution")


def test_parts_must_be_stages_and_tell_what_they_need() -> None:
    with pytest.raises(ValueError, match="locates only for stepalign critic-bench"):
        config.CombinedLocatorConfig.model_validate({"locators": [{"kind": "derivation"}, {"kind": "step_values"}]})
    parts = [{"kind": "derivation"}, {"kind": "openai_verdicts", "base_url": "http://a", "model": "m"}]
    table = config.LocateMendCriticConfig.model_validate({"locator": {"kind": "combined", "locators": parts}})
    assert (table.is_remote, table.needs_own_model) == (True, False)
    assert table.divided(4).locator.locators[1].max_concurrency == 8  # type: ignore[attr-defined]
    own = config.CombinedLocatorConfig.model_validate({"locators": [{"kind": "equations"}, {"kind": "verdicts"}]})
    assert own.needs_own_model
