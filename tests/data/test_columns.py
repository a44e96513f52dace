"""Columns of a file, of a folder laid out like a hub data set, and of rows from Python."""

import json
import logging
from pathlib import Path
from typing import Any

import datasets
import numpy
import pandas
import pyarrow
import pytest
from pyarrow import parquet

from stepalign import config
from stepalign.data import load, pin, prepare
from stepalign.errors import StepalignError
from stepalign.records import Problem


def rows_source(rows: Any, **columns: Any) -> config.PythonSourceConfig:
    return config.PythonSourceConfig(
        function=config.PythonObject.of_rows(rows), columns=config.ColumnsConfig(**{"meta": ("*",)} | columns)
    )


def read(*rows: Any, **columns: Any) -> list[Problem]:
    return list(load(rows_source(rows, **columns)).problems)


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (["12"], "12"),
        ([1, 2.0], "1, 2"),
        (("x = 1", "x = 2"), "x = 1, x = 2"),
        (numpy.int64(7), "7"),
        (numpy.array([3, 4]), "3, 4"),
        (numpy.float64(0.5), "0.5"),
        (7.0, "7"),
    ],
)
def test_an_answer_may_be_a_number_or_a_list(answer: Any, text: str) -> None:
    assert read({"statement": "A", "answer": answer})[0].answer == text


@pytest.mark.parametrize("answer", [{"value": 1}, [[1]], True, [True]])
def test_another_answer_is_refused(answer: Any) -> None:
    with pytest.raises(StepalignError, match="row 1: column 'answer': text or a number is wanted, found"):
        read({"statement": "A", "answer": answer})


USER, LATER = {"role": "user", "content": "1 + 1?"}, {"role": "user", "content": "And 2 + 2?"}
ASSISTANT, SYSTEM = {"role": "assistant", "content": "2"}, {"role": "system", "content": "Be short."}


@pytest.mark.parametrize(
    ("turns", "system", "statement", "solution"),
    [
        ([USER], "refuse", "1 + 1?", ""),
        ([USER, ASSISTANT], "refuse", "1 + 1?", "2"),
        ([USER, ASSISTANT, LATER], "refuse", "And 2 + 2?", ""),
        ([SYSTEM, USER], "drop", "1 + 1?", ""),
        ([SYSTEM, USER, ASSISTANT], "prepend", "Be short.\n\n1 + 1?", "2"),
        ([{"from": "human", "value": "1 + 1?"}, {"from": "gpt", "value": "2"}], "refuse", "1 + 1?", "2"),
        ([{"role": "user", "content": [{"type": "text", "text": "1 + 1?"}]}], "refuse", "1 + 1?", ""),
        ([{"role": "system", "content": ""}, USER], "refuse", "1 + 1?", ""),
    ],
)
def test_the_last_user_turn_is_the_problem(turns: Any, system: str, statement: str, solution: str) -> None:
    (problem,) = read({"messages": turns, "answer": 2}, statement="messages", system=system)
    assert (problem.statement, problem.solution) == (statement, solution)


def test_earlier_turns_are_counted(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "stepalign"):
        read({"messages": [USER, ASSISTANT, LATER], "answer": 4}, statement="messages")
    assert "1 conversations with earlier turns, which the solver is not shown, the first at problems, row 1" in (
        caplog.text
    )


@pytest.mark.parametrize(
    ("turns", "message"),
    [
        ([SYSTEM, USER], r"a system turn, 'Be short\.'\. Set columns\.system: 'prepend'"),
        ([ASSISTANT], "a conversation without a user turn"),
        ([{"role": "tool", "content": "a"}], "turns of system, developer, user, assistant with text are wanted"),
        ([{"role": "user", "content": [{"type": "image"}]}], "with text are wanted"),
    ],
)
def test_another_conversation_is_refused(turns: Any, message: str) -> None:
    with pytest.raises(StepalignError, match=message):
        read({"messages": turns, "answer": 2}, statement="messages")


def test_a_template_makes_the_statement_of_several_columns() -> None:
    row = {"question": "Which?", "choices": ["a", "b"], "answer": "a"}
    template = "{{ question }}\n{% for choice in choices %}\n- {{ choice }}\n{% endfor %}"
    assert read(row, template=template)[0].statement == "Which?\n- a\n- b"
    with pytest.raises(StepalignError, match=r"row 1: columns\.template: 'q' is undefined; columns present: question"):
        read(row, template="{{ q }}")
    for faulty, message in (("{{ q", "not a valid template"), ("Which?", "names no column")):
        with pytest.raises(StepalignError, match=message):
            read(row, template=faulty)


def test_other_columns_are_kept_where_json_can_hold_them() -> None:
    row = {"statement": "A", "answer": 1, "level": 3, "tests": ["x"], "when": object()}
    assert read(row, meta=("level", "tests"))[0].meta == {"level": 3, "tests": ["x"]}
    with pytest.raises(StepalignError, match=r"column 'when': JSON cannot hold .*columns\.meta"):
        read(row)


FRAME = [{"question": f"{n} + 1?", "target": float(n + 1), "level": n} for n in range(4)]


@pytest.mark.parametrize("make", [list, tuple, pandas.DataFrame, datasets.Dataset.from_list, iter])
def test_lists_frames_and_data_sets_are_read_alike(make: Any) -> None:
    (first, *_) = problems = load(rows_source(make(FRAME), statement="question", answer="target")).problems
    assert first == Problem(id="problem-1", statement="0 + 1?", answer="1", source="python", meta={"level": 0})
    assert len(problems) == 4


def test_problems_are_taken_whole_and_other_rows_refused() -> None:
    problem = Problem(id="p", statement="A", answer="1", meta={"a": 1})
    assert read(problem) == [problem]
    with pytest.raises(StepalignError, match=r"problems, row 2: a dict or a stepalign\.Problem is wanted, found 'B'"):
        read(problem, "B")
    with pytest.raises(StepalignError, match="are wanted, found a DatasetDict with the keys train"):
        rows_source(datasets.DatasetDict(train=datasets.Dataset.from_list(FRAME)))


def rows_of_a_module() -> list[dict[str, Any]]:
    return [{"statement": "A", "answer": 1}]


def test_a_function_gives_the_rows() -> None:
    source = config.PythonSourceConfig(function=config.PythonObject(f"{__name__}:rows_of_a_module"))
    source = config.PythonSourceConfig(function=config.PythonObject.of(rows_of_a_module))
    assert [problem.statement for problem in load(source).problems] == ["A"]
    with pytest.raises(StepalignError, match=r"problems: .*<lambda> failed: ZeroDivisionError"):
        load(config.PythonSourceConfig(function=config.PythonObject.of(lambda: 1 / 0)))


# ── data sets of the hub, as local folders with the same layout ───────────────────────────────────────────────


@pytest.fixture
def hub_folder(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    for split, rows in (("train", FRAME[:3]), ("test", FRAME[3:])):
        parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "data" / f"{split}-00000-of-00001.parquet")
    return tmp_path


@pytest.mark.parametrize("streaming", [False, True])
def test_a_hub_data_set_is_read_by_split_and_column_map(hub_folder: Path, streaming: bool) -> None:
    columns = config.ColumnsConfig(statement="question", answer="target", meta=("level",))
    source = config.HubConfig(dataset=str(hub_folder), split="test", streaming=streaming, columns=columns)
    (problem,) = load(source).problems
    assert problem == Problem(
        id=f"{hub_folder.name}-test-0", statement="3 + 1?", answer="4", source=str(hub_folder), meta={"level": 3}
    )


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"split": "validation"}, r"split 'validation': .*train.*test"),
        ({"config": "hard"}, r"hard"),
        ({}, r"row 0: no column 'statement'; columns present: question, target, level"),
    ],
)
def test_what_a_data_set_lacks_is_named(hub_folder: Path, keys: dict[str, Any], message: str) -> None:
    with pytest.raises(StepalignError, match=message):
        load(config.HubConfig(dataset=str(hub_folder), **keys))


def test_a_kept_commit_is_used_again_and_a_local_folder_has_none(hub_folder: Path) -> None:
    local, named = config.HubConfig(dataset=str(hub_folder)), config.HubConfig(dataset="owner/name", revision="main")
    settings = config.ProblemsConfig(train=named, evaluation=local)
    pinned, commits = pin(settings, {"train": "0123abc"})
    assert commits == {"train": "0123abc"}
    assert pinned.train.revision == "0123abc"  # type: ignore[attr-defined]
    assert pinned.evaluation == local


@pytest.mark.parametrize(
    ("source", "repository"),
    [
        (config.Gsm8kConfig, ("openai/gsm8k", "main")),
        (config.MbppConfig, ("google-research-datasets/mbpp", "full")),
        (config.HumanEvalConfig, ("openai/openai_humaneval", None)),
    ],
)
def test_a_commit_is_that_of_the_data_set_now(
    source: Any, repository: tuple[str, str | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    class Builder:
        hash = "fedcba"

    def load_dataset_builder(*names: Any, **options: Any) -> Builder:
        asked.append((*names, options))
        return Builder()

    monkeypatch.setattr(datasets, "load_dataset_builder", load_dataset_builder)
    settings = config.ProblemsConfig(train=source(revision="v1"), evaluation=source(path="raw.jsonl"))
    pinned, commits = pin(settings, {})
    assert (commits, asked) == ({"train": "fedcba"}, [(*repository, {"revision": "v1"})])
    assert pinned.train.revision == "fedcba"  # type: ignore[attr-defined]


def test_rows_may_be_evaluated_on(hub_folder: Path) -> None:
    settings = config.ProblemsConfig(
        train=rows_source(FRAME, statement="question", answer="target"),
        evaluation=rows_source(FRAME[:1], statement="question", answer="target"),
    )
    train, evaluation, dropped = prepare(settings)
    assert (len(train), len(evaluation), dropped) == (3, 1, {"also an evaluation problem": 1})
    assert [problem.id for problem in (*train, *evaluation)] == ["problem-2", "problem-3", "problem-4", "evaluation-1"]


def test_a_training_and_an_evaluation_problem_cannot_have_one_id(tmp_path: Path) -> None:
    sources = []
    for folder, statement in (("train", "1 + 1?"), ("test", "1 + 2?")):
        (tmp_path / folder).mkdir()
        file = tmp_path / folder / "data.jsonl"
        file.write_text(json.dumps({"statement": statement, "answer": "2"}) + "\n")
        sources.append(config.FileConfig(path=file))
    message = r"1 ids are those of two different problems \(the first: 'data-1'\).*columns\.id"
    with pytest.raises(StepalignError, match=message):
        prepare(config.ProblemsConfig(train=sources[0], evaluation=sources[1]))
