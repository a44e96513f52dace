import random
from dataclasses import replace

import pytest

from stepalign.process_supervision import benchmark
from stepalign.process_supervision.benchmark import best_threshold, decide, score, table
from stepalign.process_supervision.locators import Finding, Located, Rule
from stepalign.process_supervision.traces import LabelledTraces

KNOWN, LOWEST = Rule("lowest", "grade"), Rule("lowest", "threshold")
ZERO, FIRST, BOTH = Rule("first", "zero"), Rule("first", "threshold"), Rule("first", "both")


@pytest.mark.parametrize(
    ("rule", "scores", "correct", "threshold", "step"),
    [
        (KNOWN, (1, -2, -2), False, 0, 2),
        (KNOWN, (1, -2, -2), True, 0, None),
        (LOWEST, (1, -2, -3), True, -2.5, 3),
        (LOWEST, (1, -2, -3), False, -3, None),
        (ZERO, (0.5, 0, 0), True, 0, 2),
        (ZERO, (0.5, 0.1), False, 0, None),
        (FIRST, (0.5, 0.2, 0.1), True, 0.3, 2),
        (FIRST, (0.5, 0.3), True, 0.3, None),
    ],
)
def test_a_rule_turns_scores_into_a_step(
    rule: Rule, scores: tuple[float, ...], correct: bool, threshold: float, step: int | None
) -> None:
    assert decide(scores, rule, correct=correct, threshold=threshold) == step


@pytest.mark.parametrize("rule", [LOWEST, FIRST, BOTH])
def test_a_threshold_is_that_of_all_in_turn_with_few_decisions(
    rule: Rule, traces: LabelledTraces, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw, given = random.Random(4), [trace for trace in traces.with_answer for _ in range(20)]
    given = [replace(trace, rollout=replace(trace.rollout, id=str(number))) for number, trace in enumerate(given)]
    scores = {
        trace.rollout.id: [
            draw.randrange(30) / 10 - 2 * (k == trace.first_error) for k in range(1, len(trace.spans) + 1)
        ]
        for trace in given
    }
    found = Finding(name="scores", told=(), traces=tuple(given), scores=scores)

    def f1(threshold: float) -> float:
        hits: dict[bool, list[bool]] = {True: [], False: []}
        for trace in given:
            step = decide(scores[trace.rollout.id], rule, correct=trace.rollout.correct, threshold=threshold)
            hits[trace.first_error is None].append(step == trace.first_error)
        right, wrong = (sum(some) / len(some) for some in hits.values())
        return 2 * wrong * right / (wrong + right) if wrong + right else 0.0

    values = sorted({value for each in scores.values() for value in each})
    expected = max([*values, values[-1] + 1], key=f1)
    made = []
    monkeypatch.setattr(benchmark, "decide", lambda *given, **named: made.append(1) or decide(*given, **named))
    assert best_threshold(found, rule, given) == expected
    assert len(made) <= sum(len(each) + 1 for each in scores.values())


def finding(traces: LabelledTraces, worst: float, *rules: Rule) -> Finding:
    """Scores that are `worst` at the labelled step, and 1 elsewhere."""
    scores = {
        trace.rollout.id: [worst if k == trace.first_error else 1.0 for k in range(1, len(trace.spans) + 1)]
        for trace in traces.with_answer
    }
    return Finding(name="scores", told=("solution",), traces=traces.with_answer, scores=scores, rules=rules)


def test_scores_that_are_lowest_at_the_label_find_all(traces: LabelledTraces) -> None:
    found = score(traces, Located(findings=(finding(traces, 0.0, KNOWN, LOWEST),), tokens=7, seconds=1.0), seed=0)
    for one in found.scores:
        assert {name: value.value for name, value in one.accuracies.items()} == dict.fromkeys(
            ("wrong", "right", "F1", "first error"), 1.0
        )
    assert [one.told for one in found.scores] == [("grade", "solution"), ("solution",)]
    assert found.chance is not None
    assert found.chance.value == pytest.approx(1 / 3)
    assert (found.traces, found.wrong, found.answer_known) == (7, 4, 6)
    assert "scores; lowest step, the grade known\n  told: grade, solution\n" in table(found)
    assert "scores; lowest step, a threshold (" in table(found)


def test_a_threshold_is_chosen_on_the_other_half(traces: LabelledTraces) -> None:
    """Shuffled labels of one half change the threshold of the other half alone."""
    given = finding(traces, 0.0, LOWEST)
    before = score(traces, Located(findings=(given,)), seed=0).scores[0].thresholds
    problem = traces.with_answer[0].problem.id
    changed = tuple(
        replace(trace, first_error=None) if trace.problem.id == problem else trace for trace in traces.with_answer
    )
    after = score(traces, Located(findings=(replace(given, traces=changed),)), seed=0).scores[0].thresholds
    assert sum(old != new for old, new in zip(before, after, strict=True)) <= 1
    assert best_threshold(given, LOWEST, given.traces) == 1.0
    assert best_threshold(given, LOWEST, ()) == 0.0


def test_a_trace_without_an_answer_is_a_miss(traces: LabelledTraces) -> None:
    given = finding(traces, 0.0, KNOWN)
    scores = {name: values for name, values in given.scores.items() if not name.startswith("17")}
    one = score(traces, Located(findings=(replace(given, scores=scores),)), seed=0).scores[0]
    assert one.missing == 2
    assert one.accuracies["wrong"].value == one.accuracies["right"].value == pytest.approx(2 / 3)
    nothing = score(traces, Located(findings=(replace(given, scores={}, rules=()),)), seed=0).scores[0]
    assert nothing.accuracies["F1"].value == 0


def test_traces_that_are_all_right_have_no_chance(traces: LabelledTraces) -> None:
    right = tuple(trace for trace in traces.with_answer if trace.first_error is None)
    traces = replace(traces, traces=right)
    found = score(traces, Located(findings=(finding(traces, 0.0, KNOWN),)), seed=0)
    assert (found.chance, found.wrong) == (None, 0)
    assert "chance" not in table(found)
