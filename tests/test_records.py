import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import ValidationError

from stepalign.errors import StepalignError
from stepalign.records import (
    Answer,
    Critique,
    CritiqueFailure,
    Grade,
    Problem,
    Rollout,
    Verdict,
    read_jsonl,
    to_json,
    write_atomically,
    write_json,
    write_jsonl,
)

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
    grade=Grade(correct=True, outcome="correct", answer="5"),
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
    assert read_jsonl(file, Answer) == [FAILURE, CRITIQUE]
    file.write_text('{"kind": "guess", "rollout_id": "r"}\n')
    with pytest.raises(StepalignError, match=r"not a critic's answer: .*guess"):
        read_jsonl(file, Answer)


def test_critiques_from_before_there_were_checks_are_read(tmp_path: Path) -> None:
    file = tmp_path / "answers.jsonl"
    added = {"checks", "repaired", "retried", "fallback"}
    old = [
        {key: value for key, value in json.loads(to_json(one)).items() if key not in added}
        for one in (CRITIQUE, FAILURE)
    ]
    file.write_text("".join(json.dumps(line) + "\n" for line in old))
    assert read_jsonl(file, Answer) == [CRITIQUE, FAILURE]


def test_empty_lines_are_passed_over(tmp_path: Path) -> None:
    file = tmp_path / "gaps.jsonl"
    file.write_text(f"\n{to_json(PROBLEM)}\n   \n{to_json(PROBLEM)}")
    assert read_jsonl(file, Problem) == [PROBLEM, PROBLEM]


@pytest.mark.parametrize(
    ("change", "key", "found"),
    [
        ({"difficulty": 3}, "difficulty: Unexpected keyword argument", "found 3"),
        ({"statement": 5}, "statement: ", "found 5"),
        ({"statement": ""}, "statement: ", "found ''"),
        ({"id": None}, "id: ", "found None"),
        ({"meta": "easy"}, "meta: ", "found 'easy'"),
    ],
)
def test_a_wrong_line_is_named_with_file_line_key_and_value(
    change: dict[str, object], key: str, found: str, tmp_path: Path
) -> None:
    file = tmp_path / "problems.jsonl"
    file.write_text(f"{to_json(PROBLEM)}\n\n{json.dumps(json.loads(to_json(PROBLEM)) | change)}\n")
    with pytest.raises(StepalignError) as caught:
        read_jsonl(file, Problem)
    message = str(caught.value)
    assert message.startswith(f"{file}, line 3: not a Problem: {key}")
    assert found in message


def test_a_half_written_line_is_an_error_and_a_long_value_is_shown_short(tmp_path: Path) -> None:
    file = tmp_path / "problems.jsonl"
    file.write_text(to_json(PROBLEM)[:-20])
    with pytest.raises(StepalignError, match=r"problems\.jsonl, line 1: not a Problem: .*JSON"):
        read_jsonl(file, Problem)
    file.write_text(json.dumps({"id": "p", "statement": "s", "answer": ["x" * 5000]}))
    with pytest.raises(StepalignError) as caught:
        read_jsonl(file, Problem)
    assert len(str(caught.value)) < 400


def test_files_that_cannot_be_read_are_the_users_errors(tmp_path: Path) -> None:
    with pytest.raises(StepalignError, match=r"nothing\.jsonl: No such file"):
        read_jsonl(tmp_path / "nothing.jsonl", Problem)
    with pytest.raises(StepalignError, match="directory"):
        read_jsonl(tmp_path, Problem)
    (tmp_path / "bytes.jsonl").write_bytes(b'{"id": "\xff"}')
    with pytest.raises(StepalignError, match=r"bytes\.jsonl: not UTF-8"):
        read_jsonl(tmp_path / "bytes.jsonl", Problem)


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


def test_records_that_fail_half_way_leave_the_old_file(tmp_path: Path) -> None:
    def breaking() -> Iterator[Problem]:
        yield PROBLEM
        raise RuntimeError("the source broke")

    file = tmp_path / "problems.jsonl"
    write_jsonl(file, [PROBLEM, PROBLEM])
    before = file.read_bytes()
    with pytest.raises(RuntimeError, match="the source broke"):
        write_jsonl(file, breaking())
    assert file.read_bytes() == before
    assert list(tmp_path.iterdir()) == [file]


def test_a_write_that_fails_leaves_the_old_file_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    file = tmp_path / "state.json"
    write_json(file, {"step": 1})
    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        with pytest.raises(StepalignError, match=r"state\.json: could not be written: No space left"):
            write_json(file, {"step": 2})
    assert json.loads(file.read_text()) == {"step": 1}
    assert list(tmp_path.iterdir()) == [file]


def test_bytes_and_text_are_written_as_they_are(tmp_path: Path) -> None:
    write_atomically(tmp_path / "raw", b"\xff\r\n")
    assert (tmp_path / "raw").read_bytes() == b"\xff\r\n"
    write_json(tmp_path / "value.json", {"name": "√2 → 🙂"})
    assert "√2 → 🙂" in (tmp_path / "value.json").read_text(encoding="utf-8")
