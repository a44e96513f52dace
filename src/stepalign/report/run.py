"""Contents of a run's folder, read for its report. Each part may be missing: a run can be killed at any moment."""

import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stepalign.errors import StepalignError
from stepalign.evaluation.metrics import CreditMeasures, Evaluation
from stepalign.io import AppendLog, read_json, read_jsonl
from stepalign.records import CriticResult, Critique, CritiqueFailure, Problem, Rollout

_PARTS = ("recipe.toml", "manifest.json", "metrics.jsonl", "evaluations", "rollouts")


@dataclass(frozen=True)
class Example:
    """A training rollout with its critique."""

    problem: Problem | None
    rollout: Rollout
    critique: Critique | CritiqueFailure | None


@dataclass(frozen=True)
class RunFiles:
    """Contents of a run's folder, empty where a part is missing."""

    folder: Path
    recipe: Mapping[str, Any]
    """As in the file: a report needs no recipe that this release can run."""
    recipe_text: str
    manifest: Mapping[str, Any]
    steps: list[Mapping[str, Any]]
    """The lines of `metrics.jsonl`, one an optimizer step, in order."""
    timeline: Mapping[str, Any]
    """The last step's spans in seconds, by stage."""
    evaluations: list[Evaluation]
    """In the order of their steps."""
    probes: list[tuple[int, CreditMeasures]]
    """The probe's measures by step."""
    examples_step: int | None
    """The optimizer step of `examples`: the last one with rollouts."""
    examples: list[Example]

    @property
    def name(self) -> str:
        """The recipe's name; without a recipe, the folder's."""
        return str(self.recipe.get("name", self.folder.resolve().name))


def read_run(folder: Path) -> RunFiles:
    """Read a run's folder.

    Raises:
        StepalignError: it holds no run, or a file in it is not what it should be.
    """
    if not any((folder / part).exists() for part in _PARTS):
        raise StepalignError(f"{folder}: no run there (none of {', '.join(_PARTS)})")
    recipe_text, manifest = (
        path.read_text(encoding="utf-8") if path.exists() else ""
        for path in (folder / "recipe.toml", folder / "manifest.json")
    )
    try:
        recipe = tomllib.loads(recipe_text)
    except tomllib.TOMLDecodeError as error:
        raise StepalignError(f"{folder / 'recipe.toml'}: not valid TOML: {error}") from None
    try:
        manifest_table = dict(json.loads(manifest or "{}"))
    except ValueError as error:
        raise StepalignError(f"{folder / 'manifest.json'}: not a JSON object: {error}") from None
    rollouts = next(reversed(_step_files(folder / "rollouts", "jsonl")), None)
    return RunFiles(
        folder=folder,
        recipe=recipe,
        recipe_text=recipe_text,
        manifest=manifest_table,
        steps=_steps(folder / "metrics.jsonl"),
        timeline=next(reversed(_steps(folder / "timeline.jsonl")), {}),
        evaluations=[read_json(path, Evaluation) for path in _step_files(folder / "evaluations", "json")],
        probes=[(_step(path), read_json(path, CreditMeasures)) for path in _step_files(folder / "probe", "json")],
        examples_step=_step(rollouts) if rollouts else None,
        examples=_examples(folder, rollouts) if rollouts else [],
    )


def _step_files(folder: Path, suffix: str) -> list[Path]:
    return sorted(folder.glob(f"step-*.{suffix}"))


def _step(path: Path) -> int:
    return int(path.stem.removeprefix("step-"))


def _steps(path: Path) -> list[Mapping[str, Any]]:
    log = AppendLog(path, dict[str, Any])
    steps: dict[int, Mapping[str, Any]] = {}
    for line in log.read():
        if "step" not in line:
            raise StepalignError(f"{log.place}: not a step's: {str(line)[:80]!r}")
        steps[int(line["step"])] = line  # a step that was repeated after a crash counts once, with its last line
    return [steps[step] for step in sorted(steps)]


def _examples(folder: Path, rollouts: Path) -> list[Example]:
    def records(path: Path, kind: Any) -> list[Any]:
        return read_jsonl(path, kind) if path.exists() else []

    problems = {problem.id: problem for problem in records(folder / "problems" / "train.jsonl", Problem)}
    critiques = {result.rollout_id: result for result in records(folder / "critiques" / rollouts.name, CriticResult)}
    return [
        Example(problems.get(rollout.problem_id), rollout, critiques.get(rollout.id))
        for rollout in read_jsonl(rollouts, Rollout)
    ]
