"""Batches of problems: which problems a run attempts, and in which order."""

from collections.abc import Iterator, Sequence
from itertools import count, islice
from random import Random
from typing import Any

from stepalign.algorithms.base import Algorithm
from stepalign.errors import StepalignError
from stepalign.records import Problem
from stepalign.seeding import derive_seed


def with_teacher_room(problems: Sequence[Problem], algorithm: Algorithm[Any]) -> list[Problem]:
    """Return the problems whose teacher prompt leaves room for a completion, where the teacher writes; else all.

    Raises:
        StepalignError: there are problems, and none leaves room.
    """
    if algorithm.rollout_source(1) != "teacher":  # it is every step's, or no step's
        return list(problems)
    prompts = algorithm.teacher_prompts(problems)
    if problems and not prompts:
        raise StepalignError("problems.train: no problem leaves room for sampling.max_new_tokens in teacher.max_length")
    return [problem for problem in problems if problem.id in prompts]


def batches(problems: Sequence[Problem], size: int, seed: int) -> Iterator[list[Problem]]:
    """Yield batches without end. Every epoch has an order of its own; batches run on across epochs.

    Raises:
        StepalignError: there are no problems.
    """
    if not problems:
        raise StepalignError("problems.train: no problems to draw batches from")

    def endless() -> Iterator[Problem]:
        for epoch in count():
            yield from Random(derive_seed(seed, "epoch", epoch)).sample(problems, len(problems))

    stream = endless()
    while True:
        yield list(islice(stream, size))
