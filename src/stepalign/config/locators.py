"""The `[locator]` tables: the way in which `stepalign critic-bench` finds a solution's first wrong step."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field, PositiveInt, SerializeAsAny

from stepalign.config.registry import FAMILIES, TEMPLATE, Table, register


class LocatorConfig(Table):
    """Base of every locator's table."""

    is_stage: ClassVar[bool] = False
    """It locates single rollouts, so that a `locate-mend` critic can use it."""
    kind: str


AnyLocatorConfig = Annotated[SerializeAsAny[LocatorConfig], FAMILIES["locator"]]


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


@register("locator", "credit", implementation="stepalign.process_supervision.locators:by_credit")
class CreditLocatorConfig(LocatorConfig):
    """The step with the lowest credit under a context."""

    kind: Literal["credit"] = "credit"
    contexts: Annotated[tuple[str, ...], TEMPLATE] = ()
    """Contexts by name or file; none means the recipe's own."""


@register("locator", "step_values", implementation="stepalign.process_supervision.locators:by_step_values")
class StepValuesLocatorConfig(LocatorConfig):
    """The first step from which too few continuations reach the answer (Math-Shepherd)."""

    kind: Literal["step_values"] = "step_values"
    num_rollouts: Annotated[PositiveInt, Field(le=1024)] = 8
    """The continuations sampled from each step."""
