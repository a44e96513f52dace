"""Construction of the sampler that a recipe names."""

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
    sampler = settings.sampler
    match sampler:
        case config.TransformersConfig():
            return TransformersSampler(load(), eos_ids=eos_ids, batch_size=sampler.max_num_seqs)
        case config.VllmConfig():
            from stepalign.rollouts.vllm import VllmSampler

            return VllmSampler(
                sampler,
                settings.model,
                dtype=str(dtype).removeprefix("torch."),
                rank=settings.lora.r,
                eos_ids=eos_ids,
                world=world,
                seed=settings.seed,
            )
        case config.VllmServerConfig():
            from stepalign.rollouts.vllm_server import ServerSampler

            concurrency = -(-sampler.max_num_seqs // world.size)
            name = sampler.model or settings.model.location
            return ServerSampler(sampler, name, eos_ids=eos_ids, concurrency=concurrency)
