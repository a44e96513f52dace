"""Rollouts and critiques of a run as a data set: Parquet files with a card, which `datasets.load_dataset` reads."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
from huggingface_hub import DatasetCardData
from pyarrow.parquet import ParquetWriter

from stepalign.arguments import checked
from stepalign.errors import StepalignError
from stepalign.exporting.card import sources_of
from stepalign.io import new_folder, read_jsonl, write_atomically
from stepalign.records import CriticResult, Critique, CritiqueFailure, Problem, Rollout
from stepalign.report.run import read_run

_TEXT, _COUNT, _IDS = pa.string(), pa.int64(), pa.list_(pa.int64())
_SCHEMA = pa.schema(
    {
        "step": _COUNT,
        "rollout_id": _TEXT,
        "problem_id": _TEXT,
        "problem": _TEXT,
        "reference_answer": _TEXT,
        "reference_solution": _TEXT,
        "completion": _TEXT,
        "prompt_ids": _IDS,
        "completion_ids": _IDS,
        "finish": _TEXT,
        "source": _TEXT,
        "turn": _COUNT,
        "correct": pa.bool_(),
        "reward": pa.float64(),
        "outcome": _TEXT,
        "final_answer": _TEXT,
        "critic": _TEXT,
        "critique": _TEXT,
        "critique_case": _TEXT,
        "first_wrong_step": _COUNT,
        "critique_failure": _TEXT,
    }
)
"""Types of the columns. A column without a value has none otherwise."""


@checked
def export_dataset(run_folder: Path | str, out: Path | str) -> dict[str, int]:
    """Write the rollouts of training and of evaluations, each with its problem, grade and critique, to a new folder.

    A step's second turns follow its rollouts.

    Returns:
        The number of rows of each split.

    Raises:
        StepalignError: the run has no rollouts, a file of it is damaged, or `out` exists.
    """
    with new_folder(Path(out)) as folder:
        return _write(Path(run_folder), folder)


WITHOUT_WEIGHTS = "belongs to weights, and a data set has none: leave it out"


def refuse_options(options: Mapping[str, Any], why: str) -> None:
    """Raise a StepalignError where an option is set, with its name and the reason."""
    if given := [name for name, value in options.items() if value is not None and value is not False]:
        raise StepalignError(f"{', '.join(given)}: {why}")


def _write(run_folder: Path, folder: Path) -> dict[str, int]:
    run, counts = read_run(run_folder), {}
    for split, room in {"train": "rollouts", "evaluation": "evaluations"}.items():
        path, count = folder / f"{split}.parquet", 0
        with ParquetWriter(path, _SCHEMA) as writer:
            for rows in _rows(run_folder, room, split):
                writer.write_table(pa.Table.from_pylist(rows, _SCHEMA))
                count += len(rows)
        if count:
            counts[split] = count
        else:
            path.unlink()
    if not counts:
        raise StepalignError(f"{run_folder}: the run has no rollouts yet")
    sources = sources_of(run)
    front = DatasetCardData(
        tags=["stepalign", "rollouts", "critiques"],
        configs=[
            {
                "config_name": "default",
                "data_files": [{"split": split, "path": f"{split}.parquet"} for split in counts],
            }
        ],
        source_datasets=sorted({source.hub for source in sources.values() if source.hub}) or None,
    )
    licences = ", ".join(f"{use}: {source.licence or 'not known'}" for use, source in sources.items())
    text = (
        f"---\n{front.to_yaml()}\n---\n\n# Rollouts and critiques of {run.name}\n\n"
        f"Sampled by `{run.recipe.get('model', {}).get('name_or_path')}` while Stepalign trained it. One row a "
        "rollout: its problem, the completion, the grade, and the critique, or the reason why there is none.\n\n"
        f"Licences of the problems: {licences or 'not known'}. For completions see the model's licence.\n"
    )
    write_atomically(folder / "README.md", text)
    write_atomically(folder / "recipe.toml", run.recipe_text)
    return counts


def _rows(run_folder: Path, room: str, problems: str) -> Iterator[list[dict[str, Any]]]:
    """Yield the rows of each file in a folder of rollouts, in the order of steps."""
    path = run_folder / "problems" / f"{problems}.jsonl"
    by_id = {problem.id: problem for problem in read_jsonl(path, Problem)} if path.exists() else {}
    for file in sorted((run_folder / room).glob("step-*.jsonl")):
        critiques = run_folder / "critiques" / file.name
        found = room == "rollouts" and critiques.exists()
        kind: Any = CriticResult  # a union, which `type` does not cover
        results = {result.rollout_id: result for result in read_jsonl(critiques, kind)} if found else {}
        rollouts, second = read_jsonl(file, Rollout), run_folder / "second-turns" / file.name
        if room == "rollouts" and second.exists():
            rollouts += read_jsonl(second, Rollout)
        step = int(file.stem.removeprefix("step-"))
        yield [_row(step, each, by_id.get(each.problem_id), results.get(each.id)) for each in rollouts]


def _row(
    step: int, rollout: Rollout, problem: Problem | None, critique: Critique | CritiqueFailure | None
) -> dict[str, Any]:
    """Flatten a rollout with its problem and critique. Every row has the same columns."""
    grade, given = rollout.grade, critique if isinstance(critique, Critique) else None
    return {
        "step": step,
        "rollout_id": rollout.id,
        "problem_id": rollout.problem_id,
        "problem": problem.statement if problem else "",
        "reference_answer": problem.answer if problem else "",
        "reference_solution": problem.solution if problem else "",
        "completion": rollout.text,
        "prompt_ids": list(rollout.prompt_ids),
        "completion_ids": list(rollout.completion_ids),
        "finish": rollout.finish,
        "source": rollout.source,
        "turn": rollout.turn,
        "correct": rollout.correct,
        "reward": rollout.reward,
        "outcome": grade.outcome if grade else "",
        "final_answer": grade.final_answer if grade else "",
        "critic": critique.critic if critique else "",
        "critique": given.text if given else "",
        "critique_case": given.case if given else "",
        "first_wrong_step": given.first_error if given else None,
        "critique_failure": critique.reason if isinstance(critique, CritiqueFailure) else "",
    }
