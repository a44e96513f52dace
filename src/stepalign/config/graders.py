"""The `[grader]` tables: what judges completions. `kind` names the grader."""

from typing import Annotated, Literal

from pydantic import PositiveFloat, PositiveInt, SerializeAsAny

from stepalign.config.registry import FAMILIES, RUNTIME, Table, register


class GraderConfig(Table):
    """Base of every grader's table: worker processes that judge completions."""

    kind: str = "math"
    num_workers: Annotated[PositiveInt, RUNTIME] = 2
    """The number of worker processes."""
    timeout_s: PositiveFloat = 10.0
    """Seconds for one rollout; after them its worker is killed and the rollout is wrong."""


AnyGraderConfig = Annotated[SerializeAsAny[GraderConfig], FAMILIES["grader"]]


@register("grader", "math", implementation="stepalign.rewards.math:MathGrader")
class MathGraderConfig(GraderConfig):
    """Final answers compared as mathematics."""

    kind: Literal["math"] = "math"
