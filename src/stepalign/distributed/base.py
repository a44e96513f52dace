"""The protocol of parallel strategies: who runs which micro-batches, and how gradients become one update.

Each process has the whole adapter, because it is small. Its gradients are summed by one all-reduce a step, whatever
holds the base weights. Each token's weight already has the denominator of the whole step, so the sum over processes is
the gradient of a run in one process, without a further factor.

Left out: DDP, because its hooks average, reduce after every pass, and hang where processes run unequal numbers of
passes.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import ClassVar, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, distributed, nn

from stepalign import config
from stepalign.distributed.process import SINGLE, World
from stepalign.errors import StepalignError
from stepalign.policy import Policy

M = TypeVar("M")


class ParallelStrategy(ABC):
    """A way to spread one update over processes."""

    name: ClassVar[str]
    """The value of `distributed.strategy`."""

    lockstep: ClassVar[bool]
    """True if all processes must run the same number of passes, because each pass communicates."""

    def __init__(self, world: World = SINGLE, device: torch.device | None = None) -> None:
        self.world, self.device = world, device or torch.device("cpu")

    @classmethod
    def from_config(cls, settings: config.DistributedConfig, world: World, device: torch.device) -> "ParallelStrategy":
        """Create the strategy of a recipe's `[distributed]`."""
        return cls(world, device)

    @property
    def load_device(self) -> torch.device:
        """The device that the policy must be loaded on before `prepare`."""
        return self.device

    @abstractmethod
    def prepare(self, policy: Policy, optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
        """Distribute policy and optimizer with their present weights and state, before the first pass.

        Returns:
            The optimizer to use.
        """

    def local_micro_batches(self, micro_batches: Sequence[M]) -> Iterator[tuple[M, bool]]:
        """Yield this process' micro-batches, dealt round by round, each with True if it counts.

        In lockstep a process without a micro-batch in the last round repeats the last one, which must then have
        weight zero.
        """
        if not self.lockstep:
            yield from ((micro_batch, True) for micro_batch in self.world.shard(micro_batches))
            return
        for first in range(0, len(micro_batches), self.world.size):
            index = first + self.world.rank
            yield (micro_batches[index], True) if index < len(micro_batches) else (micro_batches[-1], False)

    def backward(self, loss: Float[Tensor, ""], *, last: bool) -> None:
        """Add a pass' gradients to those of the passes before; `last` marks the step's last pass."""
        loss.backward()  # type: ignore[no-untyped-call]

    def step(self, policy: Policy, optimizer: torch.optim.Optimizer, max_grad_norm: float) -> float:
        """Update the adapter by the sum of all processes' gradients and clear them.

        Args:
            policy: as prepared.
            optimizer: the one that `prepare` returned.
            max_grad_norm: the sum is clipped to this norm; 0 is off.

        Returns:
            The gradient's norm before clipping.

        Raises:
            StepalignError: the norm is not finite; nothing was updated.
        """
        adapter = policy.trainable()
        if self.world.size > 1:
            _all_reduce(adapter)
        norm = float(torch.nn.utils.clip_grad_norm_(adapter, max_grad_norm or math.inf))
        if not math.isfinite(norm):
            raise StepalignError(f"the gradient's norm is {norm}; nothing was updated (a lower optimizer.lr?)")
        optimizer.step()
        optimizer.zero_grad()
        return norm

    def full_optimizer_state(self, policy: Policy, optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
        """Return the optimizer with all of its state, for a checkpoint. All processes must call this."""
        return optimizer

    @contextmanager
    def unsharded(self, policy: Policy) -> Iterator[None]:
        """Open a context in which a process may run the model without the others."""
        yield


def _all_reduce(parameters: Sequence[nn.Parameter]) -> None:
    """Replace each gradient by the sum over processes, in one message. A process without a pass adds zeros."""
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    distributed.all_reduce(flat)
    parts = torch.split(flat, [gradient.numel() for gradient in gradients])
    for parameter, part in zip(parameters, parts, strict=True):
        parameter.grad = part.view_as(parameter)
