"""Folder of a run: its recipe, its records, its results.

    recipe.toml  manifest.json  problems/  rollouts/  critiques/  metrics.jsonl  timeline.jsonl  checkpoints/
    evaluations/  report.html  figures/

Every file appears whole or not at all. The records of a step are files of that step. So a killed run resumes from its
last checkpoint, and nothing that it already has is sampled or critiqued again.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from filelock import FileLock, Timeout

from stepalign import config
from stepalign.errors import StepalignError
from stepalign.evaluation.metrics import Evaluation
from stepalign.io import claim, differences, read_json, read_jsonl, to_json, write_atomically, write_json, write_jsonl
from stepalign.manifest import manifest
from stepalign.models import kept_fingerprint
from stepalign.records import CriticResult, Critique, CritiqueFailure, Problem, Rollout


class RunFolder:
    """Folder of one run, open for writing by one process."""

    def __init__(self, recipe: config.Recipe) -> None:
        """Create the folder, or open the one that is there.

        Raises:
            StepalignError: it belongs to another recipe, is in use, or cannot be written.
        """
        self.folder, self.seed = recipe.folder, recipe.seed
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = FileLock(self.folder / ".lock", timeout=0)
            self._lock.acquire()
        except Timeout:
            raise StepalignError(f"{self.folder}: another process is writing to this run") from None
        except OSError as error:
            raise StepalignError(f"{self.folder}: cannot be written: {error.strerror}") from None
        try:
            claim(
                self.folder / "recipe.toml",
                config.dump(recipe),
                started=(self.folder / "manifest.json").exists(),
                refusal="it holds a run of another recipe. Give this run another name (name=…), or delete that folder",
                free=tuple(recipe.runtime_keys()),
            )
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Unlock the folder."""
        self._lock.release()

    def describe(
        self,
        train: Sequence[Problem],
        evaluation: Sequence[Problem],
        dropped: Mapping[str, int],
        base: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """Write the problems and the manifest, once. `base` is the fingerprint of the base's files.

        Raises:
            StepalignError: the run is resumed, and its problems or its base are no longer those it began with.
        """
        problems = {
            self.folder / "problems" / f"{name}.jsonl": list(each)
            for name, each in (("train", train), ("evaluation", evaluation))
        }
        if (self.folder / "manifest.json").exists():
            kept = kept_fingerprint(self.folder)
            if changed := [name for name, _, _ in differences(kept, base)] if kept else []:
                raise StepalignError(
                    f"{self.folder}: the base has changed since this run began: {', '.join(changed)}. Restore these "
                    "files, or give this run another name (name=…)"
                )
            for path, current in problems.items():
                if read_jsonl(path, Problem) != current:
                    raise StepalignError(
                        f"{path}: the recipe's source no longer gives the problems this run began with"
                    )
            return
        for path, current in problems.items():
            write_jsonl(path, current)
        counts = {"train": len(train), "evaluation": len(evaluation), "dropped": dict(dropped)}
        write_json(
            self.folder / "manifest.json", {**manifest(), "seed": self.seed, "problems": counts, "base": dict(base)}
        )

    def rollouts(self, step: int) -> list[Rollout] | None:
        """Read the graded rollouts of a step; None if there are none."""
        path = self._step_file("rollouts", step)
        return read_jsonl(path, Rollout) if path.exists() else None

    def save_rollouts(self, step: int, rollouts: Iterable[Rollout]) -> None:
        """Write the graded rollouts of a step."""
        write_jsonl(self._step_file("rollouts", step), rollouts)

    def critiques(self, step: int) -> list[Critique | CritiqueFailure] | None:
        """Read the critic's results of a step; None if there are none."""
        path = self._step_file("critiques", step)
        return read_jsonl(path, CriticResult) if path.exists() else None  # type: ignore[arg-type]

    def save_critiques(self, step: int, results: Iterable[CriticResult]) -> None:
        """Write the critic's results of a step."""
        write_jsonl(self._step_file("critiques", step), results)

    def evaluation(self, step: int) -> Evaluation | None:
        """Read the evaluation at a step; None if there is none."""
        path = self._step_file("evaluations", step).with_suffix(".json")
        return read_json(path, Evaluation) if path.exists() else None

    def save_evaluation(self, evaluation: Evaluation, rollouts: Iterable[Rollout]) -> None:
        """Write an evaluation and its rollouts."""
        path = self._step_file("evaluations", evaluation.step)
        write_jsonl(path, rollouts)
        write_atomically(path.with_suffix(".json"), to_json(evaluation) + "\n")

    def append_metrics(self, values: Mapping[str, Any]) -> None:
        """Append one step's metrics."""
        self._append("metrics.jsonl", values)

    def append_timeline(self, step: int, spans: Mapping[str, Sequence[tuple[float, float]]]) -> None:
        """Append the times of a step's stages, in seconds from the first one's start."""
        begin = min((start for stage in spans.values() for start, _ in stage), default=0.0)
        since = {name: [[round(t - begin, 4) for t in span] for span in stage] for name, stage in spans.items()}
        self._append("timeline.jsonl", {"step": step, **since})

    def drop_metrics_after(self, step: int) -> None:
        """Drop metrics and times of the steps that will be done again."""
        for name in ("metrics.jsonl", "timeline.jsonl"):
            path = self.folder / name
            if path.exists():
                lines = [line for line in path.read_text().splitlines() if _step_of(line) <= step]
                write_atomically(path, "".join(line + "\n" for line in lines))

    def _append(self, name: str, values: Mapping[str, Any]) -> None:
        path = self.folder / name
        try:
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(values) + "\n")
        except OSError as error:
            raise StepalignError(f"{path}: could not be written: {error.strerror}; nothing else was lost") from None

    def _step_file(self, room: str, step: int) -> Path:
        return self.folder / room / f"step-{step:06d}.jsonl"


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError):  # the half-written last line of a killed run
        return float("inf")
