"""From a recipe's `[sampler]` to a sampler."""

from collections.abc import Callable

import torch

from stepalign import config
from stepalign.distributed.process import SINGLE, World
from stepalign.rollouts import Sampler
from stepalign.rollouts.transformers import TransformersSampler


def make(
    settings: config.Recipe,
    load: Callable[[], torch.nn.Module],
    dtype: torch.dtype,
    *,
    eos_ids: frozenset[int],
    world: World = SINGLE,
) -> Sampler:
    """The sampler that a recipe names.

    Args:
        settings: sampler, model, adapter and seed are used.
        load: gives the training model, which `transformers` samples from as it is.
        dtype: the training model's.
        eos_ids: what ends a completion.
        world: the processes that sample.

    Raises:
        StepalignError: an engine is not installed or cannot run the model.
    """
    chosen = settings.sampler
    match chosen:
        case config.TransformersConfig():
            return TransformersSampler(load(), eos_ids=eos_ids, batch_size=chosen.max_num_seqs)
        case config.VllmConfig():
            from stepalign.rollouts.vllm import VllmSampler

            return VllmSampler(
                chosen,
                settings.model,
                dtype=str(dtype).removeprefix("torch."),
                rank=settings.lora.r,
                eos_ids=eos_ids,
                world=world,
                seed=settings.seed,
            )
        case config.VllmServerConfig():
            from stepalign.rollouts.vllm_server import ServerSampler

            concurrency = -(-chosen.max_num_seqs // world.size)
            name = chosen.model or settings.model.location
            return ServerSampler(chosen, name, eos_ids=eos_ids, concurrency=concurrency)
