"""Critics: whatever answers a graded rollout with a critique in the paper's schema."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Protocol

from stepalign import recipe
from stepalign.grading import Grader
from stepalign.records import Critique, CritiqueFailure, Problem, Rollout


class Critic(Protocol):
    """Answers attempts, in the order in which answers are ready."""

    name: str

    def critique(self, attempts: Iterable[tuple[Problem, Rollout]]) -> Iterator[Critique | CritiqueFailure]:
        """Yield one answer an attempt. Rollouts are graded; a failure is an answer, not an exception."""
        ...


def make(settings: recipe.Critic, grader: Grader, folder: Path) -> Critic:
    """The critic that a recipe names.

    Args:
        settings: the recipe's table.
        grader: compares final answers that only computer algebra can.
        folder: the run's, for what a critic keeps.

    Raises:
        StepalignError: its settings cannot work.
    """
    if settings.kind == "program":
        from stepalign.critics.policy import CheckedCritic, Rules
        from stepalign.critics.program import ProgramCritic

        return CheckedCritic(ProgramCritic(), Rules(settings, grader))
    from stepalign.critics.openai import OpenAICritic

    return OpenAICritic(settings, grader, folder)
