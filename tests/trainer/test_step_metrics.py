"""What a step cost, counted by hand."""

from dataclasses import replace

import pytest

from stepalign.records import CritiqueFailure, Grade, Rollout
from stepalign.trainer.step_metrics import COSTS, numbers, rollout_metrics, step_cost, step_line, step_outcomes

ROLLOUT = Rollout(
    id="r", problem_id="p", prompt_ids=(1, 2, 3), completion_ids=(4, 5), text="ab", token_starts=(0, 1), finish="stop"
)
FAILURE = CritiqueFailure(rollout_id="r", critic="model", reason="parse", prompt_tokens=40, completion_tokens=7)


def test_every_token_is_counted_where_it_is_read() -> None:
    learnt = {"loss": 0.5, "student_tokens": 16.0, "teacher_tokens": 20.0, "base_tokens": 16.0}
    cost = step_cost((10, 70), 1, [ROLLOUT, ROLLOUT], [FAILURE], learnt, updates=2, full=False)
    assert cost == {
        "rollouts": 2,
        "problems": 1,
        "generated_tokens": 4,
        "teacher_tokens": 36,
        "critic_tokens": 47,
        "updates": 2,
        # sampling reads 2·(3 + 2), the base 16, the student 16 forward and backward; the teacher is larger.
        "flops": 2 * 10 * (10 + 16 + 32) + 2 * 70 * 20,
    }
    assert (*cost, "seconds") == COSTS
    trained_whole = step_cost((10, 70), 1, [ROLLOUT, ROLLOUT], [FAILURE], learnt, updates=2, full=True)
    assert trained_whole["flops"] - cost["flops"] == 2 * 10 * 16, "the weights' own gradients"


def test_what_the_teacher_writes_is_counted_with_its_parameters() -> None:
    written = replace(ROLLOUT, source="teacher", prompt_ids=(1, 2, 3, 4))
    cost = step_cost((10, 70), 1, [ROLLOUT, written], [], {"student_tokens": 5.0}, updates=1, full=False)
    assert cost["generated_tokens"] == 4
    assert cost["flops"] == 2 * 10 * (5 + 2 * 5) + 2 * 70 * 6


def test_a_step_without_examples_costs_its_sampling() -> None:
    assert step_cost((10, 70), 1, [ROLLOUT], [], {}, updates=0, full=False)["flops"] == 2 * 10 * 5


def test_programs_are_measured_in_lines_too() -> None:
    long = replace(ROLLOUT, text="```python\na = 1\n\nb = 2\n```", trace_format="code")
    prose = replace(ROLLOUT, trace_format="code")
    assert rollout_metrics([long, prose])["lines"] == 1.0
    assert "lines" not in rollout_metrics([long, ROLLOUT])


def test_rollouts_whose_sandbox_was_restarted_are_outcomes_and_in_the_line() -> None:
    grade = Grade(correct=False, outcome="error", sandbox_restarts=2)
    counts = step_outcomes({"trained": 2}, [ROLLOUT, replace(ROLLOUT, grade=grade)], [FAILURE])
    assert counts == {"trained": 2, "failed": 1, "sandbox restarted": 1}
    line = step_line({"correct": 0.0, "completion_tokens": 4, "rollouts": 2}, counts, {})
    assert ", 1 failed, 1 sandbox restarted, " in line
    assert step_outcomes({"trained": 1}, [ROLLOUT], []) == {"trained": 1}


def test_the_line_of_a_step_counts_what_fell_back_and_dropped_out() -> None:
    values = {"loss": 0.5, "correct": 0.25, "completion_tokens": 40, "rollouts": 4}
    counts = {
        "trained": 3,
        "failed": 3,
        "fallback": 2,
        "mended by program": 2,
        "dropped": 1,
        "cut": 0,
        "without credit": 2,
    }
    line = step_line(values, counts, {"sample": 3.0, "student": 1.0})
    missing = "3 failed, 2 fallback, 2 mended by program, 1 dropped, 2 without credit"
    assert line == f"loss 0.5000, correct 25%, 10 tokens, {missing}, 4.0 s"
    assert "fallback" not in step_line(values, {"trained": 4, "fallback": 0}, {})


@pytest.mark.parametrize("scale", [1.0, 1000.0])
@pytest.mark.parametrize("counts", [{}, {"failed": 12}, {"failed": 3, "fallback": 2}])
def test_the_line_of_a_step_fits_a_terminal_and_names_the_largest_stages(counts: dict[str, int], scale: float) -> None:
    values = {"loss": 0.5, "correct": 1.0, "completion_tokens": 360, "rollouts": 4}
    shares = {"sample": 1.1, "critique": 0.0, "teacher": 0.4, "student": 0.9, "optimizer": 0.1}
    line = step_line(values, counts, {name: scale * seconds for name, seconds in shares.items()})
    assert len(f"step 1000: {line}") <= (100 if counts else 80)
    assert counts or "(sample 44%" in line


def test_every_number_of_a_step_goes_to_the_trackers() -> None:
    line = {"step": 3, "loss": 0.5, "canaries": ["length"], "failures": {"parse": 2}, "seconds": {"sample": 1.5},
            "checks": {"layout": {"passed": 4}}}  # fmt: skip
    assert dict(numbers(line, "train/")) == {
        "train/step": 3,
        "train/loss": 0.5,
        "train/failures/parse": 2,
        "train/seconds/sample": 1.5,
        "train/checks/layout/passed": 4,
    }
