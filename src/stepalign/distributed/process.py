"""The processes of one run: what is divided over them, what is put together again, what the first one does alone.

Everything that a run decides is decided from records that all processes have: rollouts and critiques are divided
(`share`) and put together (`gather`), in the order they would have in one process; files are read and written by the
first process alone (`lead`, `MainProcessProxy`). A process that fails does not tell the others: the launcher
(`accelerate launch`, `torchrun`) sees it end and ends them. So nothing here has a time limit of its own, however
long one process samples
while the others wait.

Left out: communication of tensors, which is `training.distribution`'s.
"""

import os
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, TypeVar

from stepalign import config
from stepalign.errors import StepalignError

T = TypeVar("T")

_SIZES = ["WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE"]
"""Where launchers say how many processes they started; the last three are MPI's."""
_WAIT = timedelta(days=30)
"""How long a process waits for the others. The default of ten minutes is shorter than a slow critic."""


class World:
    """Which process this is, and how many there are."""

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        self.rank, self.size = rank, size

    @property
    def is_main(self) -> bool:
        """Whether this is the process that reads and writes the run's folder and speaks to the terminal."""
        return self.rank == 0

    def shard(self, items: Sequence[T]) -> list[T]:
        """This process' part of what all processes hold: every `size`-th item."""
        return list(items[self.rank :: self.size])

    def gather(self, items: Sequence[T]) -> list[T]:
        """Every process' part, dealt back in the order that `share` took them from."""
        if self.size == 1:
            return list(items)
        from torch import distributed

        parts: list[Any] = [None] * self.size
        distributed.all_gather_object(parts, list(items))
        longest = max(map(len, parts))
        return [part[index] for index in range(longest) for part in parts if index < len(part)]

    def on_main(self, call: Callable[[], T]) -> T:
        """What the first process gets from `call`, in all of them.

        Raises:
            StepalignError: in the first process; the others end quietly, since one message is enough.
        """
        if self.size == 1:
            return call()
        from torch import distributed

        answer: list[Any] = [None, False]
        if self.is_main:
            try:
                answer = [call(), True]
            except StepalignError:
                distributed.broadcast_object_list(answer)
                raise
        distributed.broadcast_object_list(answer)
        if not answer[1]:
            raise SystemExit(2)
        result: T = answer[0]
        return result

    def assert_same(self, what: str, value: object) -> None:
        """Raise a StepalignError where the processes do not hold the same."""
        values = self.gather([value])
        if strays := [rank for rank, other in enumerate(values) if other != values[0]]:
            raise StepalignError(
                f"process {strays[0]} of {self.size} holds another {what} than process 0: "
                f"{values[strays[0]]!r}, not {values[0]!r}"
            )

    def shutdown(self) -> None:
        """Part in good order, all together, at the end of a run."""
        if self.size > 1:
            from torch import distributed

            distributed.destroy_process_group()


SINGLE = World()
"""One process."""


class MainProcessProxy:
    """An object that only the first process has: its methods run there, and what they return is every process'.

    All processes must make the same calls in the same order.
    """

    def __init__(self, world: World, make: Callable[[], Any]) -> None:
        self._world = world
        self._object: Any = None

        def take() -> None:
            self._object = make()

        world.on_main(take)

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **options: self._world.on_main(lambda: getattr(self._object, name)(*args, **options))

    def close(self) -> None:
        """Close the object where it is. Nobody waits for anybody: the others may have ended."""
        if self._object is not None:
            self._object.close()


def join(expected: config.DistributedConfig) -> World:
    """Take this process' place among those that were launched.

    Raises:
        StepalignError: there are more or fewer of them than the launcher or the recipe says. Launchers were seen to
            start several worlds of one process each, and to end well.
    """
    import torch
    from accelerate import PartialState
    from accelerate.utils import get_int_from_env
    from torch import distributed

    launched = get_int_from_env(_SIZES, 1)
    if launched == 1 and not expected.num_processes and os.environ.get("ACCELERATE_USE_CPU", "").lower() == "true":
        raise StepalignError(
            "accelerate launched one process: its MULTI_CPU starts no more of them without MPI. Use "
            "recipes/accelerate/2-cpu-processes.yaml or `torchrun`; distributed.num_processes = 1 if one is wanted"
        )
    # Without a device, and not told that it is to use the CPU, Accelerate makes each process a world of its own.
    state = PartialState(cpu=launched > 1 and not torch.accelerator.is_available(), timeout=_WAIT)
    world = World(state.process_index, state.num_processes)
    if world.size != launched:
        raise StepalignError(f"the launcher started {launched} processes, but this one is in a world of {world.size}")
    if expected.num_processes and world.size != expected.num_processes:
        raise StepalignError(
            f"distributed.num_processes = {expected.num_processes}, but this process is in a world of {world.size}; "
            f"launch it with `accelerate launch --num_processes {expected.num_processes}` or `torchrun`"
        )
    if world.size > 1 and distributed.get_world_size() != world.size:
        raise StepalignError(f"{world.size} processes, but the process group has {distributed.get_world_size()}")
    return world
