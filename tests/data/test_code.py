import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pytest
from pyarrow import parquet

from stepalign import config
from stepalign.data import load
from stepalign.errors import StepalignError
from stepalign.io import write_jsonl
from stepalign.records import Problem
from stepalign.unit_tests import UnitTests

MBPP = Path(__file__).parents[2] / "../shared/data/mbpp/mbpp.jsonl"
ADD = "def add(a, b):\n    return a + b"
ROW = {
    "task_id": 601,
    "text": "Write a function to add two numbers.",
    "code": ADD.replace("\n", "\r\n"),
    "test_list": ["assert add(1, 2) == 3", "assert add(0, 0) == 0 ", "assert add(-1, 1) == 0"],
    "test_setup_code": "x = 1\r\ny = 2",
    "challenge_test_list": [],
}
HUMANEVAL_ROW = {
    "task_id": "HumanEval/1",
    "prompt": 'from typing import List\n\n\ndef one() -> int:\n    return 1\n\n\ndef inc(x):\n    """Add one."""\n',
    "entry_point": "inc",
    "canonical_solution": "    return x + one()\n",
    "test": "def check(candidate):\n    assert candidate(1) == 2\n",
}


def write(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def mbpp(path: Path, *rows: dict[str, Any], **settings: Any) -> config.MbppConfig:
    return config.MbppConfig(path=write(path / "mbpp.jsonl", *rows), **settings)


@pytest.mark.skipif(not MBPP.is_file(), reason=f"MBPP is not at {MBPP}")
@pytest.mark.parametrize(("split", "count"), [("prompt", 10), ("test", 499), ("validation", 90), ("train", 374)])
def test_all_of_the_real_data_is_read(split: Any, count: int) -> None:
    loaded = load(config.MbppConfig(split=split, path=MBPP))
    assert len(loaded.problems) == count
    assert loaded.dropped == ({"duplicate": 1} if split == "test" else {})
    for problem in loaded.problems:
        assert problem.tests is not None
        assert problem.tests.entry_point in problem.statement
        assert len(problem.tests.hidden) == 2
        assert "\r" not in problem.solution + problem.statement + problem.tests.setup


def test_the_statement_shows_the_shown_tests_in_the_customary_words(tmp_path: Path) -> None:
    (problem,) = load(mbpp(tmp_path, ROW, {**ROW, "task_id": 11})).problems
    assert problem.id == "mbpp-601"
    assert problem.statement == (
        "Write a function to add two numbers.\n\nYour code should pass these tests:\n\nassert add(1, 2) == 3"
    )
    assert problem.solution == ADD
    assert problem.trace_format == "code"
    assert problem.tests == UnitTests(
        shown=("assert add(1, 2) == 3",),
        hidden=("assert add(0, 0) == 0", "assert add(-1, 1) == 0"),
        entry_point="add",
        setup="x = 1\ny = 2",
    )


@pytest.mark.parametrize("shown", [0, 3, 9])
def test_no_test_or_every_test_can_be_shown(tmp_path: Path, shown: int) -> None:
    (problem,) = load(mbpp(tmp_path, ROW, shown_tests=shown)).problems
    assert problem.tests is not None
    assert len(problem.tests.shown) == min(shown, 3)
    assert problem.statement.count("assert") == min(shown, 3)


def test_rows_without_usable_tests_are_counted(tmp_path: Path) -> None:
    rows = [
        ROW,
        {**ROW, "task_id": 602, "text": "Nothing.", "test_list": []},
        {**ROW, "task_id": 603, "text": "Broken.", "test_list": ["assert add(1, 2 == 3"]},
        {**ROW, "task_id": 604, "text": " "},
    ]
    loaded = load(mbpp(tmp_path, *rows))
    assert [problem.id for problem in loaded.problems] == ["mbpp-601"]
    assert loaded.dropped == {"missing answer": 1, "tests that do not parse": 1, "empty statement": 1}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"task_id": "601"}, "line 1: column 'task_id': a whole number is wanted, found '601'"),
        ({"test_list": [1]}, r"column 'test_list': a list of texts, or a text, is wanted, found \[1\]"),
        ({"code": 5}, "column 'code': text is wanted, found 5"),
    ],
)
def test_a_value_of_another_kind_is_an_error_that_names_it(tmp_path: Path, change: Any, message: str) -> None:
    with pytest.raises(StepalignError, match=message):
        load(mbpp(tmp_path, {**ROW, **change}))


def test_humanevals_prompt_is_statement_and_preamble_and_its_tests_are_hidden(tmp_path: Path) -> None:
    path = write(tmp_path / "HumanEval.jsonl", HUMANEVAL_ROW)
    (problem,) = load(config.HumanEvalConfig(path=path)).problems
    prompt = HUMANEVAL_ROW["prompt"]
    assert problem.id == "HumanEval-1"
    assert problem.statement == f"Complete the following Python function:\n\n```python\n{prompt.strip()}\n```"
    assert problem.solution == (prompt + HUMANEVAL_ROW["canonical_solution"]).strip()
    assert problem.tests == UnitTests(
        hidden=("def check(candidate):\n    assert candidate(1) == 2\n\ncheck(inc)",),
        entry_point="inc",
        preamble="from typing import List\n\ndef one() -> int:\n    return 1",
    )


@pytest.mark.parametrize(
    ("source", "row", "asked"),
    [
        (config.MbppConfig(revision="v1"), ROW, ("google-research-datasets/mbpp", "full", "train")),
        (config.HumanEvalConfig(revision="v1"), HUMANEVAL_ROW, ("openai/openai_humaneval", None, "test")),
    ],
)
def test_a_hub_data_set_is_read_at_its_revision(
    source: Any, row: dict[str, Any], asked: tuple[str | None, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    def load_dataset(dataset: str, name: str | None, *, split: str, revision: str, streaming: bool) -> Any:
        assert (dataset, name, split, revision) == (*asked, "v1")
        return [row]

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    (problem,) = load(source).problems
    assert problem.source == asked[0]


@pytest.mark.parametrize(
    ("source", "layout", "row"),
    [
        (config.MbppConfig(shown_tests=2), ("full", "train"), ROW),
        (config.HumanEvalConfig(), ("openai_humaneval", "test"), HUMANEVAL_ROW),
    ],
)
def test_the_hub_s_layout_and_columns_give_the_problems_of_the_raw_file(
    source: Any, layout: tuple[str, str], row: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    name, split = layout
    (tmp_path / name).mkdir()
    parquet.write_table(pyarrow.Table.from_pylist([row]), tmp_path / name / f"{split}-00000-of-00001.parquet")
    files = f"data_files: [{{ split: {split}, path: {name}/{split}-* }}]"
    (tmp_path / "README.md").write_text(f"---\nconfigs: [{{ config_name: {name}, {files} }}]\n---\n")
    (raw,) = load(source.model_copy(update={"path": write(tmp_path / "raw.jsonl", row)})).problems
    monkeypatch.setattr(type(source), "hub", str(tmp_path))
    (problem,) = load(source).problems
    assert problem == replace(raw, source=str(tmp_path))


def test_a_file_with_other_columns_reads_the_same_as_jsonl_and_as_parquet(tmp_path: Path) -> None:
    row = {"task": "Add.", "checks": ["assert add(1, 2) == 3"], "private": ["assert add(2, 2) == 4"], "name": "add"}
    write(tmp_path / "a.jsonl", row)
    parquet.write_table(pyarrow.Table.from_pylist([row]), tmp_path / "a.parquet")
    columns = config.CodeColumnsConfig(statement="task", tests="checks", hidden_tests="private", entry_point="name")
    problems = [
        load(config.CodeFileConfig(path=tmp_path / f"a.{kind}", columns=columns)).problems[0]
        for kind in ("jsonl", "parquet")
    ]
    for problem in problems:
        assert (problem.id, problem.solution) == ("a-1", "")
        tests = UnitTests(shown=("assert add(1, 2) == 3",), hidden=("assert add(2, 2) == 4",), entry_point="add")
        assert problem.tests == tests


def test_a_named_column_that_is_absent_is_an_error(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", {"statement": "Add.", "tests": "assert add(1, 2) == 3"})
    assert load(config.CodeFileConfig(path=path)).problems
    columns = config.CodeColumnsConfig(solution="reference")
    with pytest.raises(StepalignError, match="no column 'reference'; columns present: statement, tests"):
        load(config.CodeFileConfig(path=path, columns=columns))


def test_written_problems_keep_their_tests(tmp_path: Path) -> None:
    problems = load(mbpp(tmp_path, ROW)).problems
    write_jsonl(tmp_path / "train.jsonl", problems)
    assert load(config.FileConfig(path=tmp_path / "train.jsonl")).problems == problems


def test_files_from_before_unit_tests_are_records_still(tmp_path: Path) -> None:
    record = {"id": "a", "statement": "A", "answer": "1", "solution": "", "source": "s", "meta": {"x": 1}}
    path = write(tmp_path / "old.jsonl", record)
    assert load(config.FileConfig(path=path)).problems == (
        Problem(id="a", statement="A", answer="1", source="s", meta={"x": 1}),
    )


def test_a_problem_needs_an_answer_or_tests() -> None:
    with pytest.raises(ValueError, match="without an answer and without unit tests"):
        Problem(id="a", statement="A")
    with pytest.raises(ValueError, match="unit tests without a test"):
        UnitTests(setup="x = 1")
