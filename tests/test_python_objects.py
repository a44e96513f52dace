"""Import of a recipe's Python by name, and the text by which a function is known again."""

import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from stepalign import prompts
from stepalign.config import PythonObject
from stepalign.errors import StepalignError
from stepalign.python_objects import load, source_text

LIMIT = 3


def helper(x: int) -> int:
    return x + LIMIT


def uses_helper(x: int, by: int = 2) -> int:
    return helper(x) * by


class Scorer:
    def __init__(self, weight: float) -> None:
        self.weight = weight

    def __call__(self, x: int) -> float:
        return helper(x) * self.weight


def closed_over(value: int) -> Any:
    return lambda x: x + value


def test_a_module_of_the_working_directory_is_imported_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_own_grader.py").write_text("class A:\n    def grade(self):\n        return 1\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    with prompts.recorded() as texts:
        assert load(PythonObject("my_own_grader:A.grade"), "grader.function")(None) == 1
    assert texts == {"my_own_grader.A.grade.py": "def grade(self):\n    return 1\n"}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no_such_module:f", r"grader\.function = 'no_such_module:f': cannot be imported: .*No module named"),
        ("json:lods", r"cannot be imported: module 'json' has no attribute 'lods'"),
    ],
)
def test_what_cannot_be_imported_is_named(name: str, message: str) -> None:
    with pytest.raises(StepalignError, match=message):
        load(PythonObject(name), "grader.function")


def test_the_text_has_what_the_function_depends_on() -> None:
    text = source_text(uses_helper)
    assert all(part in text for part in ("def uses_helper", "def helper", "# LIMIT = 3", "# default = 2"))
    assert "def helper" in source_text(Scorer(2.0))
    assert "'weight': 2.0" in source_text(Scorer(2.0))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (Scorer(1.0), Scorer(2.0)),
        (Scorer(1.0).__call__, Scorer(2.0).__call__),
        (partial(helper, 1), partial(helper, 2)),
        (partial(helper, x=1), partial(uses_helper, x=1)),
        (closed_over(1), closed_over(2)),
        (lambda x: x + 1, lambda x: x + 2),
        (eval("lambda x: x + 1"), eval("lambda x: x + 2")),
        (eval("lambda x: [y + 1 for y in x]"), eval("lambda x: [y + 2 for y in x]")),
    ],
)
def test_another_function_has_another_text(one: Any, other: Any) -> None:
    assert source_text(one) != source_text(other)
    assert source_text(one) == source_text(one)


def test_a_changed_global_and_a_changed_helper_change_the_text(monkeypatch: pytest.MonkeyPatch) -> None:
    before = source_text(uses_helper)
    monkeypatch.setitem(globals(), "LIMIT", 4)
    assert source_text(uses_helper) != before
    monkeypatch.setitem(globals(), "helper", closed_over(3))
    assert "value = 3" in source_text(uses_helper)
