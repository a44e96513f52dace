import json
from pathlib import Path

import pytest

from stepalign.error_injection import sources
from stepalign.errors import StepalignError
from stepalign.io import write_jsonl
from stepalign.records import Problem, Rollout
from stepalign.trace import parse

ROW = {
    "question": "Two boxes of 1,000 and one of 5?",
    "ground_truth": "2*1000 = <<2*1000=2000>>2,000 pens\n2000+5 = <<2000+5=2005>>2,005 pens\nA: 2,005",
    "6b": {
        "is_correct": True,
        "solution": "So 2*1000 = <<2*1000=2000>>2000 pens\nThus 2000+5 = 2005 in total\nA: 2005",
    },
    "7b": {"is_correct": True, "solution": "So 2*1000 = 2000 pens\nThus 2000+5 = 2005 in total\nA: 2005"},
    "175b": {"is_correct": False, "solution": "There are 3 boxes\n5 * 1"},
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "solutions.jsonl"
    path.write_text(json.dumps(ROW) + "\n")
    return path


def test_model_solutions_become_steps_without_annotations(file: Path) -> None:
    right, wrong = sources.model_solutions(file)
    assert right.problem == Problem(
        id="solutions-0",
        statement=ROW["question"],
        answer="2005",
        solution="2*1000 = <<2*1000=2000>>2,000 pens\n2000+5 = <<2000+5=2005>>2,005 pens",
        source="solutions.jsonl",
    )
    assert (right.id, right.correct) == ("solutions-0/6b", True)
    assert right.text == (
        "### Step 1: Pens\nSo 2*1000 = 2000 pens\n\n### Step 2: In total\nThus 2000+5 = 2005 in total\n\n"
        "### Final Answer:\n\\boxed{2005}"
    )
    assert parse(right.text).formatted
    # The second right one reads the same without its annotations; the wrong one was cut off before its answer.
    assert (wrong.id, wrong.correct, parse(wrong.text).answer_section) == ("solutions-0/175b", False, None)


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"question": "?"}, "line 1: no column 'ground_truth'"),
        ({**ROW, "ground_truth": "2005"}, "line 1, ground_truth: its last line"),
        ({**ROW, "6b": {"solution": "1 + 1 = 2\nA: 2"}}, "line 1, 6b, is_correct: true or false is wanted, found None"),
    ],
)
def test_another_layout_is_an_error(file: Path, row: dict[str, object], expected: str) -> None:
    file.write_text(json.dumps(row) + "\n")
    with pytest.raises(StepalignError, match=expected):
        list(sources.model_solutions(file))


def test_a_title_names_the_result_and_never_holds_a_number() -> None:
    def titles(text: str) -> list[str]:
        return [section.title for section in parse(sources.in_steps(text, "1") or "").steps]

    assert titles("3 + 4 = 7 duck eggs are used\n16 - 7 = 9") == ["Duck eggs are used", ""]
    assert titles("The 5 cats cost 5 * 2 = $10.\nSo each of them") == ["The"]
    assert titles("1. Cats:\n5 + 5 = 10\n\n2. Dogs:\n2 + 1 = 3") == ["Cats", "Dogs"]


def test_a_rollout_without_problem_or_grade_is_an_error(tmp_path: Path) -> None:
    rollouts, problems = tmp_path / "rollouts.jsonl", tmp_path / "problems.jsonl"
    write_jsonl(rollouts, [Rollout(id="r", problem_id="p", completion_ids=(), token_starts=(), text="", finish="stop")])
    write_jsonl(problems, [])
    with pytest.raises(StepalignError, match="rollout r: no problem 'p' in"):
        list(sources.rollout_solutions(rollouts, problems))
    write_jsonl(problems, [Problem(id="p", statement="?", answer="1")])
    with pytest.raises(StepalignError, match="rollout r is not graded"):
        list(sources.rollout_solutions(rollouts, problems))
