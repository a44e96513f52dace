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

from stepalign.config.registry import FAMILIES, RUNTIME, TEMPLATE, Share, Table, register


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

    @property
    def teacher_readings(self) -> int:
        """Readings of each rollout by a step's teacher: one in each update."""
        return self.num_updates

    def check(self, *, num_generations: int, temperature: float, dropout: float, remote_sampler: bool) -> None:
        """Raise a ValueError where the rollouts that the recipe samples cannot be learned from.

        Args:
            num_generations: rollouts of each problem.
            temperature: the temperature of sampling.
            dropout: the adapter's.
            remote_sampler: True for a sampler with weights of its own.
        """


AnyAlgorithmConfig = Annotated[SerializeAsAny[AlgorithmConfig], FAMILIES["algorithm"]]


class PolicyRatioConfig(AlgorithmConfig):
    """Base of the tables whose loss may be weighted by the ratio of the policy and the policy that sampled."""

    num_iterations: PositiveInt = 1
    """Optimizer updates on each step's rollouts (inner iterations; paper's GRPO: 2)."""
    importance_sampling_level: Literal["off", "token", "sequence"] = "off"
    """The unit whose loss is weighted by the probability ratio of the policy and the policy that sampled."""
    importance_sampling_cap: PositiveFloat = 2.0
    """The largest ratio; larger ones are truncated."""

    @property
    def num_updates(self) -> int:
        """Optimizer updates of each step."""
        return self.num_iterations

    @property
    def ratio_temperature(self) -> float | None:
        """The temperature of the ratio's probabilities; None is that of sampling."""
        return None

    def check(self, *, num_generations: int, temperature: float, dropout: float, remote_sampler: bool) -> None:
        """Raise a ValueError where the ratio would not be that of the policy that sampled."""
        level = self.importance_sampling_level
        if level == "off":
            return
        key = f"algorithm.importance_sampling_level = {level!r}"
        if dropout:
            raise ValueError(
                f"{key} with lora.lora_dropout = {dropout}: the student's pass has a dropout mask that the sampler "
                "has not; set lora_dropout = 0"
            )
        if remote_sampler and temperature != 1:
            raise ValueError(
                f"{key} with sampling.temperature = {temperature}: the sampler's log-probabilities are those at "
                "temperature 1; set temperature = 1"
            )
        if self.ratio_temperature not in (None, temperature):
            raise ValueError(
                f"{key} with sampling.temperature = {temperature} and algorithm.student_temperature = "
                f"{self.ratio_temperature}: the ratio would not be that of the policy that sampled; set both alike"
            )


@register("algorithm", "distillation", implementation="stepalign.algorithms.self_distillation:SelfDistillation")
class DistillationConfig(PolicyRatioConfig):
    """The divergence between teacher and student (GKD's generalized JSD)."""

    kind: Literal["distillation"] = "distillation"
    beta: Annotated[float, Field(ge=0, le=1)] = 0.0
    """0 is forward KL(teacher‖student), 1 is reverse KL(student‖teacher)."""
    support: Literal["full", "topk-student", "topk-teacher", "sampled"] = "full"
    """The entries compared: all, one model's likeliest and the rest as one, or a policy gradient on the sampled one."""
    top_k: PositiveInt | None = None
    """The number of likeliest entries of a top-k support."""
    add_tail: bool = True
    """A top-k support has all other entries as one bucket; without them it is no divergence, so false is refused."""
    discount: Annotated[float, Field(ge=0, le=1)] = 0.0
    """The weight of the later tokens' advantages in a token's, to the power of their distance (support `sampled`)."""
    student_temperature: PositiveFloat = 1.0
    """The temperature of the student's distribution."""
    teacher_temperature: PositiveFloat = 1.0
    """The temperature of the teacher's distribution."""
    clip_mode: Literal["none", "token", "entry"] = "none"
    """The unit whose divergence is clipped: a token or an entry of the support."""
    clip_value: PositiveFloat | None = None
    """The largest divergence (nats) of a token or an entry; with support `sampled` the largest absolute advantage."""
    num_loss_tokens_to_skip: NonNegativeInt = 0
    """The number of first tokens of each completion that have no loss (the thinking boundary)."""
    lmbda: Share = 1.0
    """The probability that a step trains on the policy's rollouts; else it trains on the reference solutions (GKD)."""
    loss_span: Literal["all", "until_first_error"] = "all"
    """The tokens with a loss; `until_first_error` ends at the first wrong token of the critique."""

    @model_validator(mode="after")
    def _clip_needs_a_bound(self) -> Self:
        if (self.clip_mode == "none") != (self.clip_value is None):
            raise ValueError(f"clip_mode = {self.clip_mode!r} with clip_value = {self.clip_value}: set both or neither")
        return self

    @model_validator(mode="after")
    def _support_fits(self) -> Self:
        support = f"support = {self.support!r}"
        if self.support.startswith("topk") != (self.top_k is not None):
            needs = "needs top_k" if self.top_k is None else f"has no use for top_k = {self.top_k}"
            raise ValueError(f"{support} {needs}; top_k belongs to 'topk-student' and 'topk-teacher'")
        if not self.add_tail:
            raise ValueError(
                "add_tail = false: without the tail top-k is no divergence of the two models. Truncated it can be "
                "negative, and its gradient can lower all k entries at once; renormalized it is 0 for models that "
                "differ in the mass of the k entries. Leave the key out"
            )
        if self.support != "sampled":
            if self.discount:
                raise ValueError(f"{support} has no use for discount = {self.discount}; it belongs to 'sampled'")
        elif self.beta != 1:
            raise ValueError(
                f"{support} with beta = {self.beta}: the sampled token estimates reverse KL alone; set beta = 1"
            )
        elif self.lmbda < 1:
            raise ValueError(
                f"{support} with lmbda = {self.lmbda}: a reference solution was not sampled from the student, so its "
                "tokens estimate no divergence; set lmbda = 1 or another support"
            )
        elif self.clip_mode == "entry":
            raise ValueError(f"{support} with clip_mode = 'entry': its advantage is a token's; set clip_mode = 'token'")
        return self

    @property
    def ratio_temperature(self) -> float | None:
        """The student's temperature."""
        return self.student_temperature


class PolicyGradientConfig(PolicyRatioConfig):
    """Base of the tables with a clipped policy gradient on group advantages."""

    epsilon: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """The lower clip of the probability ratio is 1 minus this."""
    epsilon_high: PositiveFloat | None = None
    """The upper clip of the probability ratio is 1 plus this; None is `epsilon`."""
    kl_coef: NonNegativeFloat = 0.0
    """The weight of KL(policy‖base), estimated on the sampled tokens (paper: 0)."""

    @property
    def reference(self) -> Literal["teacher", "base"] | None:
        """The frozen model whose forward pass the loss needs."""
        return "base" if self.kl_coef else None

    def check(self, *, num_generations: int, temperature: float, dropout: float, remote_sampler: bool) -> None:
        """Raise a ValueError where a problem's rollouts cannot differ in their reward, or have no ratio."""
        super().check(
            num_generations=num_generations,
            temperature=temperature,
            dropout=dropout,
            remote_sampler=remote_sampler,
        )
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


@register("algorithm", "credit-grpo", implementation="stepalign.algorithms.credit_grpo:CreditGRPO")
class CreditGRPOConfig(PolicyGradientConfig):
    """GRPO whose group advantage is spread over a rollout's tokens by credit (RLSD, RLCSD; step advantages)."""

    kind: Literal["credit-grpo"] = "credit-grpo"
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

    @property
    def teacher_readings(self) -> int:
        """Readings of each rollout by a step's teacher: one under each context, for all updates."""
        return 1 + self.num_wrong_contexts if self.credit == "contrast" else 1

    @model_validator(mode="after")
    def _sign_is_kept(self) -> Self:
        if self.modulation == "multiply" and self.credit_weight > 1:
            raise ValueError(f"credit_weight = {self.credit_weight} with modulation = 'multiply': at most 1 is allowed")
        return self


@register("algorithm", "grpo-distillation", implementation="stepalign.algorithms.grpo_distillation:GRPODistillation")
class GRPODistillationConfig(PolicyGradientConfig, DistillationConfig):
    """Distillation and GRPO's policy gradient in one loss."""

    kind: Literal["grpo-distillation"] = "grpo-distillation"  # type: ignore[assignment]
    distillation_weight: NonNegativeFloat = 1.0
    """The weight of the mean divergence."""
    reward_weight: NonNegativeFloat = 1.0
    """The weight of the mean policy gradient loss."""

    @property
    def reference(self) -> Literal["teacher", "base"] | None:
        """The teacher."""
        return "teacher"

    @model_validator(mode="after")
    def _one_reference(self) -> Self:
        if self.kl_coef:
            raise ValueError(f"kl_coef = {self.kl_coef}: the pass without gradients is the teacher's; leave it at 0")
        if self.lmbda < 1:
            raise ValueError(f"lmbda = {self.lmbda}: a reference solution has no group to compare its reward with")
        return self


@register("algorithm", "rltf-sd", implementation="stepalign.algorithms.rltf_sd:RLTFSD")
class RLTFSDConfig(AlgorithmConfig):
    """A policy gradient on the first turn's prompt with second turns, sampled after feedback (RLTF-SD)."""

    kind: Literal["rltf-sd"] = "rltf-sd"

    @property
    def reference(self) -> Literal["teacher", "base"] | None:
        """None: second turns are sampled, and there is no other model."""
        return None


@register("algorithm", "rltf-fm", implementation="stepalign.algorithms.rltf_fm:RLTFFM")
class RLTFFMConfig(PolicyGradientConfig):
    """GRPO, and beside it the likelihood of the critique given problem and attempt (RLTF-FM)."""

    kind: Literal["rltf-fm"] = "rltf-fm"
    feedback_weight: NonNegativeFloat = 0.1
    """The weight of the critiques' mean negative log-likelihood."""
    feedback_template: Annotated[str, TEMPLATE] = "feedback-request"
    """The name or file of the template that asks for a critique; it may use `problem` and `attempt`."""


@register("algorithm", "sft", implementation="stepalign.algorithms.sft:SFT")
class SFTConfig(AlgorithmConfig):
    """Cross-entropy on reference solutions, or on the policy's own right rollouts (STaR); no teacher, no critic."""

    uses_teacher: ClassVar[bool] = False
    kind: Literal["sft"] = "sft"
    sequences: Literal["references", "rollouts"] = "references"
    """Sequences to learn: reference solutions in the solver's format, or the policy's right rollouts."""
    rationalize: bool = False
    """A problem without a right rollout is tried again under `context.template`, and learned without it if right."""

    @model_validator(mode="after")
    def _rationalizes_rollouts(self) -> Self:
        if self.rationalize and self.sequences == "references":
            raise ValueError("rationalize = true with sequences = 'references': nothing is sampled; set 'rollouts'")
        return self


@register("algorithm", "seq-kd", implementation="stepalign.algorithms.seq_kd:SeqKD")
class SeqKDConfig(AlgorithmConfig):
    """Cross-entropy on what the teacher writes under the context; no critic."""

    uses_teacher: ClassVar[bool] = False
    kind: Literal["seq-kd"] = "seq-kd"
    only_correct: bool = False
    """Only the teacher's right completions are learned."""
