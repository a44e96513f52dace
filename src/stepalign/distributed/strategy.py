"""An update spread over processes: who makes which passes, and how their gradients become one.

The adapter is small and every process has it whole, so its gradients are added up once a step by one explicit
all-reduce, whatever holds the base weights. Each token's weight already carries the whole step's denominator: the sum
over processes is the gradient that one process would have, with no factor to get wrong. DDP's hooks would average,
reduce after every pass, and hang where processes make unequal numbers of passes.

    replicated   the base whole on every process. A process without a micro-batch makes no pass.
    fsdp2        each decoder layer's base weights sharded (`fully_shard`) and gathered when it runs. All processes
                 make the same number of passes; one that has run out repeats the shortest, with weight zero.
    zero2        the optimizer's state sharded by DeepSpeed, which also reduces the gradients (`zero`).

Left out: FSDP1 and ZeRO-3 (adapters made after partitioning are empty: `FACTS.md`, trap 12), tensor parallelism.

    accelerate launch --config_file recipes/accelerate/4-gpus.yaml -m stepalign.cli train RECIPE
"""

import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from hashlib import blake2b
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard

from stepalign import config
from stepalign.config import registry
from stepalign.distributed.process import SINGLE, World
from stepalign.errors import StepalignError
from stepalign.policy import Policy

M = TypeVar("M")


class DataParallel:
    """The whole model on every process."""

    name = "data_parallel"

    def __init__(self, world: World = SINGLE, device: torch.device | None = None) -> None:
        self.world, self.device = world, device or torch.device("cpu")

    @classmethod
    def from_config(cls, settings: config.DistributedConfig, *, world: World, device: torch.device) -> "DataParallel":
        """Build the strategy of a recipe."""
        return cls(world, device)

    def prepare(self, policy: Policy, optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
        """Make policy and optimizer ready, with adapter and state as they are now, before the first pass.

        Returns:
            The optimizer to use.
        """
        return optimizer

    def passes(self, micro: Sequence[M]) -> Iterator[tuple[M, bool]]:
        """This process' micro-batches, and whether each counts. They are dealt out round by round."""
        yield from ((each, True) for each in self.world.shard(micro))

    def backward(self, loss: Float[Tensor, ""], *, last: bool) -> None:
        """Add a pass' gradients to those of the passes before; `last` is the step's last pass."""
        loss.backward()  # type: ignore[no-untyped-call]

    def step(self, policy: Policy, optimizer: torch.optim.Optimizer, max_grad_norm: float) -> float:
        """Update the adapter by the sum of all processes' gradients, clipped to a norm (0 is off), and clear them.

        Returns:
            The gradient's norm before it was clipped.

        Raises:
            StepalignError: it is not finite; nothing was updated.
        """
        adapter = policy.trainable()
        self._reduce(adapter)
        norm = float(torch.nn.utils.clip_grad_norm_(adapter, max_grad_norm or math.inf))
        if not math.isfinite(norm):
            raise StepalignError(f"the gradient's norm is {norm}; nothing was updated (a lower optimizer.lr?)")
        optimizer.step()
        optimizer.zero_grad()
        return norm

    def _reduce(self, parameters: Sequence[nn.Parameter]) -> None:
        if self.world.size == 1:
            return
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        whole = torch.cat([gradient.flatten() for gradient in gradients])
        distributed.all_reduce(whole)
        parts = torch.split(whole, [gradient.numel() for gradient in gradients])
        for parameter, part in zip(parameters, parts, strict=True):
            parameter.grad = part.view_as(parameter)

    def whole(self, policy: Policy, optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
        """The optimizer with all of its state, for a checkpoint. All processes must ask."""
        return optimizer

    @contextmanager
    def unsharded(self, policy: Policy) -> Iterator[None]:
        """While this is open, a process runs the model without the others."""
        yield


class LockstepStrategy(DataParallel):
    """All processes make the same number of passes, because each pass has communication of its own."""

    def passes(self, micro: Sequence[M]) -> Iterator[tuple[M, bool]]:
        """As many for every process; one that has run out repeats the shortest."""
        world = self.world
        for first in range(0, len(micro), world.size):
            index = first + world.rank
            yield (micro[index], True) if index < len(micro) else (micro[-1], False)


class FSDP2(LockstepStrategy):
    """The base's decoder layers sharded over the processes by FSDP2; adapter, embedding and head whole on each."""

    name = "fsdp2"

    def prepare(self, policy: Policy, optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
        """Shard the base.

        Raises:
            StepalignError: the layers are not what FSDP2 makes of them.
        """
        mesh = init_device_mesh(self.device.type, (self.world.size,))
        decoder = policy.base.get_decoder()
        adapter = set(policy.trainable())
        for layer in decoder.layers:
            fully_shard(layer, mesh=mesh, ignored_params=adapter)
        inside = {parameter for layer in decoder.layers for parameter in layer.parameters()}
        fully_shard(decoder, mesh=mesh, ignored_params=adapter | (set(decoder.parameters()) - inside))
        layers = len(decoder.layers)
        if len(_sharded(policy)) != layers + 1:
            raise StepalignError(
                f"distributed.strategy = 'fsdp2': {len(_sharded(policy)) - 1} of {layers} layers sharded"
            )
        return optimizer

    @contextmanager
    def unsharded(self, policy: Policy) -> Iterator[None]:
        """The base whole on each process meanwhile, so that each samples at its own pace."""
        modules = _sharded(policy)
        for module in modules:
            module.set_reshard_after_forward(False, recurse=False)
            module.unshard()
        yield
        for module in modules:
            module.reshard()
            module.set_reshard_after_forward(True, recurse=False)


def make(settings: config.DistributedConfig, world: World, device: torch.device) -> DataParallel:
    """The engine that the recipe, or else the launcher's configuration, asks for.

    Raises:
        StepalignError: the two ask for different engines, or there is nothing to distribute over.
    """
    launcher = "data_parallel"
    if os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true":
        launcher = "fsdp2"
        if os.environ.get("FSDP_VERSION", "2") != "2":
            raise StepalignError("fsdp_version: 1 in the launcher's configuration: only 2 is supported")
    if os.environ.get("ACCELERATE_USE_DEEPSPEED", "").lower() == "true":
        launcher = "zero2"
    asked = launcher if settings.strategy == "auto" else settings.strategy
    if launcher not in ("data_parallel", asked):
        raise StepalignError(f"distributed.strategy = {asked!r}, but the launcher's configuration asks for {launcher}")
    if world.size == 1 and asked != "data_parallel":
        raise StepalignError(f"distributed.strategy = {asked!r} needs several processes: launch it with `torchrun`")
    strategy: DataParallel = registry.implementation("strategy", asked).from_config(
        settings, world=world, device=device
    )
    return strategy


def fingerprint(tensors: Sequence[Tensor]) -> str:
    """What tells two processes' weights apart."""
    digest = blake2b(digest_size=8)
    for tensor in tensors:
        digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _sharded(policy: Policy) -> list[FSDPModule]:
    return [module for module in policy.modules() if isinstance(module, FSDPModule)]
