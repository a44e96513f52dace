"""A critic that is a Python function or object, with the checks of every critic."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from stepalign.config import PythonCriticConfig, PythonObject, registry
from stepalign.critics import sample
from stepalign.errors import StepalignError
from stepalign.records import Critique, CritiqueFailure, Problem, Rollout
from stepalign.rewards import FunctionGrader

SPLICED = {
    "case": "D",
    "verdicts": [True, False, False],
    "first_wrong_step": 2,
    "reason": "85 + 12 is 97.",
    "corrected_step": sample.CRITIQUE.corrected_step,
    "continuation": sample.CRITIQUE.continuation,
}


def critique(function: Any, *rollouts: Rollout) -> list[Critique | CritiqueFailure]:
    settings = PythonCriticConfig(function=PythonObject.of(function))
    critic = registry.build(settings, grader=FunctionGrader(lambda problem, rollout: True))
    return list(critic.critique([(sample.PROBLEM, rollout) for rollout in rollouts or (sample.ROLLOUT,)]))


@pytest.mark.parametrize("value", [sample.CRITIQUE, sample.CRITIQUE.text, SPLICED], ids=["record", "text", "dict"])
def test_a_function_may_return_a_record_its_text_or_a_dict(value: Any) -> None:
    (result,) = critique(lambda problem, rollout: value)
    assert isinstance(result, Critique)
    assert result.first_error == 2
    assert result.corrected_step == sample.CRITIQUE.corrected_step
    assert {check.name for check in result.checks} >= {"exact_copy", "final_answer"}


@pytest.mark.parametrize("value", [sample.CRITIQUE, CritiqueFailure(rollout_id="sample", critic="c", reason="later")])
def test_a_record_bears_the_name_of_the_critic_whatever_name_it_had(value: Critique | CritiqueFailure) -> None:
    (result,) = critique(by_record := lambda problem, rollout: value)
    assert result.critic == PythonObject.of(by_record).name


def test_a_dicts_text_stays_as_it_is() -> None:
    step = "### Step 2: Add 12\n85 + 12 = 97\n\to"
    (result,) = critique(lambda problem, rollout: SPLICED | {"corrected_step": step})
    assert isinstance(result, Critique)
    assert result.corrected_step == step


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (None, "missing"),
        ("no critique", "parse"),
        (SPLICED | {"verdicts": [True]}, "parse"),
        ({"a": object()}, "parse"),
    ],
)
def test_what_is_no_critique_is_a_failure_with_a_reason(value: Any, reason: str) -> None:
    (result,) = critique(lambda problem, rollout: value)
    assert isinstance(result, CritiqueFailure)
    assert (result.reason, bool(result.detail)) == (reason, True)


def test_a_critique_of_a_function_is_checked() -> None:
    lie = SPLICED | {"corrected_step": "### Step 2: Add 12\n85 + 12 = 99", "continuation": "\\boxed{99}"}
    (result,) = critique(lambda problem, rollout: lie)
    assert isinstance(result, CritiqueFailure)
    assert result.reason in ("true_equations", "final_answer")


def fails(problem: Problem, rollout: Rollout) -> None:
    raise KeyError("tests")


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (fails, r"rollout sample: the critic .*:fails failed: KeyError\('tests'\)"),
        (lambda problem, rollout: 5, r"returned 5; a Critique, its text, a dict or None is wanted"),
        (lambda problem, rollout: replace(sample.CRITIQUE, rollout_id="other"), "answered 'other'"),
        (lambda rollout: None, r"critic\.function = .*: a function of problem and rollout is wanted"),
    ],
)
def test_a_fault_of_the_function_names_the_rollout(function: Any, message: str) -> None:
    with pytest.raises(StepalignError, match=message):
        critique(function)


class Own:
    name = "own"

    def __init__(self, *ids: str) -> None:
        self.ids = ids

    def critique(self, attempts: Iterable[tuple[Problem, Rollout]]) -> Iterator[Critique]:
        list(attempts)
        yield from (replace(sample.CRITIQUE, rollout_id=name) for name in self.ids)


def test_an_object_with_the_methods_of_a_critic_is_one() -> None:
    (result,) = critique(Own("sample"))
    assert isinstance(result, Critique)
    assert (result.critic, sample.CRITIQUE.critic) == ("own", "sample")
    with pytest.raises(StepalignError, match="critic own: no result of sample"):
        critique(Own())
    with pytest.raises(StepalignError, match="critic own: a result of 'other', which it was not asked"):
        critique(Own("other"))
    nameless = type("Nameless", (), {"critique": Own.critique})()
    with pytest.raises(StepalignError, match="a critic without a name"):
        critique(nameless)
    assert json.dumps(SPLICED)
