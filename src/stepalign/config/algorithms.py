"""The `[objective]` tables: what the loss is. `kind` tells which; without it, distillation."""

from typing import Annotated, Any, Literal, Self

from pydantic import (
    Discriminator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Tag,
    model_validator,
)

from stepalign.config.table import Section

Normalize = Literal["sequence", "token"]


class Distillation(Section):
    """The divergence between teacher and student (GKD's generalized JSD)."""

    kind: Literal["distillation"] = "distillation"
    beta: Annotated[float, Field(ge=0, le=1)] = 0.0
    """0 is forward KL(teacher‖student), 1 is reverse KL(student‖teacher)."""
    student_temperature: PositiveFloat = 1.0
    teacher_temperature: PositiveFloat = 1.0
    clip: Literal["none", "token", "entry"] = "none"
    clip_at: PositiveFloat | None = None
    """The largest divergence (nats) that a token, or a vocabulary entry, may contribute."""
    normalize: Normalize = "sequence"
    """The mean over each sequence's tokens and then over sequences, or over all tokens at once."""
    skip_first: NonNegativeInt = 0
    """Leave the first tokens of each completion out of the loss (the thinking boundary)."""
    horizon: Literal["all", "first_error"] = "all"
    """`first_error`: tokens after the first wrong one, which the critique knows, carry no loss."""
    chunk_tokens: PositiveInt | None = None
    """Tokens whose logits exist at once; None chooses by vocabulary and device."""

    @model_validator(mode="after")
    def _clip_needs_a_bound(self) -> Self:
        if (self.clip == "none") != (self.clip_at is None):
            raise ValueError(f"clip = {self.clip!r} with clip_at = {self.clip_at}: set both or neither")
        return self


class Grpo(Section):
    """Group-relative policy optimization with the grade as reward (paper, Eq. 2); no teacher, no critic."""

    kind: Literal["grpo"]
    clip: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """How far below 1 the probability ratio may fall and still be rewarded for it."""
    clip_high: PositiveFloat | None = None
    """How far above 1; None is `clip`."""
    updates: PositiveInt = 1
    """Optimizer updates on each step's rollouts (inner iterations; paper: 2)."""
    kl: NonNegativeFloat = 0.0
    """The weight of KL(policy‖base), estimated on the sampled tokens (paper: 0)."""
    normalize: Normalize = "sequence"
    """The mean over each sequence's tokens and then over sequences (loss type `grpo`), or over all tokens (`dapo`)."""
    chunk_tokens: PositiveInt | None = None
    """Tokens whose logits exist at once; None chooses by vocabulary and device."""


def _kind(value: Any) -> str:
    kind = value.get("kind", DEFAULT_KIND) if isinstance(value, dict) else getattr(value, "kind", None)
    return str(kind)


DEFAULT_KIND = "distillation"
"""What an `[objective]` without `kind` is."""

Objective = Annotated[
    Annotated[Distillation, Tag("distillation")] | Annotated[Grpo, Tag("grpo")],
    Discriminator(
        _kind,
        custom_error_type="objective",
        custom_error_message="kind: 'distillation' or 'grpo' is allowed",
    ),
]
