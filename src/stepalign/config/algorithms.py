"""The `[algorithm]` tables: how a step's rollouts become a loss. Without `kind`, distillation."""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    SerializeAsAny,
    model_validator,
)

from stepalign.config.registry import FAMILIES, RUNTIME, Table, register


class AlgorithmConfig(Table):
    """Base of every algorithm's table."""

    uses_teacher: ClassVar[bool] = True
    """Contexts, critic and teacher of the recipe are used."""
    kind: str
    loss_agg_mode: Literal["seq-mean-token-mean", "token-mean"] = "seq-mean-token-mean"
    """The mean over each sequence's tokens and then over sequences (in TRL `grpo`), or over all tokens (`dapo`)."""
    chunk_tokens: Annotated[PositiveInt | None, RUNTIME] = None
    """Tokens whose logits exist at once; None chooses by vocabulary and device."""

    @property
    def num_updates(self) -> int:
        """Optimizer updates of each step."""
        return 1

    @property
    def reference(self) -> Literal["teacher", "base"] | None:
        """The frozen model whose forward pass the loss needs."""
        return "teacher" if self.uses_teacher else None

    def check(self, *, num_generations: int, temperature: float, dropout: float) -> None:
        """Raise a ValueError where the rollouts that the recipe samples cannot be learned from."""


AnyAlgorithmConfig = Annotated[SerializeAsAny[AlgorithmConfig], FAMILIES["algorithm"]]


@register("algorithm", "distillation", implementation="stepalign.algorithms.self_distillation:SelfDistillation")
class DistillationConfig(AlgorithmConfig):
    """The divergence between teacher and student (GKD's generalized JSD)."""

    kind: Literal["distillation"] = "distillation"
    beta: Annotated[float, Field(ge=0, le=1)] = 0.0
    """0 is forward KL(teacher‖student), 1 is reverse KL(student‖teacher)."""
    student_temperature: PositiveFloat = 1.0
    """The temperature of the student's distribution."""
    teacher_temperature: PositiveFloat = 1.0
    """The temperature of the teacher's distribution."""
    clip_mode: Literal["none", "token", "entry"] = "none"
    """The unit whose divergence is clipped: a token or a vocabulary entry."""
    clip_value: PositiveFloat | None = None
    """The largest divergence (nats) of a token or a vocabulary entry."""
    num_loss_tokens_to_skip: NonNegativeInt = 0
    """The number of first tokens of each completion that have no loss (the thinking boundary)."""
    loss_span: Literal["all", "until_first_error"] = "all"
    """The tokens with a loss; `until_first_error` ends at the first wrong token of the critique."""

    @model_validator(mode="after")
    def _clip_needs_a_bound(self) -> Self:
        if (self.clip_mode == "none") != (self.clip_value is None):
            raise ValueError(f"clip_mode = {self.clip_mode!r} with clip_value = {self.clip_value}: set both or neither")
        return self


class PolicyGradientConfig(AlgorithmConfig):
    """Base of the tables with a clipped policy gradient on group advantages."""

    epsilon: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """The lower clip of the probability ratio is 1 minus this."""
    epsilon_high: PositiveFloat | None = None
    """The upper clip of the probability ratio is 1 plus this; None is `epsilon`."""
    num_iterations: PositiveInt = 1
    """Optimizer updates on each step's rollouts (inner iterations; paper: 2)."""
    kl_coef: NonNegativeFloat = 0.0
    """The weight of KL(policy‖base), estimated on the sampled tokens (paper: 0)."""

    @property
    def num_updates(self) -> int:
        """Optimizer updates of each step."""
        return self.num_iterations

    @property
    def reference(self) -> Literal["teacher", "base"] | None:
        """The frozen model whose forward pass the loss needs."""
        return "base" if self.kl_coef else None

    def check(self, *, num_generations: int, temperature: float, dropout: float) -> None:
        """Raise a ValueError where a problem's rollouts cannot differ in their reward."""
        if num_generations == 1:
            raise ValueError(
                f"algorithm.kind = {self.kind!r} compares a problem's rollouts: training.num_generations = 1, set 2 or "
                "more"
            )
        if temperature == 0:
            raise ValueError(
                f"algorithm.kind = {self.kind!r} needs rollouts that differ: sampling.temperature = 0 is greedy"
            )
        if dropout and self.num_iterations > 1:
            raise ValueError(
                f"algorithm.num_iterations = {self.num_iterations} with lora.lora_dropout = {dropout}: the old "
                "log-probabilities would come from another dropout mask; set lora_dropout = 0"
            )


@register("algorithm", "grpo", implementation="stepalign.algorithms.grpo:GRPO")
class GRPOConfig(PolicyGradientConfig):
    """Group-relative policy optimization with the grade as reward (paper, Eq. 2); no teacher, no critic."""

    uses_teacher: ClassVar[bool] = False
    kind: Literal["grpo"] = "grpo"


@register("algorithm", "credit_grpo", implementation="stepalign.algorithms.credit_grpo:CreditGRPO")
class CreditGRPOConfig(PolicyGradientConfig):
    """GRPO whose group advantage is spread over a rollout's tokens by credit (RLSD, RLCSD; step advantages)."""

    kind: Literal["credit_grpo"] = "credit_grpo"
    credit: Literal["context", "contrast", "verdicts"] = "context"
    """`context`: teacher minus student; `contrast`: right context minus wrong ones; `verdicts`: the critique's ±1."""
    num_wrong_contexts: PositiveInt = 4
    """`contrast`: the most wrong contexts of a rollout, one teacher pass each."""
    gather: Literal["token", "step_mean", "step_min"] = "token"
    """The credit of a token: its own, or its step's mean or minimum."""
    modulation: Literal["multiply", "add"] = "multiply"
    """`multiply`: the advantage times a clipped factor (RLSD); `add`: plus a bounded term of no larger sign (RLCSD)."""
    credit_weight: NonNegativeFloat = 0.5
    """The weight of credit; 0 is plain GRPO."""
    credit_scale: PositiveFloat = 1.0
    """The factor of credit (nats) inside the exponential, or the hyperbolic tangent."""
    min_credit: NonNegativeFloat = 0.0
    """Credit of at most this size (nats) changes nothing."""
    min_advantage: NonNegativeFloat = 0.02
    """`add`: the smallest size to which credit can reduce an advantage."""
    credit_clip: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """`multiply`: the largest change of the factor."""
    conserve: bool = False
    """The advantages of a rollout's tokens are rescaled to the rollout's own as their mean."""

    @property
    def reference(self) -> Literal["teacher", "base"] | None:
        """The frozen model whose forward pass the loss needs."""
        return super().reference if self.credit == "verdicts" else "teacher"

    @model_validator(mode="after")
    def _sign_is_kept(self) -> Self:
        if self.modulation == "multiply" and self.credit_weight > 1:
            raise ValueError(f"credit_weight = {self.credit_weight} with modulation = 'multiply': at most 1 is allowed")
        return self
