"""Critics: whatever answers a graded rollout with a critique in the paper's schema."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from stepalign import config
from stepalign.errors import StepalignError
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
    settings: config.AnyCriticConfig, grader: Grader, folder: Path, own: Callable[[], OwnModel] | None = None
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
    match settings:
        case config.ProgramCriticConfig():
            from stepalign.critics.arithmetic.critic import ProgramCritic
            from stepalign.critics.validation import CheckedCritic, Rules

            return CheckedCritic(ProgramCritic(), Rules(settings, grader))
        case config.ReplayCriticConfig():
            from stepalign.critics.replay import ReplayCritic
            from stepalign.critics.validation import CheckedCritic, Rules

            return CheckedCritic(ReplayCritic(settings.path), Rules(settings, grader))
        case config.SelfCriticConfig():
            from stepalign.critics.self_critic import SelfCritic

            if own is None:
                raise StepalignError("critic.kind = 'self': there is no solver here that could be asked")
            return SelfCritic(settings, grader, own)
        case config.OpenAICriticConfig():
            from stepalign.critics.openai import OpenAICritic

            return OpenAICritic(settings, grader, folder)
