"""The processes of one run: dividing records, gathering them again, and work for the main process only.

All processes decide from the same records. Rollouts and critiques are divided (`shard`) and gathered in the order of
a run in one process. The main process alone reads and writes files (`on_main`, `MainProcessProxy`). A process that
fails ends the run, because the launcher (`accelerate launch`, `torchrun`) stops the others. So nothing here has a
time limit, and one process may sample for hours while the others wait.

Left out: communication of tensors, which belongs to the strategies (`distributed.strategy`).
"""

import os
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import get_int_from_env
from torch import distributed

from stepalign.errors import StepalignError

T = TypeVar("T")

_SIZE_VARIABLES = ["WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE"]
"""Environment variables with the launcher's number of processes; the last three are MPI's."""
_TIMEOUT = timedelta(days=30)
"""Limit of a collective operation. The default of ten minutes is shorter than a slow critic."""


class World:
    """This process' rank and the number of processes."""

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        self.rank, self.size = rank, size

    @property
    def is_main(self) -> bool:
        """True in the process that reads and writes the run's folder and prints."""
        return self.rank == 0

    def shard(self, items: Sequence[T]) -> list[T]:
        """Return this process' part of a sequence that all processes have: every `size`-th item."""
        return list(items[self.rank :: self.size])

    def gather(self, items: Sequence[T]) -> list[T]:
        """Return all processes' items, in the order from which `shard` took them."""
        if self.size == 1:
            return list(items)
        parts: list[Any] = [None] * self.size
        distributed.all_gather_object(parts, list(items))
        longest = max(map(len, parts))
        return [part[index] for index in range(longest) for part in parts if index < len(part)]

    def on_main(self, call: Callable[[], T]) -> T:
        """Run `call` in the main process and return its result in all processes.

        Raises:
            StepalignError: in the main process. The others exit without a message, because one is enough.
        """
        if self.size == 1:
            return call()
        message: list[Any] = [None, False]
        if self.is_main:
            try:
                message = [call(), True]
            except StepalignError:
                distributed.broadcast_object_list(message)
                raise
        distributed.broadcast_object_list(message)
        result, succeeded = message
        if not succeeded:
            raise SystemExit(2)
        return result  # type: ignore[no-any-return]

    def assert_same(self, name: str, value: object) -> None:
        """Raise an error with rank and values, unless all processes have the same value."""
        values = self.gather([value])
        if differing := [rank for rank, other in enumerate(values) if other != values[0]]:
            value_pair = f"{values[differing[0]]!r}, not {values[0]!r}"
            raise StepalignError(
                f"process {differing[0]} of {self.size} holds another {name} than process 0: {value_pair}"
            )

    def shutdown(self) -> None:
        """Leave the process group; all processes must call this at the end of a run."""
        if self.size > 1:
            distributed.destroy_process_group()


SINGLE = World()
"""One process."""


class MainProcessProxy:
    """Proxy of an object in the main process: its methods run there and return their results in all processes.

    All processes must make the same calls in the same order. Attributes that are not methods are not available.
    """

    def __init__(self, world: World, make: Callable[[], Any]) -> None:
        self._world = world
        self._object: Any = None
        world.on_main(lambda: setattr(self, "_object", make()))

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **options: self._world.on_main(lambda: getattr(self._object, name)(*args, **options))

    def close(self) -> None:
        """Close the object, without communication: other processes may have ended."""
        if self._object is not None:
            self._object.close()


def init_world(num_processes: int = 0) -> World:
    """Join the launcher's process group of `num_processes`; 0 accepts any number.

    The number is checked, because some launchers start several groups of one process each, without an error.
    """
    launched = get_int_from_env(_SIZE_VARIABLES, 1)
    if launched == 1 and not num_processes and os.environ.get("ACCELERATE_USE_CPU", "").lower() == "true":
        raise StepalignError(
            "accelerate launched one process: its MULTI_CPU starts no more of them without MPI. Use "
            "recipes/accelerate/2-cpu-processes.yaml or `torchrun`; distributed.num_processes = 1 if one is wanted"
        )
    # Without a device, and without `cpu`, Accelerate makes each process a group of its own.
    state = PartialState(cpu=launched > 1 and not torch.accelerator.is_available(), timeout=_TIMEOUT)
    world = World(state.process_index, state.num_processes)
    if world.size != launched:
        raise StepalignError(f"the launcher started {launched} processes, but this one is in a world of {world.size}")
    if num_processes and world.size != num_processes:
        raise StepalignError(
            f"distributed.num_processes = {num_processes}, but this process is in a world of {world.size}; "
            f"launch it with `accelerate launch --num_processes {num_processes}` or `torchrun`"
        )
    if world.size > 1 and distributed.get_world_size() != world.size:
        raise StepalignError(f"{world.size} processes, but the process group has {distributed.get_world_size()}")
    return world
