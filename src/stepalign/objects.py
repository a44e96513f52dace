"""Objects that Python callers give in place of a recipe's tables: rows, functions and objects.

stepalign.train(recipe, problems=frame, columns={"statement": "question"}, grader=grade)
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypedDict, Unpack

from stepalign.config import PythonObject, Recipe, load
from stepalign.config.keywords import source_of
from stepalign.critics import Critic
from stepalign.errors import StepalignError
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
    given: dict[str, Any] = {name: value for name, value in objects.items() if value is not None}
    rows = {"train": given.pop("problems", None), "evaluation": given.pop("evaluation_problems", None)}
    sources: dict[str, Any] = {name: source_of(value) for name, value in rows.items() if value is not None}
    if columns := given.pop("columns", None):
        if not sources:
            raise StepalignError(
                "columns are those of `problems`, which are not given; the recipe's source has its own"
            )
        for source in sources.values():
            source["columns"] = {"meta": ["*"], **columns}
    if "evaluation" in sources:
        sources["holdout"] = 0
    if sources:
        given["problems"] = sources
    return recipe.replace(**given) if given else recipe
