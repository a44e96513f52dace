"""Manifest: versions, hardware and commit, which tell two runs apart."""

import datetime
import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field
from typing_extensions import TypedDict

import stepalign
from stepalign.io import read_json

_OTHERS_PASS = ConfigDict(extra="allow")

_PACKAGES = [
    "torch",
    "transformers",
    "peft",
    "accelerate",
    "datasets",
    "safetensors",
    "tokenizers",
    "latex2sympy2_extended",
]


class ManifestProblems(TypedDict, total=False):
    """Counts of a run's problems."""

    __pydantic_config__ = _OTHERS_PASS  # type: ignore[misc]
    dropped: dict[str, Annotated[int, Field(ge=0)]]


class Manifest(TypedDict, total=False):
    """Content of a run's `manifest.json`: the keys that are read again, each with its type."""

    __pydantic_config__ = _OTHERS_PASS  # type: ignore[misc]
    created: str
    date: datetime.date
    """The day on which the run began."""
    float32_matmul_precision: Literal["highest", "medium"]
    problems: ManifestProblems
    dataset_commits: dict[str, str]
    """Commits of data sets of the hub, by `train` and `evaluation`."""
    base: dict[str, str]
    """Digests of the base's files; names of a teacher's files begin with `teacher/`."""
    warning: str
    """A protection that the grader lacks; empty without one."""


def read_manifest(folder: Path) -> Manifest:
    """Read a run's manifest; empty where the folder has none.

    Raises:
        StepalignError: it is damaged, with the key.
    """
    path = folder / "manifest.json"
    return read_json(path, Manifest) if path.exists() else Manifest()


def manifest() -> dict[str, Any]:
    """Describe the environment of a run or a probe."""
    import torch

    return {
        "stepalign": stepalign.__version__,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
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
        done = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):  # no git, or not a repository
        return None
    return done.stdout.strip()
