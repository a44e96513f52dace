"""What a condition is: how a step's rollouts become lessons, and what the lessons are worth.

Sampler, loop, optimizer and evaluation are the same for every condition. A `Algorithm` is what differs: distillation
(`teaching`, `distilling`) or GRPO (`rewarding`).
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar, runtime_checkable

from stepalign.records import Critique, CritiqueFailure, Problem, Rollout
from stepalign.trainer.accumulation import Loss
from stepalign.views import TrainingExample, View

L = TypeVar("L", bound=TrainingExample)


@dataclass(frozen=True, kw_only=True)
class StepExamples(Generic[L]):
    """A step's lessons, and what became of every rollout."""

    lessons: list[L]
    zero_gradient: list[View] = field(default_factory=list)
    """What counts in the loss's means but has no gradient, so that no pass is spent on it."""
    outcomes: Counter[str] = field(default_factory=Counter)
    """`taught`, of which `fallback` under the fallback's context and `cut` with a shortened one; `dropped`."""
    cases: Counter[str] = field(default_factory=Counter)
    """The critiques' cases."""
    failures: Counter[str] = field(default_factory=Counter)
    """Why there is no critique, or no lesson."""

    def extend(self, other: "StepExamples[L]") -> None:
        """Add what became of other rollouts of the step."""
        self.lessons.extend(other.lessons)
        self.zero_gradient.extend(other.zero_gradient)
        for mine, others in (
            (self.outcomes, other.outcomes),
            (self.cases, other.cases),
            (self.failures, other.failures),
        ):
            mine.update(others)


@runtime_checkable
class Algorithm(Protocol[L]):
    """A condition at work."""

    needs_critique: bool
    one_by_one: bool
    """Whether a rollout's lesson follows from it and its own critique alone."""
    num_iterations: int
    """Optimizer updates on each step's lessons."""

    def check(self, problems: Sequence[Problem]) -> None:
        """Raise a StepalignError where the problems lack what the method shows of them."""
        ...

    def teach(
        self,
        rollouts: Sequence[Rollout],
        problems: Mapping[str, Problem],
        answers: Mapping[str, Critique | CritiqueFailure],
    ) -> StepExamples[L]:
        """A lesson for every rollout that can be learnt from.

        Args:
            rollouts: one step's, graded.
            problems: by id.
            answers: the critic's, by rollout id; empty where no critique is needed.
        """
        ...

    def learner(self) -> Loss[L]:
        """The loss for one step's lessons, over all of its updates."""
        ...
