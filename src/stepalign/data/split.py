"""Split problems off for evaluation, by seed."""

from collections.abc import Sequence

from stepalign.errors import StepalignError
from stepalign.records import Problem
from stepalign.seeding import derive_seed


def split(problems: Sequence[Problem], holdout: int, seed: int) -> tuple[list[Problem], list[Problem]]:
    """Split `holdout` problems off (paper: 30 of 312).

    Each problem has a rank that depends on the seed and its id alone, and the lowest ranks are held out: the
    order of the problems does not matter, and adding some moves few others across.

    Returns:
        The problems to train on and those held out, each in the order given.

    Raises:
        StepalignError: nothing would be left to train on.
    """
    if holdout >= len(problems):
        raise StepalignError(
            f"holdout = {holdout}, but there are {len(problems)} problems: one must be left to train on"
        )
    ranked = sorted(problems, key=lambda problem: (derive_seed(seed, "holdout", problem.id), problem.id))
    held_out = {problem.id for problem in ranked[:holdout]}
    return (
        [problem for problem in problems if problem.id not in held_out],
        [problem for problem in problems if problem.id in held_out],
    )
