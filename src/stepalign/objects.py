"""Objects that Python callers give in place of a recipe's tables: rows, functions and objects.

stepalign.train(recipe, problems=frame, columns={"statement": "question"}, grader=grade)
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypedDict, Unpack

from stepalign.config import PythonObject, Recipe, load
from stepalign.critics import Critic
from stepalign.records import Problem, Rollout
from stepalign.rewards import Grader, GradingFunction

AnyRecipe = Recipe | Path | str
"""A recipe, or its file."""
AnyProblems = Any
"""A list of dicts or of `Problem` records, a DataFrame, a split of `datasets`, or a function that returns one."""
AnyContext = Callable[..., str] | PythonObject | str
"""A function that writes the teacher's message of what its parameters name, or a template's name or file."""


class Objects(TypedDict, total=False):
    """Arguments that replace a recipe's tables. None keeps the recipe's."""

    problems: AnyProblems
    """In place of `problems.train`."""
    evaluation_problems: AnyProblems
    """In place of `problems.evaluation` and of held-out problems."""
    columns: Mapping[str, Any] | None
    """The column map of both, such as `{"statement": "question"}`."""
    grader: GradingFunction | Grader | None
    """A function of problem and rollout that returns true or false, a score or a `Grade`; or a `Grader`."""
    critic: Callable[[Problem, Rollout], Any] | Critic | None
    """A function of problem and rollout (`critics.python`), or a `Critic`."""
    context: AnyContext | None


def with_objects(recipe: AnyRecipe, **objects: Unpack[Objects]) -> Recipe:
    """Return a recipe, read where it is a file, with objects in place of its tables.

    Raises:
        StepalignError: they are no valid recipe.
    """
    if not isinstance(recipe, Recipe):
        recipe = load(recipe)
    given = {name: value for name, value in objects.items() if value is not None}
    return recipe.replace(**given) if given else recipe
