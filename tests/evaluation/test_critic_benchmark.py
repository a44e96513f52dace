from pathlib import Path

import pytest

from stepalign.errors import StepalignError
from stepalign.evaluation.critic_benchmark import PlantedTraces, Trial, accuracies, judged_outcome, judged_step
from stepalign.io import write_jsonl
from stepalign.records import Case, Critique, CritiqueFailure, PlantedSlip, Problem, Rollout, Verdict

FAILURE = CritiqueFailure(rollout_id="r", critic="c", reason="parse")


def critique(*correct: bool, case: Case = "D") -> Critique:
    verdicts = tuple(Verdict(step=k, correct=verdict) for k, verdict in enumerate(correct, start=1))
    return Critique(rollout_id="r", critic="c", case=case, verdicts=verdicts, correct_part="", text="text")


def test_only_the_very_first_wrong_step_counts() -> None:
    found = critique(True, False, True, False)
    assert [judged_step(found, step) for step in (1, 2, 3, 4, None)] == [False, True, False, False, False]
    assert judged_step(critique(True, True, case="A"), None)
    assert not judged_step(critique(True, True, case="A"), 1)
    assert not judged_step(FAILURE, None)
    assert not judged_step(FAILURE, 1)


def test_by_outcome_any_error_in_a_wrong_trace_counts() -> None:
    assert judged_outcome(critique(True, False), wrong=True)
    assert not judged_outcome(critique(True, False), wrong=False)
    assert judged_outcome(critique(True, True, case="A"), wrong=False)
    assert not judged_outcome(FAILURE, wrong=True)
    assert not judged_outcome(FAILURE, wrong=False)


def trials(wrong: str, right: str, problems: int = 10) -> list[Trial]:
    return [
        Trial(f"p{index % problems}", wrong=kind == "wrong", hit=mark == "+")
        for kind, marks in (("wrong", wrong), ("right", right))
        for index, mark in enumerate(marks)
    ]


def test_f1_is_the_harmonic_mean_of_the_two_accuracies() -> None:
    found = accuracies(trials("+" * 10 + "-" * 30, "+" * 15 + "-" * 5))
    assert found["wrong"].value == pytest.approx(0.25)
    assert found["right"].value == pytest.approx(0.75)
    assert found["F1"].value == pytest.approx(2 * 0.25 * 0.75 / (0.25 + 0.75))
    assert [found[name].n for name in ("wrong", "right", "F1")] == [40, 20, 60]
    for estimate in found.values():
        assert estimate.low <= estimate.value <= estimate.high
    # A critic that always complains, or never does, has no F1.
    assert accuracies(trials("++++", "----"))["F1"].value == 0


def test_traces_of_a_problem_stay_together_in_the_interval() -> None:
    # 5 of 10 problems are always right: with the traces drawn one by one the interval would be a quarter as wide.
    together = accuracies(trials(("+" * 5 + "-" * 5) * 16, "+"))["wrong"]
    apart = accuracies(trials(("+" * 5 + "-" * 5) * 16, "+", problems=160))["wrong"]
    assert together.high - together.low > 3 * (apart.high - apart.low)


def test_what_has_no_traces_has_no_estimate() -> None:
    assert accuracies([]) == {}
    assert accuracies(trials("+-", "")).keys() == {"wrong"}
    assert accuracies(trials("", "+-")).keys() == {"right"}


@pytest.mark.parametrize("emptied", ["rollouts", "problems"])
def test_a_record_that_is_missing_is_named_with_its_files(emptied: str, tmp_path: Path) -> None:
    ids = {"completion_ids": (1,), "token_starts": (0,), "finish": "stop", "problem_id": "p"}
    traces = [Rollout(id="slip", text="136", **ids), Rollout(id="right", text="126", **ids)]
    slip = PlantedSlip(
        rollout_id="slip", problem_id="p", kind="sign", step=1, start=0, end=3, text="136", correct_text="126"
    )
    files = {
        "rollouts": traces,
        "slips": [slip],
        "problems": [Problem(id="p", statement="s", answer="1")],
        "natural": [],
    }
    for name, records in files.items():
        write_jsonl(tmp_path / f"{name}.jsonl", records)
    assert len(PlantedTraces.read(tmp_path).pairs) == 1
    (tmp_path / f"{emptied}.jsonl").write_text("")
    with pytest.raises(
        StepalignError, match=rf"{tmp_path}/(slips|rollouts)\.jsonl: rollout 'slip': .*/{emptied}\.jsonl"
    ):
        PlantedTraces.read(tmp_path)
