import json
from pathlib import Path
from typing import Any

import pytest

from stepalign import config
from stepalign.data import load
from stepalign.data.processbench import read
from stepalign.errors import StepalignError

ROW = {"id": "a", "problem": "1 + 1?", "steps": ["1 + 1 = 2", r"\boxed{2}"], "final_answer_correct": True, "label": -1}


def write(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_labels_count_from_1_and_minus_1_is_no_error(tmp_path: Path) -> None:
    rows = [{**ROW, "id": str(label), "label": label} for label in (-1, 0, 1)]
    assert [one.first_error for one in read(write(tmp_path / "p.jsonl", *rows))] == [None, 1, 2]


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ({"label": 2}, "column 'label': the index of one of 2 steps from 0, or -1, is wanted, found 2"),
        ({"label": -2}, "column 'label'"),
        ({"label": True}, "column 'label'"),
        ({"label": "1"}, "column 'label'"),
        ({"steps": []}, "column 'steps': a list of texts is wanted"),
        ({"steps": "1 + 1 = 2"}, "column 'steps'"),
        ({"steps": ["1", " "]}, "column 'steps'"),
        ({"final_answer_correct": 1}, "column 'final_answer_correct': true or false is wanted, found 1"),
        ({"id": "a"}, "column 'id': 'a' is there twice"),
        ({"id": ""}, "column 'id': it is empty"),
        ({"problem": 3}, "column 'problem': text is wanted"),
    ],
)
def test_a_malformed_row_is_named(tmp_path: Path, fault: dict[str, Any], said: str) -> None:
    path = write(tmp_path / "p.jsonl", ROW, {**ROW, "id": "b", **fault})
    with pytest.raises(StepalignError) as error:
        list(read(path))
    assert str(error.value).startswith(f"{path}, line 2: {said}")


@pytest.mark.parametrize("column", ["id", "problem", "steps", "label", "final_answer_correct"])
def test_a_missing_column_is_named(tmp_path: Path, column: str) -> None:
    path = write(tmp_path / "p.jsonl", {key: value for key, value in ROW.items() if key != column})
    with pytest.raises(StepalignError, match=f"line 1: no column '{column}'"):
        list(read(path))


def test_as_a_source_it_has_the_problems_that_a_solution_answers(tmp_path: Path) -> None:
    rows = [
        ROW,
        {**ROW, "id": "wrong", "problem": "2 + 2?", "final_answer_correct": False},
        {**ROW, "id": "no box", "problem": "3 + 3?", "steps": ["It is 6."]},
    ]
    loaded = load(config.ProcessBenchConfig(path=write(tmp_path / "p.jsonl", *rows)))
    assert [(problem.statement, problem.answer) for problem in loaded.problems] == [("1 + 1?", "2")]
    assert loaded.dropped == {"missing answer": 1}
