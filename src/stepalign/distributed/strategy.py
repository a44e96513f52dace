"""The strategies of `distributed.strategy`, and the choice between them.

    data_parallel   the whole base on every process. A process without a micro-batch runs no pass.
    fsdp2           each decoder layer's base weights sharded (`fully_shard`) and gathered when the layer runs.
    zero2           the optimizer's state sharded by DeepSpeed, which also reduces the gradients (`zero2`).

Left out: FSDP1 and ZeRO-3, because adapters made after partitioning are empty (`FACTS.md`, trap 12).

    accelerate launch --config_file recipes/accelerate/4-gpus.yaml -m stepalign.cli train RECIPE
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from hashlib import blake2b

import torch
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard

from stepalign import config
from stepalign.config import registry
from stepalign.distributed.base import ParallelStrategy
from stepalign.distributed.process import World
from stepalign.errors import StepalignError
from stepalign.policy import Policy


class DataParallel(ParallelStrategy):
    """The whole model on every process."""

    name = "data_parallel"
    lockstep = False

    def prepare(self, policy: Policy, optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
        """Return the optimizer unchanged."""
        return optimizer


class FSDP2(ParallelStrategy):
    """The base's decoder layers sharded by FSDP2; adapter, embedding and head whole on each process."""

    name = "fsdp2"
    lockstep = True

    @property
    def load_device(self) -> torch.device:
        """The CPU, because the base need not fit on one device; `prepare` moves it there in shards."""
        return torch.device("cpu")

    def prepare(self, policy: Policy, optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
        """Shard the base layer by layer: the device holds its shards, and one whole layer at a time.

        Raises:
            StepalignError: FSDP2 did not shard every layer.
        """
        mesh = init_device_mesh(self.device.type, (self.world.size,))
        decoder = policy.base.get_decoder()
        adapter = set(policy.trainable())
        for layer in decoder.layers:  # `fully_shard` moves the layer to the mesh's device and keeps a shard of it
            fully_shard(layer, mesh=mesh, ignored_params=adapter)
        in_layers = {parameter for layer in decoder.layers for parameter in layer.parameters()}
        fully_shard(decoder, mesh=mesh, ignored_params=adapter | (set(decoder.parameters()) - in_layers))
        layers = len(decoder.layers)
        if len(_sharded(policy)) != layers + 1:
            raise StepalignError(
                f"distributed.strategy = 'fsdp2': {len(_sharded(policy)) - 1} of {layers} layers sharded"
            )
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


def build_strategy(settings: config.DistributedConfig, world: World, device: torch.device) -> ParallelStrategy:
    """Create the strategy of the recipe, or else of the launcher's configuration.

    Raises:
        StepalignError: recipe and launcher disagree, or one process cannot run the strategy.
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
