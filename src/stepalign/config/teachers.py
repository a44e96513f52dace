"""The `[teacher]` tables: the model that the student learns from, and its prompt. Without `kind`, the base."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field, NonNegativeFloat, PositiveInt, SerializeAsAny

from stepalign.config.model import ModelConfig
from stepalign.config.registry import FAMILIES, RUNTIME, Probability, Table, register


class TeacherConfig(Table):
    """Base of every teacher's table: its prompt."""

    passes: ClassVar[int] = 1
    """Forward passes that its prediction takes."""
    kind: str = "base"
    enable_thinking: bool = False
    """The chat template's thinking switch for the teacher's prompt (paper: on)."""
    close_think: bool = False
    """End a thinking-on prompt with an empty thought, so that the teacher does not expect `<think>` or its like."""
    max_length: PositiveInt = 20_000
    """The most tokens of teacher prompt and completion; a longer context is cut, never the problem or the header."""

    def model_of(self, student: ModelConfig) -> ModelConfig:
        """Return the model that reads the teacher's prompts: the student's, where the kind has none of its own."""
        return student

    def memory_bytes(self, *, weights: int, adapter: int, rank: int) -> float:
        """Return the bytes that the teacher holds beside the policy.

        Args:
            weights: parameters of the policy's base.
            adapter: parameters of its adapter; 0 where all weights are trained.
            rank: the adapter's.
        """
        return 0.0


AnyTeacherConfig = Annotated[SerializeAsAny[TeacherConfig], FAMILIES["teacher"]]


@register("teacher", "base", implementation="stepalign.teachers.stateless:BaseTeacher")
class BaseTeacherConfig(TeacherConfig):
    """The initial policy: the same weights with the adapter disabled (paper)."""

    kind: Literal["base"] = "base"

    def memory_bytes(self, *, weights: int, adapter: int, rank: int) -> float:
        """Return the bytes of a copy, where no adapter can be disabled."""
        return 0.0 if adapter else 4.0 * weights


@register("teacher", "live", implementation="stepalign.teachers.stateless:LiveTeacher")
class LiveTeacherConfig(TeacherConfig):
    """The policy as it is."""

    kind: Literal["live"] = "live"


@register("teacher", "scaled", implementation="stepalign.teachers.stateless:ScaledTeacher")
class ScaledTeacherConfig(TeacherConfig):
    """The policy with its adapter's effect times a number."""

    kind: Literal["scaled"] = "scaled"
    scale: NonNegativeFloat = 0.5
    """The number: 0 is the base, 1 the policy as it is."""


@register("teacher", "trust-region", implementation="stepalign.teachers.stateless:TrustRegionTeacher")
class TrustRegionTeacherConfig(TeacherConfig):
    """A distribution between base and policy: log q = (1 − α) log q_base + α log q_policy + constant (SDPO)."""

    passes: ClassVar[int] = 2
    kind: Literal["trust-region"] = "trust-region"
    alpha: Annotated[float, Field(ge=0, le=1)] = 0.05
    """α: 0 is the base, 1 the policy as it is."""

    def memory_bytes(self, *, weights: int, adapter: int, rank: int) -> float:
        """Return the bytes of a copy of the base, where no adapter can be disabled."""
        return 0.0 if adapter else 4.0 * weights


@register("teacher", "ema", implementation="stepalign.teachers.ema:EMATeacher")
class EMATeacherConfig(TeacherConfig):
    """An exponential moving average of the policy's weights, which begins at the base."""

    kind: Literal["ema"] = "ema"
    update_rate: Probability = 0.05
    """The share of the policy in each new average (TRL's `teacher_update_rate`; one minus a decay)."""
    update_every: Literal["optimizer_step", "rollout_batch"] = "optimizer_step"
    """The unit of an update: each optimizer step, or once for all those on a step's rollouts (SDPO)."""
    sync_steps: PositiveInt = 1
    """The number of such units between updates (TRL's `teacher_sync_steps`)."""
    rank: PositiveInt | None = None
    """The rank of an adapter's average; None is twice `lora.r`."""

    def memory_bytes(self, *, weights: int, adapter: int, rank: int) -> float:
        """Return the bytes of the average, in float32."""
        return 4.0 * adapter * (self.rank or 2 * rank) / rank if adapter else 4.0 * weights


@register("teacher", "model", implementation="stepalign.teachers.model:ModelTeacher")
class ModelTeacherConfig(TeacherConfig):
    """Another model in the same process, with the student's vocabulary."""

    kind: Literal["model"] = "model"
    model: ModelConfig
    """The teacher's weights, with the keys of `[model]`."""
    device_map: Annotated[str | None, RUNTIME] = None
    """Spread the weights over devices as transformers does (`auto`); None is the student's own device."""

    def model_of(self, student: ModelConfig) -> ModelConfig:
        """Return the teacher's own model."""
        return self.model
