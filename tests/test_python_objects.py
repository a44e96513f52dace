"""Import of a recipe's Python by name, and the text by which a function is known again."""

import importlib.util
import os
import subprocess
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
    assert texts == {"grader.function.my_own_grader.A.grade.py": "def grade(self):\n    return 1\n"}


def test_two_lambdas_of_one_recipe_are_recorded_both() -> None:
    with prompts.recorded() as texts:
        load(PythonObject.of(lambda x: x + 1), "grader.function")
        load(PythonObject.of(lambda x: x + 2), "context.function")
        load(PythonObject.of_rows([{"statement": "A"}]), "problems.train.function")
    assert [name.partition(".")[0] for name in texts] == ["grader", "context"]
    assert len(set(texts.values())) == 2


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


@pytest.mark.parametrize(
    "source",
    [
        "class Base:\n    def grade(self): return {}\nclass Own(Base): pass",
        "class Base:\n    def grade(self): return {}\nclass Middle(Base): pass\nclass Own(Middle): pass",
        "def f(): return {}\nclass Own:\n    @staticmethod\n    def grade(): return f()",
        "def f(): return {}\nclass Own:\n    grade = staticmethod(f)",
        "def f(): return {}\nclass Own:\n    @classmethod\n    def grade(cls): return f()",
        "def f(): return {}\nclass Own:\n    @property\n    def grade(self): return f()",
        "def f(): return {}\nclass Own:\n    @functools.cached_property\n    def grade(self): return f()",
        "def f(): return {}\nclass Own:\n    @functools.cache\n    def grade(self): return f()",
        "LIMIT = {}\nclass Own:\n    def grade(self): return LIMIT",
        "def adds(f):\n    @functools.wraps(f)\n    def adding(self): return f(self) + {}\n    return adding\n"
        "class Own:\n    @adds\n    def grade(self): return 0",
        "def held(f):\n    held = {{'f': f}}\n    @functools.wraps(f)\n    def g(): return held['f']()\n    return g\n"
        "@held\ndef Own(): return {}",
        "@functools.cache\ndef Own(): return {}",
        "def f(): return {}\n@functools.lru_cache(maxsize=8)\ndef Own(): return f()",
        "@functools.cache\ndef f(): return {}\ndef Own(): return f()",
    ],
)
def test_a_change_behind_a_class_or_a_wrapper_changes_the_text(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = []
    for value in (1, 2):
        file = tmp_path / f"own_{value}.py"
        file.write_text(f"import functools\n{source.format(value)}\n")
        spec = importlib.util.spec_from_file_location("own", file)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, "own", module)
        spec.loader.exec_module(module)
        texts.append(source_text(module.Own))
    assert texts[0].replace("1", "2") == texts[1] != texts[0]


def test_the_text_is_the_same_in_every_process(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(
        "from functools import partial\n"
        "STOP = {'a', 'the', 'of', 2, (1, 'b')}\n"
        "NESTED = {'words': [frozenset({'x', 'y', 'z'})], 'one': ({'u', 'v', 'w'},)}\n"
        "def grade(x, stop=frozenset({'k', 'l', 'm'})):\n    return x in STOP or x in NESTED\n"
        "class Own:\n    def __init__(self):\n        self.stop = {'d', 'e', 'f'}\n"
        "VALUES = [grade, partial(grade, {'g', 'h', 'i'}), Own(), lambda x: x in {'p', 'q', 'r'}]\n"
    )
    code = "import own\nfrom stepalign.python_objects import source_text\nprint(*map(source_text, own.VALUES))"
    path = os.pathsep.join([str(tmp_path), *sys.path])
    texts = [
        subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": path},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    ]
    assert texts[0] == texts[1]
    assert "# STOP = {'a', 'of', 'the', (1, 'b'), 2}" in texts[0]
