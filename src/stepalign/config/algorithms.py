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

from stepalign.config.table import Table

Normalize = Literal["seq-mean-token-mean", "token-mean"]


class DistillationConfig(Table):
    """The divergence between teacher and student (GKD's generalized JSD)."""

    kind: Literal["distillation"] = "distillation"
    beta: Annotated[float, Field(ge=0, le=1)] = 0.0
    """0 is forward KL(teacher‖student), 1 is reverse KL(student‖teacher)."""
    student_temperature: PositiveFloat = 1.0
    teacher_temperature: PositiveFloat = 1.0
    clip_mode: Literal["none", "token", "entry"] = "none"
    clip_value: PositiveFloat | None = None
    """The largest divergence (nats) that a token, or a vocabulary entry, may contribute."""
    loss_agg_mode: Normalize = "seq-mean-token-mean"
    """The mean over each sequence's tokens and then over sequences, or over all tokens at once."""
    num_loss_tokens_to_skip: NonNegativeInt = 0
    """Leave the first tokens of each completion out of the loss (the thinking boundary)."""
    loss_span: Literal["all", "until_first_error"] = "all"
    """`until_first_error`: tokens after the first wrong one, which the critique knows, carry no loss."""
    chunk_tokens: PositiveInt | None = None
    """Tokens whose logits exist at once; None chooses by vocabulary and device."""

    @model_validator(mode="after")
    def _clip_needs_a_bound(self) -> Self:
        if (self.clip_mode == "none") != (self.clip_value is None):
            raise ValueError(f"clip_mode = {self.clip_mode!r} with clip_value = {self.clip_value}: set both or neither")
        return self


class GRPOConfig(Table):
    """Group-relative policy optimization with the grade as reward (paper, Eq. 2); no teacher, no critic."""

    kind: Literal["grpo"]
    epsilon: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """How far below 1 the probability ratio may fall and still be rewarded for it."""
    epsilon_high: PositiveFloat | None = None
    """How far above 1; None is `clip`."""
    num_iterations: PositiveInt = 1
    """Optimizer updates on each step's rollouts (inner iterations; paper: 2)."""
    kl_coef: NonNegativeFloat = 0.0
    """The weight of KL(policy‖base), estimated on the sampled tokens (paper: 0)."""
    loss_agg_mode: Normalize = "seq-mean-token-mean"
    """The mean over each sequence's tokens and then over sequences (loss type `grpo`), or over all tokens (`dapo`)."""
    chunk_tokens: PositiveInt | None = None
    """Tokens whose logits exist at once; None chooses by vocabulary and device."""


def _kind(value: Any) -> str:
    kind = value.get("kind", DEFAULT_KIND) if isinstance(value, dict) else getattr(value, "kind", None)
    return str(kind)


DEFAULT_KIND = "distillation"
"""What an `[objective]` without `kind` is."""

AlgorithmConfig = Annotated[
    Annotated[DistillationConfig, Tag("distillation")] | Annotated[GRPOConfig, Tag("grpo")],
    Discriminator(
        _kind,
        custom_error_type="algorithm",
        custom_error_message="kind: 'distillation' or 'grpo' is allowed",
    ),
]
