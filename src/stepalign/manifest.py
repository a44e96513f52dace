"""Manifest: versions, hardware and commit, which tell two runs apart."""

import importlib.metadata
import json
import os
import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

import stepalign
from stepalign.errors import StepalignError
from stepalign.io import short

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


def manifest() -> dict[str, Any]:
    """Describe the environment of a run or a probe."""
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


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read the manifest of a run's folder; empty without one.

    Raises:
        StepalignError: it is damaged.
    """
    path = folder / "manifest.json"
    if not path.exists():
        return {}
    try:
        kept = json.loads(path.read_text())
    except ValueError as error:
        raise StepalignError(f"{path}: damaged: {error}") from None
    if not isinstance(kept, dict):
        raise StepalignError(f"{path}: damaged: {short(kept)} is not a table")
    return kept


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
