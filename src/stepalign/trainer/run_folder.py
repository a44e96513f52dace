"""A run is a folder: what was asked for, what was drawn, what was learnt.

    recipe.toml  manifest.json  problems/  rollouts/  critiques/  metrics.jsonl  timeline.jsonl  checkpoints/
    evaluations/  report.html  figures/

Every file appears whole or not at all, and what a step produced is kept in files of that step, so that a killed run
goes on from its last checkpoint and asks for nothing twice that it already has.
"""

import importlib.metadata
import json
import os
import platform
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

import stepalign
from stepalign import config as configs
from stepalign.errors import StepalignError
from stepalign.evaluation import metrics
from stepalign.evaluation.metrics import Evaluation
from stepalign.io import claim, read_jsonl, to_json, write_atomically, write_json, write_jsonl
from stepalign.records import CriticResult, Critique, CritiqueFailure, Problem, Rollout

_PACKAGES = (
    "torch",
    "transformers",
    "peft",
    "accelerate",
    "datasets",
    "safetensors",
    "tokenizers",
    "math-verify",
)
_TRANSPORT = (
    "base_url",
    "api_key_env",
    "timeout_s",
    "total_timeout_s",
    "max_retries",
    "cooldown_s",
    "max_outage_s",
    "max_concurrency",
    "cache",
)
_SERVING = (
    "base_url",
    "api_key_env",
    "timeout_s",
    "max_outage_s",
    "tolerance",
    "gpu_memory_utilization",
    "enable_sleep_mode",
)
_FREE_TO_CHANGE = (
    *("training.max_steps", "training.overlap", "tracking", "output_dir", "distributed"),
    *(f"critic.{key}" for key in _TRANSPORT),
    *(f"sampler.{key}" for key in _SERVING),
)
"""Keys that may change when a run continues: none of them changes what was computed so far."""


class RunFolder:
    """One run's folder, opened for writing by one process."""

    def __init__(self, recipe: configs.Recipe) -> None:
        """Create the folder, or take up the one that is there.

        Raises:
            StepalignError: it belongs to another recipe, is in use, or cannot be written.
        """
        self.recipe = recipe
        self.folder = recipe.folder
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
                configs.dump(recipe),
                started=(self.folder / "manifest.json").exists(),
                refusal="it holds a run of another recipe. Give this run another name (name=…), or delete that folder",
                free=_FREE_TO_CHANGE,
            )
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Let others write to the folder."""
        self._lock.release()

    def describe(self, train: Sequence[Problem], evaluation: Sequence[Problem], dropped: Mapping[str, int]) -> None:
        """Write the problems and the manifest, once.

        Raises:
            StepalignError: a run goes on, and its source no longer gives the problems it began with.
        """
        chosen = {"train": train, "evaluation": evaluation}
        if (self.folder / "manifest.json").exists():
            for name, problems_now in chosen.items():
                path = self.folder / "problems" / f"{name}.jsonl"
                if read_jsonl(path, Problem) != list(problems_now):
                    raise StepalignError(
                        f"{path}: the recipe's source no longer gives the problems this run began with"
                    )
            return
        for name, problems_now in chosen.items():
            write_jsonl(self.folder / "problems" / f"{name}.jsonl", problems_now)
        problems = {"train": len(train), "evaluation": len(evaluation), "dropped": dict(dropped)}
        write_json(self.folder / "manifest.json", {**manifest(), "seed": self.recipe.seed, "problems": problems})

    # ── what a step produced ──────────────────────────────────────────────────────────────────────────────

    def rollouts(self, step: int) -> list[Rollout] | None:
        """The graded rollouts of a step, if it got that far."""
        path = self._of_step("rollouts", step)
        return read_jsonl(path, Rollout) if path.exists() else None

    def save_rollouts(self, step: int, rollouts: Iterable[Rollout]) -> None:
        """Keep the graded rollouts of a step."""
        write_jsonl(self._of_step("rollouts", step), rollouts)

    def critiques(self, step: int) -> list[Critique | CritiqueFailure] | None:
        """The critic's answers of a step, if it got that far."""
        path = self._of_step("critiques", step)
        return read_jsonl(path, CriticResult) if path.exists() else None  # type: ignore[arg-type]

    def save_critiques(self, step: int, answers: Iterable[Critique | CritiqueFailure]) -> None:
        """Keep the critic's answers of a step."""
        write_jsonl(self._of_step("critiques", step), answers)

    def append_metrics(self, values: Mapping[str, Any]) -> None:
        """Append one step's metrics."""
        self._append("metrics.jsonl", values)

    def append_timeline(self, step: int, spans: Mapping[str, Sequence[tuple[float, float]]]) -> None:
        """Append when each stage of a step ran, in seconds from the first one's start."""
        begin = min((start for stage in spans.values() for start, _ in stage), default=0.0)
        since = {name: [[round(t - begin, 4) for t in span] for span in stage] for name, stage in spans.items()}
        self._append("timeline.jsonl", {"step": step, **since})

    def drop_metrics_after(self, step: int) -> None:
        """Drop the metrics and times of steps that are about to be done again."""
        for name in ("metrics.jsonl", "timeline.jsonl"):
            path = self.folder / name
            if path.exists():
                kept = [line for line in path.read_text().splitlines() if _step_of(line) <= step]
                write_atomically(path, "".join(line + "\n" for line in kept))

    def evaluation(self, step: int) -> Evaluation | None:
        """The evaluation at a step, if there is one."""
        path = self._of_step("evaluations", step).with_suffix(".json")
        return metrics.read(path) if path.exists() else None

    def save_evaluation(self, evaluation: Evaluation, rollouts: Iterable[Rollout]) -> None:
        """Keep an evaluation and the rollouts behind it."""
        path = self._of_step("evaluations", evaluation.step)
        write_jsonl(path, rollouts)
        write_atomically(path.with_suffix(".json"), to_json(evaluation) + "\n")

    def _append(self, name: str, values: Mapping[str, Any]) -> None:
        path = self.folder / name
        try:
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(values) + "\n")
        except OSError as error:
            raise StepalignError(f"{path}: could not be written: {error.strerror}; nothing else was lost") from None

    def _of_step(self, room: str, step: int) -> Path:
        return self.folder / room / f"step-{step:06d}.jsonl"


def manifest() -> dict[str, Any]:
    """Versions, hardware and commit: what is needed to tell two runs apart."""
    return {
        "stepalign": stepalign.__version__,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: importlib.metadata.version(name) for name in _PACKAGES},
        "hardware": {
            "cpu": _cpu(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
            "gpus": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
        },
        "git_commit": _commit(),
    }


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")


def _commit() -> str | None:
    try:
        answer = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):  # no git, or not a repository
        return None
    return answer.stdout.strip()


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError):  # the half-written last line of a killed run
        return float("inf")
