"""Teachers: the model whose predictions, given a context with feedback, the student learns from.

A teacher is never trained by gradients. It may follow the student, and then has state that a checkpoint must hold. Its
prediction is always softmax(hidden · headᵀ), so that every loss reads it a chunk of tokens at a time.

    base           the initial policy: the student's weights with the adapter disabled (paper, Section 3.2)
    live           the student itself as it is now
    scaled         the student with its adapter's effect times a number
    trust-region   a distribution between base and student (SDPO, arXiv 2601.20802)
    ema            a moving average of the student's weights (SDPO, SDFT, OPSD's option)
"""

from collections.abc import Mapping
from typing import ClassVar, Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from stepalign import config
from stepalign.collate import Batch
from stepalign.config import registry
from stepalign.policy import Policy


@runtime_checkable
class Teacher(Protocol):
    """A model that predicts the same tokens as the student, from another prompt."""

    moves: ClassVar[bool]
    """True where its predictions change while the student is trained."""

    @property
    def head(self) -> Float[Tensor, "vocab hidden"]:
        """The output projection of the hidden states."""
        ...

    @property
    def shares_prefixes(self) -> bool:
        """True where views that begin alike may share a row of its batches (`Policy.shares_prefixes`)."""
        ...

    @property
    def parameters_read(self) -> int:
        """Parameters that each token of its views is multiplied with."""
        ...

    def forward(self, batch: Batch) -> Float[Tensor, "tokens hidden"]:
        """Return the hidden states that predict the batch's loss tokens, without gradients."""
        ...

    def after_update(self, policy: Policy) -> None:
        """Follow the policy that an optimizer update has just changed."""
        ...

    def after_step(self, policy: Policy) -> None:
        """Follow the policy after all updates on a step's rollouts."""
        ...

    def metrics(self) -> Mapping[str, float]:
        """Return measures of the teacher itself for the step's line, by name."""
        ...

    def state_dict(self) -> dict[str, Tensor]:
        """Return the tensors a checkpoint must hold to resume with the same teacher."""
        ...

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore the tensors of `state_dict`.

        Raises:
            StepalignError: they are another kind of teacher's.
        """
        ...


def build_teacher(settings: config.TeacherConfig, policy: Policy) -> Teacher:
    """Build the teacher of a recipe's `[teacher]`, from a policy that has not been trained yet."""
    teacher: Teacher = registry.build(settings, policy=policy)
    return teacher
