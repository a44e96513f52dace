"""The `[critic]` tables: the writer of critiques, the bounds of their checks, and the response to failed checks."""

from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self, get_args

from pydantic import (
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    SerializeAsAny,
    field_validator,
)

from stepalign.config.locators import AnyLocatorConfig, DerivationLocatorConfig, LocatorConfig, check_stage
from stepalign.config.python import PYTHON, PythonObject
from stepalign.config.registry import (
    FAMILIES,
    RUNTIME,
    TEMPLATE,
    Probability,
    Share,
    Table,
    register,
)
from stepalign.config.served import ServedModelConfig

Fallback = Literal["refsol", "drop"]
"""The response to a missing critique: the fallback context, or no example of the rollout."""

Unreadable = Literal["retry", "fail", "refsol", "drop"]
Failed = Literal["retry", "fail", "refsol", "drop", "ignore"]
Repairable = Literal["repair", "retry", "fail", "refsol", "drop", "ignore"]


class ChecksConfig(Table):
    """Bounds of a critique's checks; `docs/critics.md` defines each measure."""

    min_fidelity: Share = 0.98
    """`exact_copy` and `normalized_copy`: the smallest share of every correct step that is the solver's own text."""
    max_reference_overlap: Share = 0.5
    """`reference_overlap`: the largest share of the correction that is in the reference solution alone."""
    max_length: PositiveFloat = 4.0
    """`length`: the largest length of a critique, over that of the rollout or of the reference solution."""


class ValidationConfig(Table):
    """Responses to a reply that cannot be read and to a failed check. The first failed check decides.

    `repair`: the program puts the solver's own text in (splice); a check that still fails is a `retry`. `retry`: the
    model gets the fault and another attempt, up to `critic.max_attempts`; then `critic.on_failure`. `fail`:
    `critic.on_failure` at once. `refsol`, `drop`: that fallback at once. `ignore`: the critique is counted and used.
    """

    truncated: Unreadable = "fail"
    """The reply reached `max_tokens`."""
    unfinished: Unreadable = "retry"
    """The server gave another reason for the reply's end than `stop` (`content_filter`, `error`, `abort`, none)."""
    parse: Unreadable = "retry"
    """The reply is not in the schema."""
    layout: Repairable = "repair"
    """The text for the teacher is not composed of the critique's own parts."""
    case: Failed = "retry"
    """The case contradicts the rollout's grade."""
    verdicts: Failed = "retry"
    """A step has no verdict."""
    exact_copy: Repairable = "repair"
    """A correct step is not copied character for character."""
    normalized_copy: Repairable = "repair"
    """A correct step is not copied, white space and markup aside."""
    error_not_quoted: Repairable = "repair"
    """The wrong step is quoted."""
    true_equations: Repairable = "repair"
    """A step called correct, a reason or the correction has a false equation. Only a reason can be repaired."""
    completed_step: Failed = "retry"
    """In case B the completed step lacks what the remainder rests on."""
    final_answer: Failed = "retry"
    """The correction does not end in the reference answer."""
    reference_overlap: Failed = "ignore"
    """The correction repeats the reference solution. A fallback to it would repeat all of it."""
    length: Failed = "retry"
    """The critique is longer than `checks.max_length` allows."""


class CriticConfig(Table):
    """Base of every critic's table: each critique is checked, whatever wrote it."""

    kind: str
    on_failure: Fallback = "refsol"
    """The fallback where no critique passes."""
    max_failure_share: Annotated[Share, RUNTIME] = 0.5
    """The largest share of a step's critiques that may fail; 1 never stops a run."""
    max_failed_steps: Annotated[PositiveInt, RUNTIME] = 3
    """Steps running above that share, after which a run stops."""
    checks: ChecksConfig = ChecksConfig()
    """Bounds of the checks."""
    validation: ValidationConfig = ValidationConfig()
    """Responses to failed checks."""

    @property
    def is_remote(self) -> bool:
        """True if critiques are written on another machine, so that the solver can learn meanwhile."""
        return False

    @property
    def needs_own_model(self) -> bool:
        """True if critiques are sampled from the solver's own base, so that the solver cannot sample meanwhile."""
        return False

    @property
    def trial(self) -> Literal["none", "right", "cut"]:
        """Attempts that a model is tried on before a run: right solutions, or some that were cut off."""
        return "none"

    @property
    def fallbacks(self) -> frozenset[Fallback]:
        """Fallbacks that this critic can lead to."""
        return frozenset(fallback for fallback in get_args(Fallback) if self.keys_of(fallback))

    def keys_of(self, fallback: Fallback) -> list[str]:
        """Return the recipe's keys that lead to a fallback."""
        values = {
            "on_failure": self.on_failure,
            **{f"validation.{name}": value for name, value in self.validation.model_dump().items()},
        }
        return [f"critic.{key}" for key, value in values.items() if value == fallback]

    def divided(self, world_size: int) -> Self:
        """Return the share of this critic's limits that belongs to one of several processes."""
        return self


AnyCriticConfig = Annotated[SerializeAsAny[CriticConfig], FAMILIES["critic"]]


@register("critic", "program", implementation="stepalign.critics.arithmetic.critic:ProgramCritic")
class ProgramCriticConfig(CriticConfig):
    """A program that checks each step's arithmetic and corrects the first wrong step."""

    kind: Literal["program"] = "program"
    on_failure: Fallback = "drop"


@register("critic", "unit-tests", implementation="stepalign.critics.code.critic:UnitTestCritic")
class UnitTestCriticConfig(CriticConfig):
    """A program that mends the solver's program with the reference until the unit tests pass."""

    kind: Literal["unit-tests"] = "unit-tests"
    on_failure: Fallback = "drop"


@register("critic", "replay", implementation="stepalign.critics.files:ReplayCritic")
class ReplayCriticConfig(CriticConfig):
    """Critiques of a file, by rollout id: an earlier run's, planted ones, a person's."""

    kind: Literal["replay"] = "replay"
    path: Path
    """Critiques and failures (JSONL)."""


@register("critic", "python", implementation="stepalign.critics.python:from_config")
class PythonCriticConfig(CriticConfig):
    """A Python function or object that critiques, in this process."""

    kind: Literal["python"] = "python"
    function: Annotated[PythonObject, PYTHON]
    """`module:name` of a function of problem and rollout, or of an object with the methods of a `Critic`."""


class LLMCriticConfig(CriticConfig):
    """Base of the tables of critics that are language models."""

    mode: Literal["copy", "splice"] = "copy"
    """`copy`: the model writes all of the critique (paper); `splice`: the program copies the correct steps into it."""
    prompt: Annotated[str | None, TEMPLATE] = None
    """The name or file of the critic's template; None is the mode's own (`critic`, `critic-splice`)."""
    temperature: NonNegativeFloat = 0.0
    """The temperature; 0 is greedy."""
    top_p: Probability = 0.95
    """The probability mass of the nucleus."""
    max_tokens: PositiveInt = 8000
    """The most tokens of a reply, thinking included."""
    max_attempts: PositiveInt = 2
    """The most replies for one rollout, where `validation` says `retry`."""
    right_answers: Literal["model", "program"] = "model"
    """The critic of right answers. `program`: no request; case A, or B where an equation does not hold. `model`: a
    strong critic finds unjustified steps as well, of which the paper's case B tells."""

    @property
    def trial(self) -> Literal["none", "right", "cut"]:
        """Right solutions, where the model is asked about them."""
        return "right" if self.right_answers == "model" else "cut"


@register("critic", "self", implementation="stepalign.critics.self_critic:SelfCritic")
class SelfCriticConfig(LLMCriticConfig):
    """The solver's own base model, in process, with the adapter disabled."""

    kind: Literal["self"] = "self"
    max_tokens: PositiveInt = 2048
    right_answers: Literal["model", "program"] = "program"
    """As above. A small model contradicts the grade more often than it finds an unjustified step."""
    enable_thinking: bool = False
    """The chat template's thinking switch."""
    max_num_seqs: Annotated[PositiveInt, RUNTIME] = 8
    """The most rollouts critiqued together; each has a whole message and its reply in the key-value cache."""

    @property
    def needs_own_model(self) -> bool:
        """True: it is the solver's base."""
        return True


@register("critic", "openai", implementation="stepalign.critics.openai:OpenAICritic")
class OpenAICriticConfig(ServedModelConfig, LLMCriticConfig):
    """A model behind OpenAI-compatible endpoints."""

    kind: Literal["openai"] = "openai"

    @property
    def is_remote(self) -> bool:
        """True: its servers answer."""
        return True


class MenderConfig(Table):
    """Base of the tables of menders, which correct a solution from its first wrong step on."""

    is_remote: ClassVar[bool] = False
    """Corrections are written on another machine."""
    needs_own_model: ClassVar[bool] = False
    """Corrections are sampled from the solver's own base."""
    kind: str

    def divided(self, world_size: int) -> Self:
        """Return the share of this mender's limits that belongs to one of several processes."""
        return self


AnyMenderConfig = Annotated[SerializeAsAny[MenderConfig], FAMILIES["mender"]]


@register("mender", "program", implementation="stepalign.critics.mending:ProgramMender")
class ProgramMenderConfig(MenderConfig):
    """A program that recomputes the solver's text, or goes on with the reference solution's steps."""

    kind: Literal["program"] = "program"


class SampledMenderConfig(MenderConfig):
    """Base of the tables of menders that are language models: the solver's correct steps, continued."""

    prompt: Annotated[str, TEMPLATE] = "refsol"
    """The name or file of the message's template."""
    num_samples: Annotated[PositiveInt, Field(le=64)] = 4
    """The most continuations of one rollout. The first whose critique passes the checks is kept, else the program's."""
    temperature: NonNegativeFloat = 0.7
    """The temperature; at 0 all continuations are equal."""
    top_p: Probability = 0.95
    """The probability mass of the nucleus."""
    max_tokens: PositiveInt = 1024
    """The most tokens of a continuation."""


@register("mender", "self", implementation="stepalign.critics.mending:SelfMender")
class SelfMenderConfig(SampledMenderConfig):
    """The solver's own base model, in process, with the adapter disabled."""

    needs_own_model: ClassVar[bool] = True
    kind: Literal["self"] = "self"
    enable_thinking: bool = False
    """The chat template's thinking switch."""
    max_num_seqs: Annotated[PositiveInt, RUNTIME] = 8
    """The most rollouts mended together."""


@register("mender", "openai", implementation="stepalign.critics.mending:OpenAIMender")
class OpenAIMenderConfig(ServedModelConfig, SampledMenderConfig):
    """A model behind OpenAI-compatible endpoints that continue a begun reply (`continue_final_message`)."""

    is_remote: ClassVar[bool] = True
    kind: Literal["openai"] = "openai"


@register("critic", "locate-mend", implementation="stepalign.critics.locate_mend:LocateMendCritic")
class LocateMendCriticConfig(CriticConfig):
    """A locator of the first wrong step, and a mender that goes on from there."""

    kind: Literal["locate-mend"] = "locate-mend"
    locator: AnyLocatorConfig = DerivationLocatorConfig()
    """The finder of the first wrong step."""
    mender: AnyMenderConfig = ProgramMenderConfig()
    """The writer of the correction."""

    @field_validator("locator")
    @classmethod
    def _is_stage(cls, locator: LocatorConfig) -> LocatorConfig:
        return check_stage(locator)

    @property
    def is_remote(self) -> bool:
        """True where locator or mender is served."""
        return self.locator.is_remote or self.mender.is_remote

    @property
    def trial(self) -> Literal["none", "right", "cut"]:
        """Cut solutions, where a served model may refuse what it is asked."""
        return "cut" if self.is_remote else "none"

    @property
    def needs_own_model(self) -> bool:
        """True where locator or mender is the solver's own base."""
        return self.locator.needs_own_model or self.mender.needs_own_model

    def divided(self, world_size: int) -> Self:
        """Return this critic with one process' share of each stage's limits."""
        stages = {"locator": self.locator.divided(world_size), "mender": self.mender.divided(world_size)}
        return self.model_copy(update=stages)
