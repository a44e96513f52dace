"""Teachers without a state: each is computed from the policy's own weights."""

from collections.abc import Mapping
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from stepalign import config
from stepalign.collate import Batch
from stepalign.errors import StepalignError
from stepalign.losses.lm_head import logit_dtype
from stepalign.policy import Policy


class PolicyTeacher:
    """Base of the teachers without a state."""

    moves: ClassVar[bool] = True

    def __init__(self, policy: Policy) -> None:
        self._policy = policy

    @property
    def head(self) -> Float[Tensor, "vocab hidden"]:
        """The policy's output projection."""
        return self._policy.head

    @property
    def shares_prefixes(self) -> bool:
        """The policy's."""
        return self._policy.shares_prefixes

    @property
    def parameters_read(self) -> int:
        """The policy's."""
        return self._policy.parameters_read

    def after_update(self, policy: Policy) -> None:
        """Do nothing: the policy's weights are read in each forward pass."""

    def after_step(self, policy: Policy) -> None:
        """Do nothing: the policy's weights are read in each forward pass."""

    def metrics(self) -> Mapping[str, float]:
        """Return no measures."""
        return {}

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


class BaseTeacher(PolicyTeacher):
    """The initial policy: the same weights with the adapter disabled, or a copy where all are trained."""

    moves = False

    def __init__(self, policy: Policy) -> None:
        super().__init__(policy)
        policy.keep_base()

    @property
    def head(self) -> Float[Tensor, "vocab hidden"]:
        """The base's output projection."""
        return self._policy.base_head

    @classmethod
    def from_config(cls, _settings: config.TeacherConfig, *, policy: Policy) -> "BaseTeacher":
        """Build the teacher of a recipe."""
        return cls(policy)

    def forward(self, batch: Batch) -> Float[Tensor, "tokens hidden"]:
        """Return the base's hidden states."""
        return self._policy.forward_base(batch)


class LiveTeacher(PolicyTeacher):
    """The student as it is now, without adapter dropout."""

    @classmethod
    def from_config(cls, _settings: config.TeacherConfig, *, policy: Policy) -> "LiveTeacher":
        """Build the teacher of a recipe."""
        return cls(policy)

    def forward(self, batch: Batch) -> Float[Tensor, "tokens hidden"]:
        """Return the student's hidden states."""
        return self._policy.forward_with({}, batch)


class ScaledTeacher(PolicyTeacher):
    """The student with its adapter's effect times a number."""

    def __init__(self, settings: config.ScaledTeacherConfig, *, policy: Policy) -> None:
        super().__init__(policy)
        self.scale = settings.scale

    def forward(self, batch: Batch) -> Float[Tensor, "tokens hidden"]:
        """Return the hidden states under the scaled adapter."""
        scaled = {up: self.scale * self._policy.get_parameter(up).detach() for up, _ in self._policy.lora_pairs()}
        return self._policy.forward_with(scaled, batch)


class TrustRegionTeacher(PolicyTeacher):
    """The distribution q ∝ exp((1 − α) log q_base + α log q_student).

    Logits are linear in the hidden states. So the mean of the logits, which q is the softmax of, is the mean of the
    hidden states under one frozen head, and no second set of logits is needed. Half precision would round the mean, and
    a small α away. There, and where both models have heads of their own, two heads are laid side by side, and hidden
    states too: their product is the sum of both.
    """

    _both_heads: Float[Tensor, "vocab both"] | None = None
    """Two heads side by side, until an update changes the policy's."""

    def __init__(self, settings: config.TrustRegionTeacherConfig, *, policy: Policy) -> None:
        super().__init__(policy)
        policy.keep_base()
        self.alpha = settings.alpha
        head = policy.head
        self._has_one_head = policy.adapter is not None and head.dtype == logit_dtype(head)

    @property
    def head(self) -> Float[Tensor, "vocab hidden"]:
        """The one output projection, or two side by side."""
        if self._has_one_head:
            return self._policy.head
        if self._both_heads is None:
            self._both_heads = torch.cat((self._policy.base_head, self._policy.head.detach()), 1)
        return self._both_heads

    @property
    def parameters_read(self) -> int:
        """The policy's, for both of its models."""
        return 2 * self._policy.parameters_read

    def after_update(self, policy: Policy) -> None:
        """Forget the heads, because the policy's has changed."""
        self._both_heads = None

    def forward(self, batch: Batch) -> Float[Tensor, "tokens hidden"]:
        """Return the mean of both models' hidden states, or its two terms side by side."""
        base, student = self._policy.forward_base(batch), self._policy.forward_with({}, batch)
        if self._has_one_head:
            dtype = self._policy.head.dtype
            return torch.lerp(base.to(dtype), student.to(dtype), self.alpha)
        if self._policy.adapter:  # the same head twice
            return torch.cat((base, self.alpha * (student - base)), 1)
        return torch.cat(((1 - self.alpha) * base, self.alpha * student), 1)
