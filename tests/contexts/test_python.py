"""A context that is a Python function."""

from dataclasses import replace
from typing import Any

import pytest

from stepalign.config import PythonObject
from stepalign.contexts import ContextInput, load
from stepalign.critics import sample
from stepalign.errors import StepalignError
from stepalign.records import Critique

SOURCE = ContextInput(problem=sample.PROBLEM, rollout=sample.ROLLOUT, critique=sample.CRITIQUE)


def hint(problem: str, critique: Critique, *, feedback: str = "") -> str:
    return f"  {problem}\nStep {critique.first_error} needs another look. {feedback}\n"


def test_the_parameters_say_what_is_shown() -> None:
    context = load(PythonObject.of(hint))
    assert context.name == f"{__name__}:hint"
    assert context.variables == {"problem", "critique", "feedback"}
    assert (context.needs_critique, context.needs_solution, context.needs_siblings) == (True, False, False)
    assert context.render(SOURCE) == (
        f"{sample.PROBLEM.statement}\nStep 2 needs another look. The final answer is wrong."
    )
    with pytest.raises(StepalignError, match=r"hint: rollout sample has no critique to show"):
        context.render(replace(SOURCE, critique=None))


def test_a_function_is_cut_like_a_template() -> None:
    context = load(lambda problem, solution: f"{problem}\n{solution}")
    assert context.needs_solution
    assert len(context.render(SOURCE, keep=0.5)) < len(context.render(SOURCE))
    assert context.render(SOURCE, keep=0.0).startswith(sample.PROBLEM.statement)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda problem, hint: "", r"unknown parameters hint; allowed: answer, attempt"),
        (lambda *texts: "", r"unknown parameters texts"),
        (lambda problem: None, r"it returned None, a message is wanted"),
        (lambda problem: problem.statement, r"the function failed: AttributeError"),
        (5, r"a function is wanted, found 5"),
    ],
)
def test_another_function_is_refused_before_a_run(function: Any, message: str) -> None:
    with pytest.raises(StepalignError, match=message):
        load(PythonObject.of(function))
