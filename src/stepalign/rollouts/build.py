"""Construction of the sampler that a recipe names."""

from collections.abc import Callable

import torch

from stepalign import config
from stepalign.config import registry
from stepalign.distributed.process import SINGLE, World
from stepalign.rollouts import Sampler


def make(
    settings: config.Recipe,
    load: Callable[[], torch.nn.Module],
    dtype: torch.dtype,
    *,
    eos_ids: frozenset[int],
    world: World = SINGLE,
) -> Sampler:
    """Build the sampler that a recipe names.

    Args:
        settings: sampler, model, adapter and seed are used.
        load: returns the training model, from which `transformers` samples.
        dtype: the training model's.
        eos_ids: the tokens that end a completion.
        world: the processes that sample.

    Raises:
        StepalignError: vLLM is not installed or cannot run the model.
    """
    sampler: Sampler = registry.build(
        settings.sampler,
        load=load,
        dtype=dtype,
        model=settings.model,
        rank=settings.lora.r,
        seed=settings.seed,
        eos_ids=eos_ids,
        world=world,
    )
    return sampler
