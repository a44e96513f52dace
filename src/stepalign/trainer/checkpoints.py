"""Checkpoints: one folder a step, written under a temporary name and then renamed, so that it is whole or absent.

`step-000010/` holds the PEFT adapter (loadable by transformers, vLLM and TRL) or, where all weights are trained, the
model; the tokenizer, AdamW's state in safetensors, `state.json`, and in `SHA256SUMS` their checksums
(`sha256sum --check SHA256SUMS`). A resumed run compares them first. The model card is written when the run ends.

Left out: generator states, because every random choice is a function of the run's seed (`seeding`); pickles, because
a checkpoint from elsewhere must not run code.
"""

import json
import re
import shlex
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Annotated

import torch
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from safetensors.torch import load_file, save_file
from transformers import PreTrainedTokenizerBase

from stepalign.console import Console
from stepalign.errors import StepalignError, first_line
from stepalign.io import read_json, read_text, sha256, sync, temporary_path
from stepalign.policy import Policy

_ADAPTER = "adapter_model.safetensors"
_OPTIMIZER = "optimizer.safetensors"
_STATE = "state.json"
_ALGORITHM = "algorithm.safetensors"
"""The algorithm's own state, such as a teacher's weights; absent where there is none."""
_SUMS = "SHA256SUMS"
_NOT_SUMMED = "README.md"
"""The model card, which its owner may edit."""


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class _State:
    step: Annotated[int, Field(ge=0)]
    checksums: bool = False
    """The folder holds `SHA256SUMS`. Checkpoints of earlier releases do not."""


def save(
    folder: Path,
    policy: Policy,
    optimizer: torch.optim.Optimizer,
    step: int,
    algorithm_state: Mapping[str, torch.Tensor] = MappingProxyType({}),
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> Path:
    """Write the checkpoint of an optimizer step, with its tokenizer, and return its folder.

    Raises:
        StepalignError: the disk is full or not writable; earlier checkpoints are untouched.
    """
    final = folder / f"step-{step:06d}"
    temporary = temporary_path(final)
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        policy.save(temporary)
        if tokenizer is not None:
            tokenizer.save_pretrained(temporary)
        save_file(_flatten(optimizer), temporary / _OPTIMIZER)
        if algorithm_state:
            save_file(dict(algorithm_state), temporary / _ALGORITHM)
        (temporary / _STATE).write_text(json.dumps({"step": step, "checksums": True}))
        files = sorted(path for path in temporary.iterdir() if path.name != _NOT_SUMMED)
        (temporary / _SUMS).write_text("".join(f"{sha256(path)}  {path.name}\n" for path in files))
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


def verify(checkpoint: Path) -> bool:
    """Compare a checkpoint's files with their checksums, and its step with the folder's name.

    Returns:
        False where there are no checksums, as in a checkpoint of an earlier release.

    Raises:
        StepalignError: a file is missing or damaged; the message names it, the last whole checkpoint and the command.
    """
    try:
        return _verify(checkpoint)
    except StepalignError as error:
        raise _damaged(checkpoint, error) from None


def load(checkpoint: Path, policy: Policy, optimizer: torch.optim.Optimizer) -> tuple[int, dict[str, torch.Tensor]]:
    """Restore adapter and optimizer, and return their optimizer step and the algorithm's state.

    Raises:
        StepalignError: a file is missing, half-written or another model's; the message says how to go on.
    """
    path = checkpoint / _STATE
    try:
        step = _state(checkpoint).step
        path = checkpoint / _weights(checkpoint)[0]
        policy.load(checkpoint)
        path = checkpoint / _OPTIMIZER
        _unflatten(optimizer, load_file(path))
        path = checkpoint / _ALGORITHM
        algorithm_state = load_algorithm_state(checkpoint)
    except StepalignError as error:
        raise _damaged(checkpoint, error) from None
    except Exception as error:  # safetensors raises its own type for a half-written file
        raise _damaged(checkpoint, StepalignError(f"{path}: {first_line(error)}")) from None
    return step, algorithm_state


def load_algorithm_state(checkpoint: Path) -> dict[str, torch.Tensor]:
    """Read the algorithm's own state, such as a teacher's weights; empty where the folder has none."""
    path = checkpoint / _ALGORITHM
    return load_file(path) if path.exists() else {}


def latest(folder: Path) -> Path | None:
    """Return the checkpoint of the highest step, or None."""
    return max(_all(folder), key=_step, default=None)


def adapter_folder(path: Path | str | None) -> Path | None:
    """Return an adapter's folder: of a run's folder the last checkpoint, which is said. None stays None.

    Raises:
        StepalignError: there is no such folder, or the run has no checkpoint.
    """
    if path is None:
        return None
    folder = Path(path)
    if not folder.is_dir():
        raise StepalignError(f"adapter {str(path)!r}: no such folder")
    if (folder / "adapter_config.json").exists() or not (folder / "checkpoints").is_dir():
        return folder
    if (last := latest(folder / "checkpoints")) is None:
        raise StepalignError(f"adapter {str(path)!r}: a run without a checkpoint")
    Console().say(f"adapter {str(path)!r}: the run's last checkpoint, {last.name}")
    return last


def _all(folder: Path) -> list[Path]:
    return [path for path in folder.glob("step-*") if re.fullmatch(r"step-\d+", path.name)]


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("step-"))


def _state(checkpoint: Path) -> _State:
    state = read_json(checkpoint / _STATE, _State)
    if state.step != _step(checkpoint):
        raise StepalignError(f"{checkpoint / _STATE}: step {state.step}, in the folder of step {_step(checkpoint)}")
    return state


def _weights(checkpoint: Path) -> list[str]:
    """Return the names of the policy's files of weights."""
    if not (checkpoint / "config.json").exists():
        return [_ADAPTER]
    return sorted(path.name for path in checkpoint.glob("model*.safetensors")) or ["model.safetensors"]


def _verify(checkpoint: Path) -> bool:
    if not _state(checkpoint).checksums:
        return False
    lines = read_text(checkpoint / _SUMS).splitlines()
    sums = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
    optional = [_ALGORITHM] if (checkpoint / _ALGORITHM).exists() else []
    for name in dict.fromkeys((*_weights(checkpoint), _OPTIMIZER, _STATE, *optional, *sums)):
        if name not in sums:
            raise StepalignError(f"{checkpoint / _SUMS}: no checksum of {name}")
        if sha256(checkpoint / name) != sums[name]:
            raise StepalignError(f"{checkpoint / name}: damaged, its checksum is not the one in {_SUMS}")
    return True


def _is_whole(checkpoint: Path) -> bool:
    try:
        if not _verify(checkpoint):
            for name in (*_weights(checkpoint), _OPTIMIZER):
                load_file(checkpoint / name)
    except Exception:  # the reason was told of the checkpoint that a run would resume from
        return False
    return True


def _damaged(checkpoint: Path, error: StepalignError) -> StepalignError:
    """Make the error of a checkpoint that cannot be resumed from, with the way to go on."""
    others = sorted(_all(checkpoint.parent), key=_step, reverse=True)
    good = next((other for other in others if other != checkpoint and _is_whole(other)), None)
    unusable = [other for other in others if good is None or _step(other) > _step(good)]
    remove = shlex.join(["rm", "-r", *map(str, reversed(unusable))])
    way = f"The last good checkpoint is {good.name}" if good else "No other checkpoint is whole"
    again = "go on from it" if good else "begin again, with the rollouts and critiques that are there"
    return StepalignError(f"{error}\n{way}. To {again}: `{remove}`, then the same command as before")


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
