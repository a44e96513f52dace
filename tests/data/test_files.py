import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from stepalign import config
from stepalign.config import registry
from stepalign.data import load, normalize
from stepalign.errors import StepalignError
from stepalign.io import read_jsonl, write_jsonl
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


def test_an_unknown_trace_format_is_named_with_its_line(tmp_path: Path) -> None:
    row = {
        "id": "p",
        "statement": "A",
        "answer": "1",
        "solution": "",
        "source": "",
        "meta": {},
        "trace_format": "stpes",
    }
    path = json_lines(tmp_path / "train.jsonl", [row])
    with pytest.raises(StepalignError, match=r"train\.jsonl, line 1: trace_format = 'stpes': .*allowed: steps"):
        load(source(path))


def test_blank_lines_do_not_shift_the_line_an_id_names(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('\n{"statement": "A", "answer": "1"}\n\n{"statement": "B", "answer": "2"}\n')
    assert [problem.id for problem in load(source(path)).problems] == ["a-2", "a-4"]


def nested(levels: int) -> str:
    return '{"a": ' + levels * "[" + levels * "]" + "}"


@pytest.mark.parametrize(
    ("found", "answer"),
    [
        (72, "72"),
        (72.0, "72"),
        (-0.5, "-0.5"),
        ("1/2", "1/2"),
        (1e20, "1" + 20 * "0"),
        (1e-7, "0.0000001"),
        (0.1, "0.1"),
        (-0.0, "0"),
        (1e300, r"1 \times 10^{300}"),
        (-2.5e-50, r"-2.5 \times 10^{-50}"),
        (0, "0"),
        (10**30, "1" + 30 * "0"),
    ],
)
def test_an_answer_may_be_a_number(tmp_path: Path, found: object, answer: str) -> None:
    path = json_lines(tmp_path / "a.jsonl", [{"statement": "A", "answer": found}])
    assert load(source(path)).problems[0].answer == answer


@pytest.mark.parametrize(("written", "answer"), [("0.10", "0.10"), ("1E400", r"1 \times 10^{400}"), ("7.50e1", "75")])
def test_a_number_keeps_the_digits_that_the_file_has(tmp_path: Path, written: str, answer: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(f'{{"statement": "A", "answer": {written}}}\n')
    assert load(source(path)).problems[0].answer == answer


def test_floats_of_32_bits_are_their_shortest_decimals(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    answers = pyarrow.array([0.1, 1e20, 1e-7, 3.0], pyarrow.float32())
    parquet.write_table(pyarrow.table({"statement": list("ABCD"), "answer": answers}), path)
    assert [p.answer for p in load(source(path)).problems] == ["0.1", "1" + 20 * "0", "0.0000001", "3"]


def test_the_grader_reads_every_number_that_a_file_may_hold(tmp_path: Path) -> None:
    path, numbers = tmp_path / "a.jsonl", ["1e20", "1e-7", "1e300", "-2.5e-50", "0.10", "72.0"]
    path.write_text("".join(f'{{"statement": "{n}", "answer": {n}}}\n' for n in numbers))
    answers = [problem.answer for problem in load(source(path)).problems]
    with registry.build(config.MathGraderConfig(num_workers=1)) as grader:
        assert grader.same([(answer, answer) for answer in answers]) == [True] * len(numbers)


# ── texts that are not what their writer wrote ────────────────────────────────────────────────────────────────


COMMANDS = [
    r"\frac{1}{2}",
    r"\forall x",
    r"\flat",
    r"\beta",
    r"\bar{x}",
    r"\begin{a}",
    r"\binom{4}{2}",
    r"\boxed{3}",
    r"\theta",
    r"\times 3",
    r"\text{cm}",
    r"\textbf{a}",
    r"\tan x",
    r"\to 0",
    r"\top",
    r"\tilde{x}",
    r"\tfrac12",
    r"\nu",
    r"\neq 0",
    r"\ne 2",
    r"\nabla f",
    r"\notin A",
    r"\not= 3",
    r"\rho",
    r"\right)",
    r"\rangle",
    r"\rceil",
]


@pytest.mark.parametrize("column", ["statement", "answer", "solution"])
@pytest.mark.parametrize("command", COMMANDS)
def test_latex_whose_backslashes_were_not_escaped_is_left_out_and_named(
    tmp_path: Path, command: str, column: str, caplog: pytest.LogCaptureFixture
) -> None:
    row = {"statement": "Find x.", "answer": "2", "solution": "It is 2."}
    good = json.dumps({**row, "statement": rf"Good: {command}"})
    bad = json.dumps({**row, column: f"$x = {command}$" if column != "answer" else command}).replace("\\\\", "\\")
    (tmp_path / "a.jsonl").write_text(f"{good}\n{bad}\n")
    loaded = load(source(tmp_path / "a.jsonl"))
    assert [problem.statement for problem in loaded.problems] == [f"Good: {command}"]
    assert loaded.places == {normalize.LOST_BACKSLASH: [f"{tmp_path / 'a.jsonl'}, line 2"]}
    assert "1 rows left out, the first at" in caplog.text


@pytest.mark.parametrize(
    "text",
    [
        "Solve\nu = 3",
        "$$\nu = 3\n$$",
        "$5 or\nless than $6",
        "a\tb\tan\tx",
        "line\r\nho ho",
        "It is\nnot so",
        r"$\frac{1}{2}" + "\nu$",
        "one\fPage 2",
        "no tab\there",
        "there\nexists",
    ],
)
def test_ordinary_line_breaks_and_tabs_stay(tmp_path: Path, text: str) -> None:
    row = {"statement": text, "answer": "1", "solution": text}
    assert load(source(json_lines(tmp_path / "a.jsonl", [row]))).problems[0].solution == text


@pytest.mark.parametrize(
    ("solution", "kept"),
    [
        ("<think>So 3?</think>\nIt is 2.", "It is 2."),
        ("So 3?</think>\nIt is 2.", "It is 2."),
        ("First. <think>So 3?</think> It is 2.", "First.  It is 2."),
        ("<think>So 3?", None),
        ("It is <thinking>hm</thinking> 2. <thinking>But", None),
        ("[THINK]a[/THINK]It is 2.", "It is 2."),
        ("Here < think > is 2.", "Here < think > is 2."),
    ],
)
def test_a_reference_solution_has_no_thought(tmp_path: Path, solution: str, kept: str | None) -> None:
    rows = [{"statement": "A", "answer": "2", "solution": solution}, {"statement": "B", "answer": "2", "solution": "b"}]
    loaded = load(source(json_lines(tmp_path / "a.jsonl", rows)))
    assert [p.solution for p in loaded.problems] == ([kept, "b"] if kept else ["b"])
    assert loaded.dropped == ({} if kept else {normalize.UNFINISHED_THOUGHT: 1})


@pytest.mark.parametrize(
    "meta",
    [
        '{"a": NaN}',
        '{"a": [-Infinity]}',
        '{"a": 1e400}',
        r'{"a": "\ud800"}',
        r'{"\udc00": 1}',
        *map(nested, (200, 230, 300)),
    ],
    ids=["nan", "infinity", "overflow", "surrogate", "key", "200 deep", "230 deep", "300 deep"],
)
def test_meta_that_no_file_gives_back_is_an_error_that_names_the_line(tmp_path: Path, meta: str) -> None:
    path = tmp_path / "a.jsonl"
    row = '{"id": "p", "statement": "A", "answer": "1", "solution": "", "source": "s", "meta": %s}\n'
    path.write_text(row % meta)
    with pytest.raises(StepalignError, match=r"a\.jsonl, line 1: not a problem: .{9,600}$"):
        load(source(path))


def test_meta_of_a_hundred_levels_comes_back(tmp_path: Path) -> None:
    problem = Problem(id="p", statement="A", answer="1", meta=json.loads(nested(100)))
    write_jsonl(tmp_path / "a.jsonl", [problem])
    assert read_jsonl(tmp_path / "a.jsonl", Problem) == [problem]


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
        (
            {"statement": ["A"], "answer": "1"},
            r"line 2: column 'statement': turns of .* with text are wanted, found 'A'",
        ),
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
        ("a.jsonl", b"[" * 100_000, "a.jsonl, line 1: not JSON: maximum recursion depth"),
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
