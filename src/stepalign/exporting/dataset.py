"""Rollouts and critiques of a run as a data set: Parquet files with a card, which `datasets.load_dataset` reads."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from datasets import Dataset
from huggingface_hub import DatasetCardData

from stepalign.arguments import checked
from stepalign.errors import StepalignError
from stepalign.exporting.card import sources_of
from stepalign.io import new_folder, read_jsonl, write_atomically
from stepalign.records import CriticResult, Critique, CritiqueFailure, Problem, Rollout
from stepalign.report.run import read_run


@checked
def export_dataset(run_folder: Path | str, out: Path | str) -> dict[str, int]:
    """Write the rollouts of training and of evaluations, each with its problem, grade and critique, to a new folder.

    Returns:
        The number of rows of each split.

    Raises:
        StepalignError: the run has no rollouts, a file of it is damaged, or `out` exists.
    """
    with new_folder(Path(out)) as folder:
        return _write(Path(run_folder), folder)


def _write(run_folder: Path, folder: Path) -> dict[str, int]:
    run, counts = read_run(run_folder), {}
    for split, room in {"train": "rollouts", "evaluation": "evaluations"}.items():
        rows = list(_rows(run_folder, room, split))
        if rows:
            Dataset.from_list(rows).to_parquet(folder / f"{split}.parquet")
            counts[split] = len(rows)
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


def _rows(run_folder: Path, room: str, problems: str) -> Iterator[dict[str, Any]]:
    """Yield the rows of a folder of rollouts, in the order of steps."""
    path = run_folder / "problems" / f"{problems}.jsonl"
    by_id = {problem.id: problem for problem in read_jsonl(path, Problem)} if path.exists() else {}
    for file in sorted((run_folder / room).glob("step-*.jsonl")):
        critiques = run_folder / "critiques" / file.name
        found = room == "rollouts" and critiques.exists()
        kind: Any = CriticResult  # a union, which `type` does not cover
        results = {result.rollout_id: result for result in read_jsonl(critiques, kind)} if found else {}
        for rollout in read_jsonl(file, Rollout):
            yield _row(
                int(file.stem.removeprefix("step-")), rollout, by_id.get(rollout.problem_id), results.get(rollout.id)
            )


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
