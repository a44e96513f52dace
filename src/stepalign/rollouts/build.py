"""Construction of the sampler, and of the solver, that a recipe names."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from uuid import uuid4

import torch
from accelerate import Accelerator

from stepalign import config, models
from stepalign.chat import Chat, load_chat
from stepalign.config import registry
from stepalign.distributed.process import SINGLE, World
from stepalign.prompts.conversation import SolverPrompt
from stepalign.rewards import Grader
from stepalign.rollouts import AdapterVersion, RemoteSampler, Sampler
from stepalign.rollouts.generate import Solver
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


@contextmanager
def open_solver(settings: config.Recipe, adapter: Path | None) -> Iterator[Solver]:
    """Load a recipe's solver with a PEFT adapter, or with none, and close it at the end."""
    chat = load_chat(settings.model)
    device = Accelerator().device
    dtype = models.resolve_dtype(settings.model.dtype, device)

    def model() -> torch.nn.Module:
        loaded: torch.nn.Module = models.load_model(settings.model, adapter, device)
        return loaded

    with ExitStack() as stack:
        sampler = make(settings, model, dtype, eos_ids=chat.eos_ids)
        if isinstance(sampler, RemoteSampler):
            stack.callback(sampler.close)
            if adapter is not None:
                sampler.load_adapter(AdapterVersion(name=f"{adapter.name}-{uuid4().hex[:8]}", number=1, folder=adapter))
        grader: Grader = stack.enter_context(registry.build(settings.grader))
        yield Solver(chat, sampler, grader, SolverPrompt(settings.prompts))


@contextmanager
def solver_on(settings: config.Recipe, chat: Chat, model: torch.nn.Module) -> Iterator[Solver]:
    """Build the recipe's solver on a model that is loaded already, which is also the sampler's."""
    sampler = TransformersSampler(model, eos_ids=chat.eos_ids, batch_size=settings.sampler.max_num_seqs)
    with registry.build(settings.grader) as grader:
        yield Solver(chat, sampler, grader, SolverPrompt(settings.prompts))
