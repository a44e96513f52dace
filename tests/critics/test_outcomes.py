"""What became of a critic's answers, check by check."""

from dataclasses import replace
from typing import Any

from critics.test_checks import critique
from stepalign.critics.counts import outcomes
from stepalign.records import Check, CritiqueFailure


def checks(**passed: bool) -> tuple[Check, ...]:
    return tuple(Check(name=name, measure=1.0, passed=one) for name, one in passed.items())


def counted(*answers: Any) -> dict[str, dict[str, int]]:
    return {name: dict(found) for name, found in outcomes(answers).items()}


def failure(reason: str, **more: Any) -> CritiqueFailure:
    return CritiqueFailure(rollout_id="r", critic="c", reason=reason, **more)


def test_each_check_is_counted_by_what_became_of_it() -> None:
    assert counted(
        replace(critique(), checks=checks(case=True, exact_copy=False), repaired=("exact_copy",)),
        replace(critique(), checks=checks(case=True, exact_copy=True, reference_overlap=False), retried=("parse", "case", "case")),
        failure("final_answer", checks=checks(case=True, exact_copy=False, final_answer=False), retried=("final_answer",)),
        failure("timeout"),
        failure("truncated", retried=("parse",)),
    ) == {
        "case": {"passed": 3, "retried": 2},
        "exact_copy": {"passed": 1, "repaired": 1, "fell back": 1},
        "final_answer": {"retried": 1, "fell back": 1},
        "reference_overlap": {"ignored": 1},
        "parse": {"retried": 2},
        "timeout": {"fell back": 1},
        "truncated": {"fell back": 1},
    }


def test_answers_that_were_never_checked_count_nothing_but_failures() -> None:
    assert counted(critique(), failure("parse")) == {"parse": {"fell back": 1}}
    assert counted() == {}
