import json
from dataclasses import replace
from typing import Any

from stepalign.critics.stats import Prices, example_failure, outcomes, summarize, table
from stepalign.io import to_json
from stepalign.records import Check, Critique, CritiqueFailure, Verdict


def critique(
    name: str, *, exact_copy: float = 1.0, case: str = "D", correct_part: str = "1", **more: object
) -> Critique:
    checks = (
        Check(name="exact_copy", measure=exact_copy, passed=exact_copy >= 0.98),
        Check(name="final_answer", measure=1.0, passed=True),
    )
    return Critique(
        rollout_id=name,
        critic="c",
        case=case,
        verdicts=(Verdict(step=1, correct=case == "A"),),
        correct_part=correct_part,
        text="text",
        checks=checks,
        prompt_tokens=1000,
        completion_tokens=200,
        seconds=0.5,
        **more,
    )


FAILED = CritiqueFailure(
    rollout_id="x",
    critic="c",
    reason="final_answer",
    checks=(Check(name="final_answer", measure=0.0, passed=False, detail="ends in 5"),),
    retried=("parse",),
    prompt_tokens=2000,
    completion_tokens=100,
)
ANSWERS = [
    critique("a", case="A"),
    critique("b"),
    critique("c", exact_copy=0.5, repaired=("exact_copy",), retried=("parse", "case")),
    FAILED,
]


def test_everything_is_counted_as_the_critic_wrote_it() -> None:
    report = summarize(ANSWERS, Prices(prompt=1.0, completion=10.0))
    assert (report.answers, report.critiques) == (4, 3)
    assert (report.cases, report.failures) == ({"D": 2, "A": 1}, {"final_answer": 1})
    assert report.checks == {
        "case": {"retried": 1},
        "exact_copy": {"passed": 2, "repaired": 1},
        "final_answer": {"passed": 3, "fell back": 1},
        "parse": {"retried": 2},
    }
    assert report.fidelity["exact"] == 2 / 3
    assert (report.fidelity["min"], report.fidelity["median"]) == (0.5, 1.0)
    assert (report.prompt_tokens, report.completion_tokens, report.seconds) == (5000, 700, 1.5)
    assert report.cost == 0.012
    assert summarize(ANSWERS).cost is None


def test_where_nothing_was_to_be_copied_there_is_no_fidelity() -> None:
    from_step_1 = critique("d", correct_part="")
    assert summarize([*ANSWERS, from_step_1]).fidelity == summarize(ANSWERS).fidelity
    assert summarize([from_step_1, replace(from_step_1, checks=())]).fidelity == {}
    remainder = critique("e", correct_part="", case="B", exact_copy=0.5)  # case B copies what follows the step
    assert summarize([remainder]).fidelity["mean"] == 0.5


def test_the_table_shows_it_and_the_file_is_json() -> None:
    report = summarize(ANSWERS, Prices(prompt=1.0, completion=10.0))
    shown = table(report)
    for line in (
        "critiques     3  (2 D, 1 A)",
        "failures      1  (1 final_answer)",
        "for example   ",
        "fidelity      66.7% exact; mean 0.8333, min 0.5000, ",
        "tokens        5,000 read, 700 written; cost 0.0120",
        "                   passed   repaired    retried    ignored  fell back",
        "exact_copy              2          1",
        "final_answer            3                                           1",
    ):
        assert line in shown
    assert json.loads(to_json(report))["failures"] == {"final_answer": 1}


def test_the_example_is_of_the_most_frequent_reason_and_short() -> None:
    first = CritiqueFailure(rollout_id="a", critic="own", reason="timeout", detail="60 s")
    others = [CritiqueFailure(rollout_id=n, critic="own", reason="parse", detail="it is\n" + 90 * "no ") for n in "bc"]
    said = example_failure([first, *others, critique("d"), None])
    assert said.startswith("b: parse: it is no no")
    assert len(said) <= 160
    assert example_failure([replace(first, detail="")]) == "a: timeout"
    assert example_failure([critique("d")]) == ""
    assert "for example" not in table(summarize([critique("d")]))


def test_no_answers_are_no_fault() -> None:
    report = summarize([])
    assert (report.answers, report.fidelity) == (0, {})
    assert "tokens        0 read, 0 written" in table(report)


# ── outcomes ────────────────────────────────────────────────────────────────────────────────────────────────────

ANY = replace(critique("r"), checks=())


def checks(**passed: bool) -> tuple[Check, ...]:
    return tuple(Check(name=name, measure=1.0, passed=one) for name, one in passed.items())


def counted(*answers: Any) -> dict[str, dict[str, int]]:
    return {name: dict(found) for name, found in outcomes(answers).items()}


def failure(reason: str, **more: Any) -> CritiqueFailure:
    return CritiqueFailure(rollout_id="r", critic="c", reason=reason, **more)


def test_each_check_is_counted_by_what_became_of_it() -> None:
    assert counted(
        replace(ANY, checks=checks(case=True, exact_copy=False), repaired=("exact_copy",)),
        replace(
            ANY, checks=checks(case=True, exact_copy=True, reference_overlap=False), retried=("parse", "case", "case")
        ),
        failure(
            "final_answer", checks=checks(case=True, exact_copy=False, final_answer=False), retried=("final_answer",)
        ),
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
    assert counted(ANY, failure("parse")) == {"parse": {"fell back": 1}}
    assert counted() == {}
