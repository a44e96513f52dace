"""The `[grader]` tables: what judges completions. `kind` names the grader."""

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt, SerializeAsAny

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


@register("grader", "unit-tests", implementation="stepalign.rewards.unit_tests:UnitTestGrader")
class UnitTestGraderConfig(GraderConfig):
    """Programs run on unit tests in a sandbox."""

    kind: Literal["unit-tests"] = "unit-tests"
    reward: Literal["all", "share"] = "all"
    """1 where every test passes, else 0; or the share of the tests that pass."""
    sandbox: Literal["auto", "bubblewrap", "limits"] = "auto"
    """`bubblewrap` requires it; `limits` does without; `auto` takes it where it works, and else warns."""
    max_memory_mb: Annotated[int, Field(ge=128)] = 1024
    """The address space of a program, in MiB."""
