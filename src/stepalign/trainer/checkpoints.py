"""Checkpoints: one folder a step, written under a temporary name and then renamed, so that it is whole or absent.

`step-000010/` holds the PEFT adapter (loadable by transformers, vLLM and TRL), AdamW's state in safetensors and
`state.json`.

Left out: generator states, because every random choice is a function of the run's seed (`seeding`); pickles, because
a checkpoint from elsewhere must not run code.
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import torch
from safetensors.torch import load_file, save_file

from stepalign.errors import StepalignError
from stepalign.io import sync
from stepalign.policy import Policy

_OPTIMIZER = "optimizer.safetensors"
_STATE = "state.json"
_ALGORITHM = "algorithm.safetensors"
"""The algorithm's own state, such as a teacher's weights; absent where there is none."""


def save(
    folder: Path,
    policy: Policy,
    optimizer: torch.optim.Optimizer,
    step: int,
    algorithm_state: Mapping[str, torch.Tensor] = MappingProxyType({}),
) -> Path:
    """Write the checkpoint of an optimizer step and return its folder.

    Raises:
        StepalignError: the disk is full or not writable; earlier checkpoints are untouched.
    """
    final = folder / f"step-{step:06d}"
    temporary = folder / f".{final.name}.tmp"
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        policy.save(temporary)
        save_file(_flatten(optimizer), temporary / _OPTIMIZER)
        if algorithm_state:
            save_file(dict(algorithm_state), temporary / _ALGORITHM)
        (temporary / _STATE).write_text(json.dumps({"step": step}))
        for path in (*temporary.iterdir(), temporary):
            sync(path)
        shutil.rmtree(final, ignore_errors=True)
        temporary.rename(final)
        sync(folder)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise StepalignError(
            f"{final}: the checkpoint could not be written: {error.strerror or error}; "
            "earlier checkpoints are untouched, the same command goes on from the last one"
        ) from None
    except Exception as error:  # safetensors raises its own type for a full disk
        shutil.rmtree(temporary, ignore_errors=True)
        raise StepalignError(f"{final}: the checkpoint could not be written: {error}") from error
    return final


def load(checkpoint: Path, policy: Policy, optimizer: torch.optim.Optimizer) -> tuple[int, dict[str, torch.Tensor]]:
    """Restore adapter and optimizer, and return their optimizer step and the algorithm's state.

    Raises:
        StepalignError: a file is missing or half-written; the message says how to go on.
    """
    try:
        policy.load(checkpoint)
        step = int(json.loads((checkpoint / _STATE).read_text())["step"])
        _unflatten(optimizer, load_file(checkpoint / _OPTIMIZER))
        algorithm = checkpoint / _ALGORITHM
        algorithm_state = load_file(algorithm) if algorithm.exists() else {}
    except Exception as error:
        raise StepalignError(
            f"{checkpoint}: not a whole checkpoint ({error}); delete this folder to go on from the one before"
        ) from None
    return step, algorithm_state


def latest(folder: Path) -> Path | None:
    """Return the checkpoint of the highest step, or None."""
    return max(folder.glob("step-*"), default=None)


def _flatten(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    return {
        f"{index}.{name}": value.contiguous()
        for index, values in optimizer.state_dict()["state"].items()
        for name, value in values.items()
        if isinstance(value, torch.Tensor)
    }


def _unflatten(optimizer: torch.optim.Optimizer, tensors: dict[str, torch.Tensor]) -> None:
    state: dict[int, dict[str, torch.Tensor]] = {}
    for key, tensor in tensors.items():
        index, _, name = key.partition(".")
        state.setdefault(int(index), {})[name] = tensor
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
