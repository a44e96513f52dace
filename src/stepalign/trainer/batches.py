"""Batches of problems: which problems a run attempts, and in which order."""

from collections.abc import Iterator, Sequence
from itertools import count, islice
from random import Random

from stepalign import config
from stepalign.chat import Chat
from stepalign.prompts.conversation import SolverPrompt
from stepalign.records import Problem
from stepalign.seeding import derive_seed


def with_room(
    problems: Sequence[Problem],
    sampling: config.SamplingConfig,
    chat: Chat,
    prompt: SolverPrompt,
    context_limit: int | None,
) -> list[Problem]:
    """Return the problems whose prompt leaves room for a completion in the model's context."""

    def fits(problem: Problem) -> bool:
        ids = chat.prompt_ids(prompt.turns(problem), thinking=sampling.enable_thinking)
        return context_limit is None or len(ids) + sampling.max_new_tokens <= context_limit

    return [problem for problem in problems if fits(problem)]


def batches(problems: Sequence[Problem], size: int, seed: int) -> Iterator[list[Problem]]:
    """Yield batches without end. Every epoch has an order of its own; batches run on across epochs."""

    def endless() -> Iterator[Problem]:
        for epoch in count():
            yield from Random(derive_seed(seed, "epoch", epoch)).sample(problems, len(problems))

    stream = endless()
    while True:
        yield list(islice(stream, size))
