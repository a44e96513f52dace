from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from stepalign import config
from stepalign.data import openmath
from stepalign.data.normalize import Loaded, collect
from stepalign.errors import StepalignError

CARD = """---
configs:
- config_name: default
  data_files:
  - split: cot
    path: data/cot-*
  - split: tir
    path: data/tir-*
---
"""


def row(problem: str, rate: str | None, *, solution: str = "2.", answer: str | None = "2") -> dict[str, Any]:
    return {
        "expected_answer": answer,
        "problem_type": "has_answer_extracted",
        "problem_source": "aops_c6_high_school_olympiads",
        "generation_model": "DeepSeek-R1",
        "pass_rate_72b_tir": rate,
        "problem": problem,
        "generated_solution": f"<think>\nHm, </think> or so.\n</think>\n\n{solution}",
        "inference_mode": "cot",
        "used_in_kaggle": True,
    }


ROWS = [
    row("Solved by nearly all", "0.96875", solution="First solution."),
    row("Solved by nearly all", "0.96875", solution="Second solution."),
    row("Not known", "n/a"),
    row("At the bound", "0.85"),
    row("Hard", "0.125"),
    row("Hard", "0.125"),
    row("No answer", "1.0", answer=None),
    row("Answer not known", "1.0", answer="n/a"),
    row("", "1.0"),
    row("Solved by all", "1.0"),
]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder laid out like the data set on the hub: a card, and splits in numbered Parquet files."""
    folder = tmp_path_factory.mktemp("OpenMathReasoning")
    (folder / "README.md").write_text(CARD)
    (folder / "data").mkdir()
    parts = {"cot-00000-of-00002": ROWS[:4], "cot-00001-of-00002": ROWS[4:], "tir-00000-of-00001": ROWS[-1:]}
    for name, rows in parts.items():
        parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "data" / f"{name}.parquet")
    return str(folder)


def load(dataset: str, **settings: Any) -> Loaded:
    source = config.OpenMathConfig(dataset=dataset, **settings)
    return collect("openmath", openmath.candidates(source), source.limit)


def test_the_pass_rate_must_be_known_and_above_the_bound(dataset: str) -> None:
    result = load(dataset)
    assert [problem.statement for problem in result.problems] == ["Solved by nearly all", "Solved by all"]
    assert result.dropped == {"duplicate": 2, "pass rate": 3, "missing answer": 2, "empty statement": 1}
    assert result.places["empty statement"] == [f"{dataset}, cot, row 8"]


def test_the_reference_is_the_first_solution_without_its_reasoning(dataset: str) -> None:
    first = load(dataset).problems[0]
    assert first.solution == "First solution."
    assert first.answer == "2"
    assert first.meta["pass_rate_72b_tir"] == "0.96875"


def test_a_problem_has_the_same_id_in_every_split(dataset: str) -> None:
    (in_tir,) = load(dataset, split="tir").problems
    assert in_tir.id == load(dataset).problems[1].id


def test_an_unknown_split_is_an_error_that_names_those_there_are(dataset: str) -> None:
    with pytest.raises(StepalignError, match=r"split 'train': .*cot.*tir"):
        load(dataset, split="train")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"question": "A", "answer": "1"}, "row 0: no column 'problem'; columns present: question, answer"),
        (row("A", "high"), "row 0: pass_rate_72b_tir: a number or n/a is wanted, found 'high'"),
    ],
)
def test_another_column_or_value_is_an_error_that_names_it(
    tmp_path: Path, values: dict[str, Any], message: str
) -> None:
    parquet.write_table(pyarrow.Table.from_pylist([values]), tmp_path / "cot.parquet")
    (tmp_path / "README.md").write_text(CARD.replace("data/cot-*", "cot.parquet").split("  - split: tir")[0] + "---\n")
    with pytest.raises(StepalignError, match=message):
        load(str(tmp_path))
