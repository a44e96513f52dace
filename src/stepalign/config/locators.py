"""The `[locator]` tables: the way in which `stepalign critic-bench` finds a solution's first wrong step."""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, PositiveInt, SerializeAsAny, field_validator

from stepalign.config.model import ModelConfig
from stepalign.config.registry import FAMILIES, TEMPLATE, Table, register
from stepalign.config.served import ServedModelConfig


class LocatorConfig(Table):
    """Base of every locator's table."""

    is_stage: ClassVar[bool] = False
    """It locates single rollouts, so that a `locate-mend` critic can use it."""
    kind: str

    @property
    def is_remote(self) -> bool:
        """True where a served model locates."""
        return False

    @property
    def needs_own_model(self) -> bool:
        """True where the solver's own base locates."""
        return False

    @property
    def parts(self) -> tuple["LocatorConfig", ...]:
        """This locator, or those that it combines."""
        return (self,)

    def divided(self, world_size: int) -> Self:
        """Return the share of this locator's limits that belongs to one of several processes."""
        return self


AnyLocatorConfig = Annotated[SerializeAsAny[LocatorConfig], FAMILIES["locator"]]


def check_stage(locator: LocatorConfig) -> LocatorConfig:
    """Return a locator that a critic can use.

    Raises:
        ValueError: it locates only for `stepalign critic-bench`.
    """
    if not locator.is_stage:
        tables = FAMILIES["locator"].tables.items()
        kinds = ", ".join(kind for kind, table in tables if getattr(table, "is_stage", False))
        raise ValueError(f"kind {locator.kind!r} locates only for stepalign critic-bench; allowed: {kinds}")
    return locator


@register("locator", "critic", implementation="stepalign.process_supervision.locators:by_critic")
class CriticLocatorConfig(LocatorConfig):
    """The first step that the recipe's critic calls incorrect."""

    kind: Literal["critic"] = "critic"
    show_solution: bool = True
    """The critic is shown the reference solution; grade and reference answer are always shown."""


@register("locator", "equations", implementation="stepalign.critics.arithmetic.locators:EquationsLocator")
class EquationsLocatorConfig(LocatorConfig):
    """The first step with an equation that does not hold, told nothing."""

    is_stage: ClassVar[bool] = True
    kind: Literal["equations"] = "equations"


@register("locator", "origins", implementation="stepalign.critics.arithmetic.locators:OriginsLocator")
class OriginsLocatorConfig(LocatorConfig):
    """The first step with an equation that does not hold or a number of unknown origin, told nothing."""

    is_stage: ClassVar[bool] = True
    kind: Literal["origins"] = "origins"


@register("locator", "derivation", implementation="stepalign.critics.arithmetic.locators:DerivationLocator")
class DerivationLocatorConfig(LocatorConfig):
    """The first step that departs from the reference solution's derivation, by a program."""

    is_stage: ClassVar[bool] = True
    kind: Literal["derivation"] = "derivation"


class ScoredLocatorConfig(LocatorConfig):
    """Base of the tables of locators that score each step, the lower the worse."""

    is_stage: ClassVar[bool] = True
    threshold: float | None = None
    """Of a wrong solution the first step with a lower score (nats), else the lowest; None is always the lowest.

    `stepalign critic-bench` prints the thresholds of the highest F1.
    """


Fact = Literal["grade", "answer", "solution"]


class VerdictsConfig(ScoredLocatorConfig):
    """Base of the tables of locators that ask a model about each step: right or wrong."""

    prompt: Annotated[str, TEMPLATE] = "step-verdict"
    """The name or file of the message's template. It must ask for `right` or `wrong`."""
    told: tuple[Fact, ...] = ("answer", "solution")
    """Facts that the message tells."""


@register("locator", "verdicts", implementation="stepalign.critics.verdicts:VerdictLocator")
class VerdictsLocatorConfig(VerdictsConfig):
    """Log-odds of right against wrong for each step, by a model in process, without generation."""

    kind: Literal["verdicts"] = "verdicts"
    model: ModelConfig | None = None
    """The model's weights, with the keys of `[model]`; None is the solver's own base."""

    @property
    def needs_own_model(self) -> bool:
        """True without a model of its own."""
        return self.model is None


@register("locator", "openai_verdicts", implementation="stepalign.critics.verdicts:ServedVerdictLocator")
class ServedVerdictsLocatorConfig(ServedModelConfig, VerdictsConfig):
    """Log-odds of right against wrong for each step, by a served model that returns log-probabilities."""

    kind: Literal["openai_verdicts"] = "openai_verdicts"

    @property
    def is_remote(self) -> bool:
        """True: its servers answer."""
        return True


@register("locator", "credit", implementation="stepalign.process_supervision.credit:CreditLocator")
class CreditLocatorConfig(ScoredLocatorConfig):
    """The credit of each step's tokens under a context, by the solver's own base."""

    kind: Literal["credit"] = "credit"
    contexts: Annotated[tuple[str, ...], TEMPLATE] = ()
    """Contexts by name or file. In a critic one of them, that shows no critique; none means `refsol` there, and the
    recipe's own in `stepalign critic-bench`."""
    reduction: Literal["mean", "lowest"] = "mean"
    """A step's score in a critic: the mean, or the lowest, credit of its tokens. The benchmark measures both."""

    @property
    def needs_own_model(self) -> bool:
        """True: it is the solver's base."""
        return True


@register("locator", "combined", implementation="stepalign.critics.combined:CombinedLocator")
class CombinedLocatorConfig(LocatorConfig):
    """Several locators in order."""

    is_stage: ClassVar[bool] = True
    kind: Literal["combined"] = "combined"
    locators: Annotated[tuple[AnyLocatorConfig, ...], Field(min_length=2)]
    """The locators; the first ones count more."""
    rule: Literal["first", "vote"] = "first"
    """`first`: a locator is asked where those before it found nothing, or only guess. `vote`: the step that most of
    them name, of equals the first one's."""

    @field_validator("locators")
    @classmethod
    def _are_stages(cls, locators: tuple[LocatorConfig, ...]) -> tuple[LocatorConfig, ...]:
        return tuple(map(check_stage, locators))

    @property
    def parts(self) -> tuple[LocatorConfig, ...]:
        """The locators, those of nested combinations one by one."""
        return tuple(part for locator in self.locators for part in locator.parts)

    @property
    def is_remote(self) -> bool:
        """True where one of them is served."""
        return any(locator.is_remote for locator in self.locators)

    @property
    def needs_own_model(self) -> bool:
        """True where one of them is the solver's own base."""
        return any(locator.needs_own_model for locator in self.locators)

    def divided(self, world_size: int) -> Self:
        """Return this locator with one process' share of each part's limits."""
        return self.model_copy(update={"locators": tuple(one.divided(world_size) for one in self.locators)})


@register("locator", "step_values", implementation="stepalign.process_supervision.locators:by_step_values")
class StepValuesLocatorConfig(LocatorConfig):
    """The first step from which too few continuations reach the answer (Math-Shepherd)."""

    kind: Literal["step_values"] = "step_values"
    num_rollouts: Annotated[PositiveInt, Field(le=1024)] = 8
    """The continuations sampled from each step."""
