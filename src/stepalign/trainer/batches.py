"""Which problems a run attempts, and in which order."""

from collections.abc import Iterator, Sequence
from itertools import count, islice
from random import Random

from stepalign import config
from stepalign.chat import Chat
from stepalign.prompts.conversation import SolverPrompt
from stepalign.records import Problem
from stepalign.seeding import derive_seed


def fitting(
    problems: Sequence[Problem], sampling: config.SamplingConfig, chat: Chat, prompt: SolverPrompt, limit: int | None
) -> list[Problem]:
    """The problems whose prompt leaves room for a completion in a model's context of `limit` tokens."""

    def fits(problem: Problem) -> bool:
        read = chat.prompt_ids(prompt.turns(problem), thinking=sampling.enable_thinking)
        return limit is None or len(read) + sampling.max_new_tokens <= limit

    return [problem for problem in problems if fits(problem)]


def batches(problems: Sequence[Problem], size: int, seed: int) -> Iterator[list[Problem]]:
    """Batches of problems without end: every epoch in an order of its own, batches running on across epochs."""

    def endless() -> Iterator[Problem]:
        for epoch in count():
            yield from Random(derive_seed(seed, "epoch", epoch)).sample(problems, len(problems))

    stream = endless()
    while True:
        yield list(islice(stream, size))
