"""Checkpoints: a folder each, written beside its place and then moved there, so that it is whole or absent.

`step-000010/` holds the PEFT adapter (which transformers, vLLM and TRL load as it is), AdamW's state in safetensors
and `state.json`. No generator state is kept because every random choice is a function of the run's seed (`seeding`),
no pickle because a checkpoint from elsewhere must not run code.
"""

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from stepalign.errors import StepalignError
from stepalign.io import sync
from stepalign.policy import Policy

_OPTIMIZER = "optimizer.safetensors"
_STATE = "state.json"


def save(folder: Path, policy: Policy, optimizer: torch.optim.Optimizer, step: int) -> Path:
    """Write the checkpoint of an optimizer step and return its folder.

    Raises:
        StepalignError: the disk is full or not writable; what was there before is untouched.
    """
    final = folder / f"step-{step:06d}"
    temporary = folder / f".{final.name}.tmp"
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        policy.save(temporary)
        save_file(_flatten(optimizer), temporary / _OPTIMIZER)
        (temporary / _STATE).write_text(json.dumps({"step": step}))
        for path in temporary.iterdir():
            sync(path)
        sync(temporary)
        shutil.rmtree(final, ignore_errors=True)
        temporary.rename(final)
        sync(folder)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise StepalignError(
            f"{final}: the checkpoint could not be written: {error.strerror or error}; "
            "earlier checkpoints are untouched, the same command goes on from the last one"
        ) from None
    except Exception as error:  # safetensors wraps a full disk in its own type
        shutil.rmtree(temporary, ignore_errors=True)
        raise StepalignError(f"{final}: the checkpoint could not be written: {error}") from error
    return final


def load(checkpoint: Path, policy: Policy, optimizer: torch.optim.Optimizer) -> int:
    """Restore adapter and optimizer, and return the optimizer step they are at.

    Raises:
        StepalignError: naming the file that is missing or half-written, and how to go on.
    """
    try:
        policy.load(checkpoint)
        step = int(json.loads((checkpoint / _STATE).read_text())["step"])
        tensors = load_file(checkpoint / _OPTIMIZER)
        _unflatten(optimizer, tensors)
    except Exception as error:
        raise StepalignError(
            f"{checkpoint}: not a whole checkpoint ({error}); delete this folder to go on from the one before"
        ) from None
    return step


def latest(folder: Path) -> Path | None:
    """The checkpoint of the highest step, or None."""
    return max(folder.glob("step-*"), default=None)


def _flatten(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    state = optimizer.state_dict()["state"]
    return {
        f"{index}.{name}": value.contiguous()
        for index, values in state.items()
        for name, value in values.items()
        if isinstance(value, torch.Tensor)
    }


def _unflatten(optimizer: torch.optim.Optimizer, tensors: dict[str, torch.Tensor]) -> None:
    state: dict[int, dict[str, torch.Tensor]] = {}
    for key, tensor in tensors.items():
        index, _, name = key.partition(".")
        state.setdefault(int(index), {})[name] = tensor
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
