"""Critics: whatever answers a graded rollout with a critique in the paper's schema."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from stepalign import config
from stepalign.config import registry
from stepalign.records import Critique, CritiqueFailure, Problem, Rollout
from stepalign.rewards.math import Grader

if TYPE_CHECKING:
    from stepalign.chat import Chat
    from stepalign.rollouts import Sampler


@runtime_checkable
class Critic(Protocol):
    """Answers attempts, in the order in which answers are ready."""

    name: str

    def critique(self, attempts: Iterable[tuple[Problem, Rollout]]) -> Iterator[Critique | CritiqueFailure]:
        """Yield one answer an attempt. Rollouts are graded; a failure is an answer, not an exception."""
        ...


@dataclass(frozen=True)
class OwnModel:
    """The solver as a critic may use it: with the weights that are loaded already, its adapter off."""

    chat: "Chat"
    sampler: "Sampler"
    context_limit: int | None
    """How many positions the model has."""


def make(
    settings: config.CriticConfig, grader: Grader, folder: Path, own: Callable[[], OwnModel] | None = None
) -> Critic:
    """The critic that a recipe names.

    Args:
        settings: the recipe's table.
        grader: compares final answers that only computer algebra can.
        folder: the run's, for what a critic keeps.
        own: gives the solver's own model, called when that is first asked, so that nobody loads it in vain.

    Raises:
        StepalignError: its settings cannot work.
    """
    critic: Critic = registry.build(settings, grader=grader, folder=folder, own=own)
    return critic
