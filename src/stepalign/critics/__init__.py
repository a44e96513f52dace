"""Critics: whatever writes a critique of a graded rollout in the paper's schema.

`config.registry.build(settings.critic, grader=…, folder=…, own=…, before=…)` builds the critic of a recipe. Its parts
are the grader that compares final answers, the run's folder for files of the critic's own, a function that returns the
solver's `own_model.OwnModel` (None where no solver can be had), and the solver's turns before a problem.
"""

from collections.abc import Iterable, Iterator
from typing import Protocol, runtime_checkable

from stepalign.records import Critique, CritiqueFailure, Problem, Rollout


@runtime_checkable
class Critic(Protocol):
    """Writer of critiques. Results come in the order in which they are ready."""

    name: str

    def critique(self, attempts: Iterable[tuple[Problem, Rollout]]) -> Iterator[Critique | CritiqueFailure]:
        """Yield one result an attempt. Rollouts are graded; a failure is a result, not an exception."""
        ...


@runtime_checkable
class ServedCritic(Critic, Protocol):
    """Critic behind servers."""

    def check_servers(self) -> None:
        """Raise a StepalignError where no server works, or one refuses key, model or URL."""
        ...
