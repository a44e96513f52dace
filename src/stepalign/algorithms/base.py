"""Algorithm protocol: from a step's rollouts to training examples and a loss.

Sampler, loop, optimizer and evaluation are the same for every algorithm. A new algorithm is a module in this room, a
table in `config/algorithms.py` and a recipe.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from stepalign.collate import Batch
from stepalign.policy import Policy
from stepalign.records import CriticResult, Problem, Rollout, RolloutSource, TokenIds
from stepalign.teachers import Teacher
from stepalign.teachers.stateless import BaseTeacher
from stepalign.views import TrainingExample, View

E = TypeVar("E", bound=TrainingExample)
E_contra = TypeVar("E_contra", bound=TrainingExample, contravariant=True)


@dataclass(frozen=True, kw_only=True)
class StepExamples(Generic[E]):
    """Training examples of a step, and the outcome of every rollout."""

    examples: list[E] = field(default_factory=list)
    zero_gradient: list[View] = field(default_factory=list)
    """Views in the loss's denominator without a gradient, so that no pass is spent on them."""
    outcomes: Counter[str] = field(default_factory=Counter)
    """`trained`, of which `fallback` with the fallback's context and `cut` with a shortened one; `dropped`, of which
    `masked` because the context had nothing to show. See `records.SHORTFALLS`."""
    cases: Counter[str] = field(default_factory=Counter)
    """Cases of the critiques, A to D."""
    failures: Counter[str] = field(default_factory=Counter)
    """Reasons for a missing critique or a missing example."""

    @property
    def views(self) -> list[View]:
        """The views in the loss's denominator."""
        return [*(example.student for example in self.examples), *self.zero_gradient]

    def extend(self, other: "StepExamples[E]") -> None:
        """Add the examples of other rollouts of the step."""
        self.examples.extend(other.examples)
        self.zero_gradient.extend(other.zero_gradient)
        self.outcomes.update(other.outcomes)
        self.cases.update(other.cases)
        self.failures.update(other.failures)


@runtime_checkable
class Loss(Protocol[E_contra]):
    """Loss on a micro-batch of examples."""

    reference_stage: str
    """Name of the pass without gradients in the step's seconds: `teacher` or `base`."""

    def reference_forward(self, policy: Policy, examples: Sequence[E_contra], batch: Batch) -> Tensor | None:
        """Run the pass without gradients on a micro-batch. `batch` holds its student views."""
        ...

    def loss(
        self,
        hidden: Float[Tensor, "tokens hidden"],
        reference: Tensor | None,
        head: Float[Tensor, "vocab hidden"],
        examples: Sequence[E_contra],
        batch: Batch,
        weights: Float[Tensor, " tokens"],
    ) -> tuple[Float[Tensor, ""], Mapping[str, Float[Tensor, " tokens"]]]:
        """Compute the micro-batch's part of the step's loss, and metrics of each token by name."""
        ...

    def reference_tokens(self, examples: Sequence[E_contra]) -> dict[str, int]:
        """Count the tokens of the views that `reference_forward` reads in an update, those that share a row in full.

        Returns:
            Tokens that `teacher` and `base` read; without those that read nothing.
        """
        ...


@runtime_checkable
class Algorithm(Loss[E], Protocol[E]):
    """Training examples and loss of one condition."""

    needs_critique: bool
    one_by_one: bool
    """True where an example follows from a rollout and its own critique alone."""
    num_iterations: int
    """Optimizer updates on each step's examples."""

    def check_problems(self, problems: Sequence[Problem]) -> None:
        """Raise a StepalignError where the problems lack what the algorithm needs. By default all are accepted."""

    def rollout_source(self, step: int) -> RolloutSource:
        """Return who writes a step's completions, by the step's number alone; by default the policy."""
        return "policy"

    def teacher_prompts(self, problems: Sequence[Problem]) -> Mapping[str, TokenIds]:
        """Return the prompt ids by problem id that the teacher completes, where it is a step's source.

        Problems whose prompt leaves no room for a completion are left out.
        """
        return {}

    def second_turn(
        self, rollouts: Sequence[Rollout], problems: Mapping[str, Problem], critiques: Mapping[str, CriticResult]
    ) -> Mapping[str, TokenIds]:
        """Return prompt ids from which the policy samples once more, by the first rollout's id; by default none.

        The rollouts of the second turn come to `build_examples` after those of the first.
        """
        return {}

    def build_examples(
        self, rollouts: Sequence[Rollout], problems: Mapping[str, Problem], critiques: Mapping[str, CriticResult]
    ) -> StepExamples[E]:
        """Build an example for every rollout that carries a gradient.

        Args:
            rollouts: graded, of one step; those of a second turn last.
            problems: by id.
            critiques: by rollout id; empty where no critique is needed.
        """
        ...

    def begin(self, policy: Policy) -> None:
        """Take what is needed of a policy that has not been trained yet; by default nothing."""

    def after_update(self, policy: Policy) -> None:
        """Update the algorithm's own state after each optimizer update; by default nothing."""

    def after_step(self, policy: Policy) -> None:
        """Update the algorithm's own state after all updates on a step's rollouts."""
        ...

    def teacher_of(self, policy: Policy) -> Teacher:
        """Return the model that the policy is compared with; by default the base."""
        return BaseTeacher(policy)

    def teacher_parameters(self, policy: Policy) -> int:
        """Return the parameters that each token of the teacher's views is multiplied with; by default the base's."""
        return policy.parameters_read

    def metrics(self) -> dict[str, float]:
        """Return measures of the algorithm's own state for the step's line; by default none."""
        return {}

    def state_dict(self, policy: Policy) -> dict[str, Tensor]:
        """Return the tensors that a checkpoint must hold to resume the algorithm; by default none."""
        return {}

    def load_state_dict(self, policy: Policy, state: Mapping[str, Tensor]) -> None:
        """Restore the tensors of `state_dict`."""
