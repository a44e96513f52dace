import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from stepalign import config
from stepalign.data import load
from stepalign.errors import StepalignError
from stepalign.io import write_jsonl
from stepalign.records import Problem


def json_lines(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def source(path: Path, **columns: str | None) -> config.FileConfig:
    return config.FileConfig(path=path, columns=config.ColumnsConfig(**columns))


def test_a_jsonl_file_with_a_column_map(tmp_path: Path) -> None:
    path = json_lines(
        tmp_path / "algebra.jsonl",
        [{"question": " What is 6 · 7? ", "target": "42", "worked": "6 · 7 = 42", "key": 17}],
    )
    result = load(source(path, statement="question", answer="target", solution="worked", id="key"))
    assert result.problems == (
        Problem(id="17", statement="What is 6 · 7?", answer="42", solution="6 · 7 = 42", source="algebra.jsonl"),
    )


def test_a_parquet_file_reads_like_the_jsonl_file_of_the_same_rows(tmp_path: Path) -> None:
    rows = [{"statement": f"Problem {n}", "answer": n, "solution": "s"} for n in range(3000)]
    json_lines(tmp_path / "rows.jsonl", rows)
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "rows.parquet")
    from_json, from_parquet = (load(source(tmp_path / f"rows.{kind}")) for kind in ("jsonl", "parquet"))
    assert [p.id for p in from_parquet.problems[:2]] == ["rows-1", "rows-2"]
    assert [(p.id, p.statement, p.answer) for p in from_parquet.problems] == [
        (p.id, p.statement, p.answer) for p in from_json.problems
    ]


def test_blank_lines_do_not_shift_the_line_an_id_names(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('\n{"statement": "A", "answer": "1"}\n\n{"statement": "B", "answer": "2"}\n')
    assert [problem.id for problem in load(source(path)).problems] == ["a-2", "a-4"]


@pytest.mark.parametrize(
    ("found", "answer"),
    [
        (72, "72"),
        (72.0, "72"),
        (-0.5, "-0.5"),
        ("1/2", "1/2"),
        (1e300, "1e+300"),
        (0, "0"),
        (10**30, "1" + 30 * "0"),
    ],
)
def test_an_answer_may_be_a_number(tmp_path: Path, found: object, answer: str) -> None:
    path = json_lines(tmp_path / "a.jsonl", [{"statement": "A", "answer": found}])
    assert load(source(path)).problems[0].answer == answer


def test_an_answer_may_be_a_decimal_of_a_parquet_file(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    rows = [{"statement": "A", "answer": Decimal("2.50")}]
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    assert load(source(path)).problems[0].answer == "2.50"


def test_null_and_nan_are_missing_answers(tmp_path: Path) -> None:
    rows = [{"statement": s, "answer": a} for s, a in (("A", None), ("B", float("nan")), ("C", 3), (None, 4))]
    result = load(source(json_lines(tmp_path / "a.jsonl", rows)))
    assert [problem.statement for problem in result.problems] == ["C"]
    assert result.dropped == {"missing answer": 2, "empty statement": 1}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"question": "A", "answer": "1"},
            "line 2: no column 'statement'; columns present: question, answer",
        ),
        ({"statement": "A"}, "line 2: no column 'answer'; columns present: statement"),
        ({}, "line 2: no column 'statement'; columns present: none"),
        ({"statement": ["A"], "answer": "1"}, r"line 2: column 'statement': text is wanted, found \['A'\]"),
        (
            {"statement": "A", "answer": True},
            "line 2: column 'answer': text or a number is wanted, found True",
        ),
        (
            {"statement": "A", "answer": {"x": 1}},
            "line 2: column 'answer': text or a number is wanted, found {",
        ),
        (
            {"statement": "A", "answer": float("inf")},
            "line 2: column 'answer': text or a number is wanted, found inf",
        ),
        (
            {"statement": "A", "answer": "1", "solution": 5},
            "line 2: column 'solution': text is wanted, found 5",
        ),
        (["A", "1"], "line 2: a JSON object is wanted, found a list"),
    ],
)
def test_a_bad_row_is_an_error_with_line_column_and_what_was_found(tmp_path: Path, row: object, message: str) -> None:
    path = json_lines(tmp_path / "a.jsonl", [{"statement": "Good", "answer": "1"}, row])
    with pytest.raises(StepalignError, match=r"a\.jsonl, " + message):
        load(source(path))


def test_the_default_solution_column_may_be_absent_but_a_named_one_may_not(tmp_path: Path) -> None:
    path = json_lines(tmp_path / "a.jsonl", [{"statement": "A", "answer": "1"}])
    assert load(source(path)).problems[0].solution == ""
    assert load(source(path, solution="")).problems[0].solution == ""
    with pytest.raises(StepalignError, match="line 1: no column 'worked'; columns present: statement, answer"):
        load(source(path, solution="worked"))


def test_solutions_are_left_out_where_the_recipe_maps_no_column(tmp_path: Path) -> None:
    path = json_lines(tmp_path / "a.jsonl", [{"statement": "A", "answer": "1", "solution": "1 is 1"}])
    assert load(source(path, solution="")).problems[0].solution == ""


def test_records_come_back_whole(tmp_path: Path) -> None:
    problem = Problem(id="sums-1+2", statement="1 + 2?", answer="3", source="sums", meta={"terms": [1, 2]})
    write_jsonl(tmp_path / "train.jsonl", [problem])
    assert load(source(tmp_path / "train.jsonl")).problems == (problem,)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"statement": "A", "answer": "1"}\n{"statement": \n', "a.jsonl, line 2: not JSON"),
        ("a.jsonl", b'{"statement": "\xff"}\n', "a.jsonl, line 1: not JSON"),
        ("a.jsonl", b"", "a.jsonl: no problems left: it is empty"),
        ("a.parquet", b"PAR1 and no more", "a.parquet: not a readable Parquet file"),
        ("a.parquet", b"", "a.parquet: not a readable Parquet file"),
        (
            "a.csv",
            b"statement,answer\n",
            r"a.csv: a file ending in .jsonl or .parquet is wanted, found '.csv'",
        ),
    ],
)
def test_a_damaged_or_foreign_file_is_an_error(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(StepalignError, match=message):
        load(source(tmp_path / name))


def test_a_missing_file_and_a_folder_are_errors(tmp_path: Path) -> None:
    with pytest.raises(StepalignError, match=r"none\.jsonl: cannot be read: No such file"):
        load(source(tmp_path / "none.jsonl"))
    (tmp_path / "folder.parquet").mkdir()
    with pytest.raises(StepalignError, match=r"folder\.parquet: cannot be read: Is a directory"):
        load(source(tmp_path / "folder.parquet"))
