"""From a recipe's `[sampler]` to a sampler."""

from collections.abc import Callable

import torch

from stepalign import recipe
from stepalign.sampling import Sampler
from stepalign.sampling.transformers import TransformersSampler
from stepalign.world import ALONE, World


def make(
    settings: recipe.Recipe,
    load: Callable[[], torch.nn.Module],
    dtype: torch.dtype,
    *,
    eos_ids: frozenset[int],
    world: World = ALONE,
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
        case recipe.Transformers():
            return TransformersSampler(load(), eos_ids=eos_ids, batch_size=chosen.batch_size)
        case recipe.Vllm():
            from stepalign.sampling.vllm import VllmSampler

            return VllmSampler(
                chosen,
                settings.model,
                dtype=str(dtype).removeprefix("torch."),
                rank=settings.adapter.rank,
                eos_ids=eos_ids,
                world=world,
                seed=settings.seed,
            )
        case recipe.VllmServer():
            from stepalign.sampling.server import ServerSampler

            concurrency = -(-chosen.batch_size // world.size)
            name = chosen.model or settings.model.location
            return ServerSampler(chosen, name, eos_ids=eos_ids, concurrency=concurrency)
