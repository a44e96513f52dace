"""ZeRO-2 by DeepSpeed: each process keeps its part of the optimizer's state, on the device or in the host's memory.

The paper's setting, with CPU offload. DeepSpeed receives the adapter only: the base has no gradients, so DeepSpeed
needs neither to cast nor to broadcast it. With LoRA it saves 8 bytes per adapter parameter, divided by the number of
processes, and costs communication in every pass. `data_parallel` is simpler where that fits.

    torchrun --nproc-per-node 4 -m stepalign train RECIPE distributed.strategy=zero2 \
      distributed.offload_optimizer=true
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from stepalign import config
from stepalign.distributed.process import SINGLE, World
from stepalign.distributed.strategy import ParallelStrategy
from stepalign.errors import StepalignError, not_installed
from stepalign.policy import Policy

_MOMENTS = ("exp_avg", "exp_avg_sq")


class ZeRO2(ParallelStrategy):
    """The optimizer's state sharded, and gradients reduced, by DeepSpeed."""

    name = "zero2"
    lockstep = True

    def __init__(self, world: World = SINGLE, device: torch.device | None = None, *, offload: bool = False) -> None:
        """Import DeepSpeed. `offload` keeps the optimizer's state, and makes its update, in the host's memory."""
        super().__init__(world, device)
        try:
            import deepspeed
        except ImportError as error:
            raise not_installed(f"distributed.strategy = 'zero2' needs DeepSpeed ({error})", "deepspeed") from None
        self._deepspeed: Any = deepspeed
        self._offload = offload

    @classmethod
    def from_config(cls, settings: config.DistributedConfig, world: World, device: torch.device) -> "ZeRO2":
        """Create the strategy of a recipe's `[distributed]`."""
        return cls(world, device, offload=settings.offload_optimizer)

    def prepare(self, policy: Policy, optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
        """Give adapter and optimizer to DeepSpeed, and check what it made of them."""
        adapter = policy.trainable()
        before = {parameter: optimizer.state.pop(parameter) for parameter in adapter if parameter in optimizer.state}
        engine, sharded, _, _ = self._deepspeed.initialize(
            model=nn.ParameterList(adapter),
            optimizer=optimizer,
            config={
                "train_micro_batch_size_per_gpu": 1,
                "zero_allow_untested_optimizer": True,
                "zero_force_ds_cpu_optimizer": False,
                "zero_optimization": {"stage": 2} | ({"offload_optimizer": {"device": "cpu"}} if self._offload else {}),
            },
        )
        kind, size = type(sharded).__name__, engine.dp_world_size
        if kind != "DeepSpeedZeroOptimizer" or size != self.world.size:
            raise StepalignError(f"distributed.strategy = 'zero2': DeepSpeed made a {kind} over {size} processes")
        self._engine = engine
        if before:
            self._restore(sharded, before)
        prepared: torch.optim.Optimizer = sharded
        return prepared

    def _restore(self, sharded: Any, before: Mapping[nn.Parameter, Mapping[str, Tensor]]) -> None:
        """Set this process' part of the optimizer's state. ZeRO itself allocates it in the first update."""
        steps = next(iter(before.values()))["step"]
        for flat in sharded.single_partition_of_fp32_groups:
            moments = {moment: torch.zeros_like(flat) for moment in _MOMENTS}
            sharded.optimizer.state[flat] = {"step": steps.clone(), **moments}
        sharded._lazy_init_hp_params_optimizer_state()
        for parameter, state in before.items():
            for moment in _MOMENTS:
                self._deepspeed.utils.safe_set_full_optimizer_state(parameter, state[moment], moment)

    def backward(self, loss: Float[Tensor, ""], *, last: bool) -> None:
        """Add a pass' gradients, times the number of processes because DeepSpeed averages."""
        self._engine.set_gradient_accumulation_boundary(last)
        self._engine.backward(loss * self.world.size)
        if not last:
            self._engine.step()

    def step(self, policy: Policy, optimizer: torch.optim.Optimizer, max_grad_norm: float) -> float:
        """Update the adapter as `ParallelStrategy.step` does; a norm that is not finite is found after the update."""
        self._engine.optimizer.clip_grad = max_grad_norm
        self._engine.step()
        norm = float(self._engine.get_global_grad_norm())
        if not math.isfinite(norm):
            raise StepalignError(f"the gradient's norm is {norm}; the last checkpoint is whole (a lower optimizer.lr?)")
        return norm

    def full_optimizer_state(self, policy: Policy, optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
        """Return an AdamW with the state of all processes."""
        adapter = policy.trainable()
        gathered = torch.optim.AdamW(adapter)
        if not optimizer.optimizer.state:  # type: ignore[attr-defined]  # before the first update
            return gathered
        steps = next(iter(optimizer.optimizer.state.values()))["step"]  # type: ignore[attr-defined]
        for parameter in adapter:
            gathered.state[parameter] = {"step": torch.as_tensor(steps).clone()} | {
                moment: self._deepspeed.utils.safe_get_full_optimizer_state(parameter, moment) for moment in _MOMENTS
            }
        return gathered
