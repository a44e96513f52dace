"""Parallel strategies: who runs which micro-batches, and how gradients become one update.

Each process has the whole adapter, because it is small. Its gradients are summed by one all-reduce a step, whatever
holds the base weights. Each token's weight already has the denominator of the whole step, so the sum over processes is
the gradient of a run in one process, without a further factor.

    data_parallel   the whole base on every process. A process without a micro-batch runs no pass.
    fsdp2           each decoder layer's base weights sharded (`fully_shard`) and gathered when the layer runs.
    zero2           the optimizer's state sharded by DeepSpeed, which also reduces the gradients (`zero2`).

Left out: DDP, because its hooks average, reduce after every pass, and hang where processes run unequal numbers of
passes; FSDP1 and ZeRO-3, because adapters made after partitioning are empty.

    accelerate launch --config_file recipes/accelerate/4-gpus.yaml -m stepalign train RECIPE
"""

import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from hashlib import blake2b
from typing import ClassVar, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard

from stepalign import config
from stepalign.collate import Batch
from stepalign.config import registry
from stepalign.distributed.process import SINGLE, World
from stepalign.errors import StepalignError
from stepalign.policy import Policy

M = TypeVar("M")


class ParallelStrategy:
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

    def prepare(self, policy: Policy, optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
        """Distribute policy and optimizer with their present state, and return the optimizer to use."""
        return optimizer

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

        The sum is clipped to `max_grad_norm` (0: off). Returns the norm before clipping. If it is not finite, nothing
        is updated, and an error is raised.
        """
        adapter = policy.trainable()
        if self.world.size > 1:  # one message; a process without a pass adds zeros
            gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in adapter]
            flat = torch.cat([gradient.flatten() for gradient in gradients])
            distributed.all_reduce(flat)
            parts = torch.split(flat, [gradient.numel() for gradient in gradients])
            for parameter, part in zip(adapter, parts, strict=True):
                parameter.grad = part.view_as(parameter)
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

    @contextmanager
    def equal_passes(self, policy: Policy, batch: Batch) -> Iterator[None]:
        """Open a context in which processes may run different numbers of passes without gradients over `batch`."""
        yield


class DataParallel(ParallelStrategy):
    """The whole model on every process."""

    name = "data_parallel"
    lockstep = False


class FSDP2(ParallelStrategy):
    """The base's decoder layers sharded by FSDP2; adapter, embedding and head whole on each process."""

    name = "fsdp2"
    lockstep = True

    @property
    def load_device(self) -> torch.device:
        """The CPU, because the base need not fit on one device; `prepare` moves it there in shards."""
        return torch.device("cpu")

    def prepare(self, policy: Policy, optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
        """Shard the base layer by layer: the device holds its shards, and one whole layer at a time."""
        mesh = init_device_mesh(self.device.type, (self.world.size,))
        decoder = policy.base.get_decoder()
        adapter = set(policy.trainable())
        for layer in decoder.layers:  # `fully_shard` moves the layer to the mesh's device and keeps a shard of it
            fully_shard(layer, mesh=mesh, ignored_params=adapter)
        in_layers = {parameter for layer in decoder.layers for parameter in layer.parameters()}
        fully_shard(decoder, mesh=mesh, ignored_params=adapter | (set(decoder.parameters()) - in_layers))
        sharded, layers = len(_sharded(policy)) - 1, len(decoder.layers)
        if sharded != layers:
            raise StepalignError(f"distributed.strategy = 'fsdp2': {sharded} of {layers} layers sharded")
        policy.to(self.device)
        optimizer.load_state_dict(optimizer.state_dict())  # moves restored moments to the adapter's device
        return optimizer

    @contextmanager
    def unsharded(self, policy: Policy) -> Iterator[None]:
        """Gather the whole base on each process, so that each samples at its own pace."""
        modules = _sharded(policy)
        for module in modules:
            module.set_reshard_after_forward(False, recurse=False)
            module.unshard()
        yield
        for module in modules:
            module.reshard()
            module.set_reshard_after_forward(True, recurse=False)

    @contextmanager
    def equal_passes(self, policy: Policy, batch: Batch) -> Iterator[None]:
        """Let all processes run as many passes as the one that runs the most.

        A teacher's views differ in number and length over the processes, and each pass gathers the base from all. So
        each pass is announced, and a process that has no more joins those of the others.
        """

        def another(mine: bool) -> bool:
            anyone = torch.tensor(int(mine), device=self.device)
            distributed.all_reduce(anyone, distributed.ReduceOp.MAX)
            return bool(anyone)

        hook = policy.base.get_decoder().register_forward_pre_hook(lambda *_: another(True) and None)
        try:
            yield
        finally:
            hook.remove()
        while another(False):
            policy.forward_base(batch)


def build_strategy(
    settings: config.DistributedConfig,
    world: World,
    device: torch.device,
    *,
    full: bool = False,
) -> ParallelStrategy:
    """Create the strategy of the recipe, or else of the launcher's configuration.

    Args:
        settings: the recipe's table.
        world: the processes of the run.
        device: this process'.
        full: all weights are trained.

    Raises:
        StepalignError: recipe and launcher disagree, or the strategy cannot train this.
    """
    launcher = "data_parallel"
    if os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true":
        launcher = "fsdp2"
        if os.environ.get("FSDP_VERSION", "2") != "2":
            raise StepalignError("fsdp_version: 1 in the launcher's configuration: only 2 is supported")
    if os.environ.get("ACCELERATE_USE_DEEPSPEED", "").lower() == "true":
        launcher = "zero2"
    name = launcher if settings.strategy == "auto" else settings.strategy
    if launcher not in ("data_parallel", name):
        raise StepalignError(f"distributed.strategy = {name!r}, but the launcher's configuration asks for {launcher}")
    if name != "data_parallel" and world.size == 1:
        raise StepalignError(f"distributed.strategy = {name!r} needs several processes: launch it with `torchrun`")
    if full and name != "data_parallel":
        raise StepalignError(
            f"training.use_peft = false with distributed.strategy = {name!r}, which is made for an adapter on a frozen "
            "base: only 'data_parallel' trains all weights"
        )
    strategy: ParallelStrategy = registry.implementation("strategy", name).from_config(settings, world, device)
    return strategy


def fingerprint(tensors: Sequence[Tensor]) -> str:
    """Return a digest of weights, for comparing processes."""
    digest = blake2b(digest_size=8)
    for tensor in tensors:
        digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _sharded(policy: Policy) -> list[FSDPModule]:
    return [module for module in policy.modules() if isinstance(module, FSDPModule)]
