"""Teachers: the model whose predictions, given a context with feedback, the student learns from.

A teacher is never trained by gradients. It may follow the student after each optimizer step, and then has state that a
checkpoint must hold.

    base    the initial policy: the student's weights with the adapter disabled (paper, Section 3.2)
    live    the student itself as it is now
"""

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from stepalign.collate import Batch
from stepalign.config import registry
from stepalign.errors import StepalignError
from stepalign.policy import Policy


@runtime_checkable
class Teacher(Protocol):
    """A model that predicts the same tokens as the student, from another prompt."""

    @property
    def head(self) -> Float[Tensor, "vocab hidden"]:
        """The output projection of the hidden states."""
        ...

    def forward(self, batch: Batch) -> Float[Tensor, "tokens hidden"]:
        """Return the hidden states that predict the batch's loss tokens, without gradients."""
        ...

    def after_step(self, policy: Policy) -> None:
        """Follow the policy that an optimizer step has just changed."""
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


class _PolicyTeacher:
    """Base of the teachers without a state, computed from the policy's own weights."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy

    @property
    def head(self) -> Float[Tensor, "vocab hidden"]:
        """The policy's output projection."""
        return self._policy.head

    def after_step(self, policy: Policy) -> None:
        """Do nothing: the policy's weights are read in each forward pass."""

    def state_dict(self) -> dict[str, Tensor]:
        """Return no tensors: the policy's own checkpoint is enough."""
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Refuse any tensors.

        Raises:
            StepalignError: there are some.
        """
        if state:
            raise StepalignError(f"teacher.kind: the checkpoint holds another kind of teacher: {sorted(state)[:3]} …")


class BaseTeacher(_PolicyTeacher):
    """The initial policy: the same weights with the adapter disabled."""

    def forward(self, batch: Batch) -> Float[Tensor, "tokens hidden"]:
        """Return the base's hidden states."""
        return self._policy.forward_base(batch)


class LiveTeacher(_PolicyTeacher):
    """The student as it is now, without adapter dropout."""

    @torch.no_grad()
    def forward(self, batch: Batch) -> Float[Tensor, "tokens hidden"]:
        """Return the student's hidden states."""
        training = self._policy.training
        try:
            hidden: Tensor = self._policy.eval()(batch)
        finally:
            self._policy.train(training)
        return hidden


def build_teacher(kind: str, policy: Policy) -> Teacher:
    """Build the teacher of a recipe's `teacher.kind`."""
    teacher: Teacher = registry.implementation("teacher", kind)(policy)
    return teacher
