import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from stepalign.errors import StepalignError
from stepalign.io import read_jsonl, to_json, write_jsonl
from stepalign.records import CriticResult, Critique, CritiqueFailure, Grade, Problem, Rollout, Verdict

PROBLEM = Problem(
    id="p-1",
    statement="Line one\nline\u2028two <|im_end|> {{ 7 * 7 }} \x00 √2 🙂",
    answer="\\boxed{5}",
    meta={"level": 3, "tags": ["a", None], "share": 0.1},
)
ROLLOUT = Rollout(
    id="p-1/0",
    problem_id="p-1",
    sample=2,
    prompt_ids=(1, 2),
    completion_ids=(7, 8, 0),
    text="a🙂",
    token_starts=(0, 1, 2),
    finish="stop",
    policy_step=4,
    seed=2**63 - 1,
    grade=Grade(correct=True, outcome="correct", final_answer="5"),
)
CRITIQUE = Critique(
    rollout_id="p-1/0",
    critic="program",
    case="D",
    verdicts=(
        Verdict(step=1, correct=True),
        Verdict(step=2, correct=False, reason="3 + 4 is 7"),
        Verdict(step=3, correct=False),
    ),
    correct_part="### Step 1",
    corrected_step="### Step 2",
    continuation="rest",
    text="### Summary",
    fidelity=0.5,
)
FAILURE = CritiqueFailure(rollout_id="p-1/1", critic="program", reason="parse", detail="line 3")


@pytest.mark.parametrize("record", [PROBLEM, ROLLOUT, CRITIQUE, FAILURE], ids=lambda record: type(record).__name__)
def test_a_record_survives_a_file_on_a_line_of_its_own(record: object, tmp_path: Path) -> None:
    file = tmp_path / "made" / "for" / "it.jsonl"
    write_jsonl(file, [record, record])
    assert file.read_bytes().count(b"\n") == 2
    assert read_jsonl(file, type(record)) == [record, record]


def test_a_file_of_critiques_and_failures_is_read_as_what_each_line_is(tmp_path: Path) -> None:
    file = tmp_path / "answers.jsonl"
    write_jsonl(file, [FAILURE, CRITIQUE])
    assert read_jsonl(file, CriticResult) == [FAILURE, CRITIQUE]
    file.write_text('{"kind": "guess", "rollout_id": "r"}\n')
    with pytest.raises(StepalignError, match=r"not a Critique or CritiqueFailure: .*guess"):
        read_jsonl(file, CriticResult)


def test_critiques_from_before_there_were_checks_are_read(tmp_path: Path) -> None:
    file = tmp_path / "answers.jsonl"
    added = {"checks", "repaired", "retried", "fallback"}
    old = [
        {key: value for key, value in json.loads(to_json(record)).items() if key not in added}
        for record in (CRITIQUE, FAILURE)
    ]
    file.write_text("".join(json.dumps(line) + "\n" for line in old))
    assert read_jsonl(file, CriticResult) == [CRITIQUE, FAILURE]


def test_a_record_is_checked_when_it_is_made_and_cannot_change() -> None:
    with pytest.raises(ValidationError, match="rollout r: 2 completion ids but 1 token starts"):
        Rollout(id="r", problem_id="p", completion_ids=(1, 2), text="a", token_starts=(0,), finish="stop")
    with pytest.raises(ValidationError):
        Grade(correct=True, outcome="perfect")  # type: ignore[arg-type]
    with pytest.raises(AttributeError):
        PROBLEM.answer = "6"  # type: ignore[misc]


def test_the_first_error_is_the_first_incorrect_verdict() -> None:
    assert CRITIQUE.first_error == 2
    right = Critique(
        rollout_id="r", critic="c", case="A", verdicts=(Verdict(step=1, correct=True),), correct_part="", text="t"
    )
    assert right.first_error is None


def test_an_ungraded_rollout_is_not_correct() -> None:
    assert ROLLOUT.correct
    ungraded = Rollout(id="r", problem_id="p", completion_ids=(), text="", token_starts=(), finish="length")
    assert not ungraded.correct
