"""Contents of a run's folder, read for its report. Each part may be missing: a run can be killed at any moment."""

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Required

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from typing_extensions import TypedDict

from stepalign.append_log import AppendLog
from stepalign.errors import StepalignError
from stepalign.evaluation.metrics import CreditMeasures, Evaluation
from stepalign.io import explain, read_json, read_jsonl, read_text
from stepalign.manifest import Manifest, read_manifest
from stepalign.records import CriticResult, Critique, CritiqueFailure, Problem, Rollout

_PARTS = ("recipe.toml", "manifest.json", "metrics.jsonl", "evaluations", "rollouts")
_OTHERS_PASS = ConfigDict(extra="allow")
_Amount = Annotated[float, Field(ge=0, le=1e30)]
_Counts = dict[str, Annotated[int, Field(ge=0)]]


class StepLine(TypedDict, total=False):
    """Line of `metrics.jsonl`: the keys that a report reads, each with its type."""

    __pydantic_config__ = _OTHERS_PASS  # type: ignore[misc]
    step: Required[Annotated[int, Field(ge=0)]]
    rollouts: Annotated[int, Field(ge=0)]
    seconds: dict[str, _Amount]
    cost: dict[str, _Amount]
    outcomes: _Counts
    cases: _Counts
    failures: _Counts
    critic_tokens: _Counts
    checks: dict[str, _Counts]
    completion_tokens: _Amount
    student_tokens: _Amount
    teacher_tokens: _Amount
    base_tokens: _Amount
    loss: float
    kl: float
    entropy_student: float
    entropy_teacher: float
    agreement: float
    correct: float
    formatted: float
    truncated: float
    repeated: float
    on_policy: float
    canaries: list[str]
    clipped: float


class _Timeline(BaseModel):
    model_config = _OTHERS_PASS
    __pydantic_extra__: dict[str, list[tuple[_Amount, _Amount]]]
    step: int


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
    manifest: Manifest
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
    recipe_path = folder / "recipe.toml"
    recipe_text = read_text(recipe_path) if recipe_path.exists() else ""
    try:
        recipe = tomllib.loads(recipe_text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise StepalignError(f"{recipe_path}: not valid TOML: {error}") from None
    rollouts = next(reversed(_step_files(folder / "rollouts", "jsonl")), None)
    timeline = list(AppendLog(folder / "timeline.jsonl", _Timeline).read())
    return RunFiles(
        folder=folder,
        recipe=recipe,
        recipe_text=recipe_text,
        manifest=read_manifest(folder),
        steps=read_steps(folder),
        timeline=timeline[-1].model_dump() if timeline else {},
        evaluations=_evaluations(folder / "evaluations"),
        probes=[(_step(path), read_json(path, CreditMeasures)) for path in _step_files(folder / "probe", "json")],
        examples_step=_step(rollouts) if rollouts else None,
        examples=_examples(folder, rollouts) if rollouts else [],
    )


def read_steps(folder: Path) -> list[Mapping[str, Any]]:
    """Read a run's `metrics.jsonl`, ordered by step. Of a step that was repeated after a crash the last line counts."""
    log = AppendLog(folder / "metrics.jsonl", dict[str, Any])
    steps: dict[int, Mapping[str, Any]] = {}
    for line in log.read():
        try:
            steps[line["step"]] = TypeAdapter(StepLine).validate_python(line, strict=True)
        except (ValidationError, KeyError) as error:
            reason = f": {explain(error)}" if isinstance(error, ValidationError) else ""
            raise StepalignError(f"{log.place}: not a step's: {str(line)[:80]!r}{reason}") from None
    return [steps[step] for step in sorted(steps)]


def _step_files(folder: Path, suffix: str) -> list[Path]:
    paths = [path for path in folder.glob(f"step-*.{suffix}") if re.fullmatch(r"step-\d+", path.stem)]
    return sorted(paths, key=_step)


def _step(path: Path) -> int:
    return int(path.stem.removeprefix("step-"))


def _evaluations(folder: Path) -> list[Evaluation]:
    """Read the evaluations, all on the same problems with the same n."""
    evaluations: list[Evaluation] = []
    for path in _step_files(folder, "json"):
        evaluation = read_json(path, Evaluation)
        first = evaluations[0] if evaluations else evaluation
        if evaluation.step != _step(path):
            raise StepalignError(f"{path}: an evaluation of step {evaluation.step}")
        if (evaluation.n, set(evaluation.problem_ids)) != (first.n, set(first.problem_ids)):
            raise StepalignError(f"{path}: another n or other problems than in {folder}/step-{first.step:06d}.json")
        evaluations.append(evaluation)
    return evaluations


def _examples(folder: Path, rollouts: Path) -> list[Example]:
    def records(path: Path, kind: Any) -> list[Any]:
        return read_jsonl(path, kind) if path.exists() else []

    problems = {problem.id: problem for problem in records(folder / "problems" / "train.jsonl", Problem)}
    critiques = {result.rollout_id: result for result in records(folder / "critiques" / rollouts.name, CriticResult)}
    return [
        Example(problems.get(rollout.problem_id), rollout, critiques.get(rollout.id))
        for rollout in read_jsonl(rollouts, Rollout)
    ]
