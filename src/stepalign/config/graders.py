"""The `[grader]` tables: what judges completions. `kind` names the grader."""

from typing import Annotated, Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt, SerializeAsAny, model_validator

from stepalign.config.python import PYTHON, PythonObject
from stepalign.config.registry import FAMILIES, RUNTIME, Share, Table, register


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


@register("grader", "python", implementation="stepalign.rewards.python:from_config")
class PythonGraderConfig(GraderConfig):
    """A Python function or object that grades, in this process and without a time limit."""

    kind: Literal["python"] = "python"
    function: Annotated[PythonObject, PYTHON]
    """`module:name` of a function of problem and rollout, or of an object with the methods of a `Grader`."""
    threshold: Share = 0.5
    """The score from which a rollout is correct, where the function returns a number."""

    @model_validator(mode="after")
    def _no_workers(self) -> Self:
        for key in ("num_workers", "timeout_s"):
            if getattr(self, key) != type(self).model_fields[key].default:
                raise ValueError(f"{key} = {getattr(self, key)}: a Python grader has no worker processes, leave it out")
        return self


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
