"""A grader that is a Python function or object."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest

from stepalign.config import PythonGraderConfig, PythonObject, registry
from stepalign.critics import sample
from stepalign.errors import StepalignError
from stepalign.records import Grade, Problem, Rollout
from stepalign.rewards import Grader


class Own(Grader):
    def grade(self, rollouts: Sequence[Rollout], problems: Mapping[str, Problem]) -> list[Rollout]:
        return [replace(rollout, grade=Grade(correct=True, outcome="correct")) for rollout in rollouts]

    def same(self, pairs: Sequence[tuple[str, str]]) -> list[bool]:
        return [True for _ in pairs]

    def close(self) -> None:
        pass


class WithoutSame:
    def grade(self, rollouts: object, problems: object) -> list[Rollout]:
        return []


def graded(function: Any, **settings: Any) -> Rollout:
    built = registry.build(PythonGraderConfig(function=PythonObject.of(function), **settings))
    with built as grader:
        (rollout,) = grader.grade([sample.ROLLOUT], {sample.PROBLEM.id: sample.PROBLEM})
    return rollout


@pytest.mark.parametrize(
    ("function", "correct"),
    [
        (lambda problem, rollout: problem.answer in rollout.text, False),
        (lambda problem, rollout: 0.7, False),
        (lambda problem, rollout: 0.9, True),
        (Own, True),
        (Own(), True),
    ],
)
def test_functions_classes_and_objects_grade(function: Any, correct: bool) -> None:
    assert graded(function, threshold=0.8).correct == correct


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda problem: True, "a function of problem and rollout is wanted: too many positional"),
        (WithoutSame(), "a grader without same, close, __enter__, __exit__: derive it from stepalign.Grader"),
        (lambda problem, rollout: None, "rollout sample: the grading function returned None; true or false, a score"),
        (lambda problem, rollout: float("nan"), "returned nan; true or false"),
        (lambda problem, rollout: "yes", "returned 'yes'; true or false"),
    ],
)
def test_what_grades_not_is_refused(function: Any, message: str) -> None:
    with pytest.raises(StepalignError, match=message):
        graded(function)


def test_keys_of_worker_processes_are_refused() -> None:
    with pytest.raises(StepalignError, match=r"timeout_s = 3\.0: a Python grader has no worker processes"):
        PythonGraderConfig(function=PythonObject("a:b"), timeout_s=3.0)
