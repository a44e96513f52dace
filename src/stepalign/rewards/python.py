"""The grader of a recipe that is a Python function or object."""

import inspect
from typing import Any

from stepalign import config, python_objects
from stepalign.errors import StepalignError
from stepalign.rewards import FunctionGrader, Grader


def from_config(settings: config.PythonGraderConfig) -> Grader:
    """Build the grader: the object itself, an instance of a class, or a `FunctionGrader`.

    Raises:
        StepalignError: it is none of them, or the function does not take a problem and a rollout.
    """
    where = f"grader.function = {settings.function.name!r}"
    value: Any = python_objects.load(settings.function, "grader.function")
    if isinstance(value, type):
        value = value()
    if isinstance(value, Grader):
        return value
    if hasattr(value, "grade"):
        missing = [name for name in ("same", "close", "__enter__", "__exit__") if not hasattr(value, name)]
        raise StepalignError(f"{where}: a grader without {', '.join(missing)}: derive it from stepalign.Grader")
    try:
        inspect.signature(value).bind("problem", "rollout")
    except (TypeError, ValueError) as error:
        raise StepalignError(f"{where}: a function of problem and rollout is wanted: {error}") from None
    return FunctionGrader(value, threshold=settings.threshold)
