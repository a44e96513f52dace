"""A run's folder, read for its report. Every part may be missing: a run can be killed at any moment."""

import json
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stepalign.errors import StepalignError
from stepalign.evaluation import credit_measures, metrics
from stepalign.evaluation.credit_measures import CreditMeasures
from stepalign.evaluation.metrics import Evaluation
from stepalign.io import read_jsonl
from stepalign.records import CriticResult, Critique, CritiqueFailure, Problem, Rollout

_PARTS = ("recipe.toml", "manifest.json", "metrics.jsonl", "evaluations", "rollouts")


@dataclass(frozen=True)
class Example:
    """A rollout of the training with what the critic made of it."""

    problem: Problem | None
    rollout: Rollout
    answer: Critique | CritiqueFailure | None


@dataclass(frozen=True)
class Run:
    """What a run's folder holds. Empty where a part is not there."""

    folder: Path
    recipe: Mapping[str, Any]
    """As in the file: a report does not ask for a recipe that this release can run."""
    recipe_text: str
    manifest: Mapping[str, Any]
    steps: list[Mapping[str, Any]]
    """The lines of `metrics.jsonl`, one an optimizer step, in order."""
    timeline: Mapping[str, Any]
    """The last line of `timeline.jsonl`: when each stage of that step ran."""
    evaluations: list[Evaluation]
    """In the order of their steps."""
    probes: list[tuple[int, CreditMeasures]]
    """What the run's probe measured, by step."""
    examples_step: int | None
    """The optimizer step that `examples` are from: the last one with rollouts."""
    examples: list[Example]

    @property
    def name(self) -> str:
        """The recipe's name; without a recipe, the folder's."""
        return str(self.recipe.get("name", self.folder.resolve().name))


def read(folder: Path) -> Run:
    """Read a run's folder.

    Raises:
        StepalignError: it holds no run, or a file in it is not what it should be.
    """
    if not any((folder / part).exists() for part in _PARTS):
        raise StepalignError(f"{folder}: no run there (none of {', '.join(_PARTS)})")
    recipe_text = _text(folder / "recipe.toml")
    step, examples = _examples(folder)
    return Run(
        folder=folder,
        recipe=_toml(folder / "recipe.toml", recipe_text),
        recipe_text=recipe_text,
        manifest=_json(folder / "manifest.json"),
        steps=_steps(folder / "metrics.jsonl"),
        timeline=next(reversed(_steps(folder / "timeline.jsonl")), {}),
        evaluations=[metrics.read(path) for path in sorted((folder / "evaluations").glob("step-*.json"))],
        probes=[
            (int(path.stem.removeprefix("step-")), credit_measures.read(path))
            for path in sorted((folder / "probe").glob("step-*.json"))
        ],
        examples_step=step,
        examples=examples,
    )


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.exists() else ""


def _toml(path: Path, text: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise StepalignError(f"{path}: not valid TOML: {error}") from None


def _json(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(_text(path) or "{}"))
    except ValueError as error:
        raise StepalignError(f"{path}: not a JSON object: {error}") from None


def _steps(path: Path) -> list[Mapping[str, Any]]:
    """Lines by step. A step that was done again after a crash counts once, as it was done last."""
    lines = _text(path).splitlines()
    steps: dict[int, Mapping[str, Any]] = {}
    for number, line in enumerate(lines, start=1):
        try:
            values = json.loads(line)
            steps[int(values["step"])] = values
        except (ValueError, KeyError, TypeError):
            if number == len(lines):
                break  # the run was killed while it wrote this line
            raise StepalignError(f"{path}, line {number}: not a step's: {line[:80]!r}") from None
    return [steps[step] for step in sorted(steps)]


def _examples(folder: Path) -> tuple[int | None, list[Example]]:
    """The rollouts of the last step that has any, with the critic's answers."""
    files = sorted((folder / "rollouts").glob("step-*.jsonl"))
    if not files:
        return None, []
    last = files[-1]
    problems = {problem.id: problem for problem in _records(folder / "problems" / "train.jsonl", Problem)}
    answers: list[Critique | CritiqueFailure] = _records(folder / "critiques" / last.name, CriticResult)
    by_rollout = {answer.rollout_id: answer for answer in answers}
    examples = [
        Example(problems.get(rollout.problem_id), rollout, by_rollout.get(rollout.id))
        for rollout in read_jsonl(last, Rollout)
    ]
    step = re.search(r"\d+", last.stem)
    return (int(step[0]) if step else None), examples


def _records(path: Path, kind: Any) -> list[Any]:
    return read_jsonl(path, kind) if path.exists() else []
