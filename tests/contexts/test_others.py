"""Which other rollout or problem a context may show."""

from dataclasses import replace

import pytest

from stepalign.contexts import others
from stepalign.records import Grade, Problem, Rollout


def rollout(sample: int, text: str, *, correct: bool, problem: str = "p") -> Rollout:
    grade = Grade(correct=correct, outcome="correct" if correct else "wrong")
    return Rollout(
        id=f"{problem}/{sample}", problem_id=problem, sample=sample, completion_ids=(1,), text=text,
        token_starts=(0,), finish="stop", grade=grade,
    )  # fmt: skip


GROUP = [
    rollout(0, "wrong 0", correct=False),
    rollout(1, "right 1", correct=True),
    rollout(2, "right 2", correct=True),
    rollout(3, "wrong 3", correct=False),
    rollout(4, "wrong 0", correct=False),
]


@pytest.mark.parametrize(("sample", "expected"), [(0, 1), (1, 2), (2, 1), (3, 1)])
def test_the_first_success_of_another_rollout_is_shown(sample: int, expected: int) -> None:
    found = others.successful_sibling(GROUP[sample], GROUP)
    assert found == GROUP[expected]


@pytest.mark.parametrize(
    "group",
    [
        [],
        [rollout(1, "right 1", correct=True)],
        [rollout(1, "right 1", correct=True), rollout(2, "right 1", correct=True)],
        [rollout(1, "right 1", correct=True), rollout(2, "<think>x</think> right 1", correct=True)],
        [rollout(1, "right 1", correct=True), rollout(2, "<think>never ends: right 2", correct=True)],
        [rollout(1, "right 1", correct=True), rollout(2, "wrong", correct=False)],
        [rollout(1, "right 1", correct=True), replace(rollout(2, "ungraded", correct=True), grade=None)],
    ],
    ids=["none", "itself", "same text", "same but for thinking", "thinking only", "wrong", "ungraded"],
)
def test_a_rollout_is_never_its_own_sibling(group: list[Rollout]) -> None:
    assert others.successful_sibling(rollout(1, "right 1", correct=True), group) is None


def test_failures_are_others_each_text_once() -> None:
    assert others.failed_siblings(GROUP[1], GROUP) == [GROUP[0], GROUP[3]]
    assert others.failed_siblings(GROUP[0], GROUP) == [GROUP[3]], "its own text is not shown"
    assert others.failed_siblings(GROUP[3], GROUP) == [GROUP[0]]


def test_groups_are_in_the_order_of_their_samples() -> None:
    mixed = [GROUP[2], rollout(0, "q", correct=True, problem="q"), GROUP[0], GROUP[1]]
    assert others.groups(mixed) == {"p": GROUP[:3], "q": [mixed[1]]}


def test_a_demonstration_is_the_next_problem_with_a_solution() -> None:
    def problem(name: str, solution: str) -> Problem:
        return Problem(id=name, statement=name, answer="1", solution=solution)

    a, b, c, d = problem("a", "s"), problem("b", ""), problem("c", "s"), problem("d", "")
    assert others.demonstrations([a, b, c, d]) == {"a": c, "b": c, "c": a, "d": a}
    assert others.demonstrations([a, b]) == {"b": a}, "never a problem's own"
    assert others.demonstrations([b, d]) == {}
