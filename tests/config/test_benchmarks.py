"""Benchmarks by name, on local copies of a few rows with the columns of the data sets' cards."""

import json
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from stepalign import config
from stepalign.config.benchmarks import BENCHMARKS, benchmark
from stepalign.data import load
from stepalign.errors import StepalignError

MATHARENA = {"problem_idx": 3, "problem": "What is 2 + 3?", "answer": 5, "problem_type": ["Algebra"]}
ROWS: dict[str, dict[str, Any]] = {
    "gsm8k": {"question": "What is 2 + 3?", "answer": "2 + 3 = <<2+3=5>>5\n#### 5"},
    "math-500": {
        "problem": "What is 2 + 3?", "solution": "It is $\\boxed{5}$.", "answer": "5", "subject": "Algebra", "level": 1,
        "unique_id": "test/algebra/1.json",
    },
    "aime24": {
        "id": 60, "problem": "What is 2 + 3?", "solution": "5.", "answer": "5", "url": "https://a", "year": "2024",
    },
    "aime25": MATHARENA,
    "hmmt25": MATHARENA | {"answer": "5"},
    "amc23": {"id": 0, "question": "What is 2 + 3?", "answer": "5.0", "url": "https://a"},
    "humaneval": {
        "task_id": "HumanEval/0", "prompt": "def add(a, b):\n    \"\"\"Add.\"\"\"\n", "entry_point": "add",
        "canonical_solution": "    return a + b\n", "test": "def check(candidate):\n    assert candidate(2, 3) == 5\n",
    },
    "mbpp": {
        "task_id": 11, "text": "Write a function to add.", "code": "def add(a, b):\n    return a + b",
        "test_list": ["assert add(2, 3) == 5"], "test_setup_code": "", "challenge_test_list": [],
    },
}  # fmt: skip


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    file = tmp_path / "recipe.toml"
    file.write_text(
        'name = "a"\nmodel = { name_or_path = "m" }\nproblems = { holdout = 3, train = { source = "sums" } }\n'
        "evaluation = { num_samples = 2, num_bootstrap = 50, sampling = { max_new_tokens = 160 } }\n"
    )
    return file


@pytest.mark.parametrize("name", BENCHMARKS)
def test_each_reads_its_columns_and_has_its_sampling(name: str, recipe: Path, tmp_path: Path) -> None:
    known = benchmark(name)
    if isinstance(known.source, config.HubConfig):
        folder = tmp_path / "data" / "data"
        folder.mkdir(parents=True)
        parquet.write_table(
            pyarrow.Table.from_pylist([ROWS[name]]), folder / f"{known.source.split}-00000-of-00001.parquet"
        )
        local = f"problems.evaluation.dataset={folder.parent}"
    else:
        (tmp_path / "rows.jsonl").write_text(json.dumps(ROWS[name]) + "\n")
        local = f"problems.evaluation.path={tmp_path / 'rows.jsonl'}"
    settings = config.load(recipe, [local], benchmark=name)
    (problem,) = load(settings.problems.evaluation).problems  # type: ignore[arg-type]
    assert problem.answer.removesuffix(".0") == ("" if problem.tests else "5")
    assert settings.grader.kind == ("unit-tests" if problem.tests else "math")
    assert settings.problems.holdout == 0
    assert settings.evaluation.sampling == known.sampling
    assert (settings.evaluation.num_samples, settings.evaluation.num_bootstrap) == (known.num_samples, 50)
    assert known.licence
    assert known.basis
    assert known.contamination


def test_a_recipe_s_own_evaluation_problems_leave_nothing_behind(recipe: Path) -> None:
    for name, own in (
        ("gsm8k", 'source = "gsm8k", split = "test", limit = 200'),
        ("aime25", 'source = "hub", dataset = "a/b", revision = "v1", streaming = true, columns = { answer = "c" }'),
    ):
        file = recipe.with_name("own.toml")
        file.write_text(recipe.read_text().replace("holdout = 3", f"evaluation = {{ {own} }}"))
        assert config.load(file, benchmark=name).problems.evaluation == benchmark(name).source


def test_overrides_are_laid_over_a_benchmark_and_an_unknown_one_is_named(recipe: Path) -> None:
    settings = config.load(recipe, ["evaluation.num_samples=3"], benchmark="aime25")
    assert (settings.evaluation.num_samples, settings.evaluation.sampling.max_new_tokens) == (3, 38_912)
    with pytest.raises(StepalignError, match="no benchmark 'aime2025'; did you mean aime25"):
        config.load(recipe, benchmark="aime2025")


def test_the_page_lists_every_benchmark() -> None:
    page = (Path(__file__).parents[2] / "docs" / "evaluation.md").read_text()
    for name, known in BENCHMARKS.items():
        assert f"| `{name}` | {known.size:,} | {known.licence} | {known.basis} |" in page, name
