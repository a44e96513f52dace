"""The tables are the reference of recipes: every key has one plain sentence."""

import ast
import re
from pathlib import Path

import pytest

from stepalign import config

FILES = sorted(Path(config.__file__).parent.glob("*.py"))
TABLES = [
    (file, node)
    for file in FILES
    for node in ast.parse(file.read_text()).body
    if isinstance(node, ast.ClassDef) and node.name.endswith(("Config", "Recipe"))
]
QUESTION = re.compile(r"(What|Whether|Where|How|Who|Which|When)\b")


def documented(table: ast.ClassDef) -> dict[str, str | None]:
    """Keys of a table with the sentence below each."""
    keys: dict[str, str | None] = {}
    for node, following in zip(table.body, [*table.body[1:], None], strict=True):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            text = following.value if isinstance(following, ast.Expr) else None
            keys[node.target.id] = str(text.value) if isinstance(text, ast.Constant) else None
    return keys


BASES = {table.name: table for _, table in TABLES}


def inherited(table: ast.ClassDef) -> set[str]:
    bases = [BASES[base.id] for base in table.bases if isinstance(base, ast.Name) and base.id in BASES]
    return {key for base in bases for key in {*documented(base), *inherited(base)}}


@pytest.mark.parametrize("table", [table for _, table in TABLES], ids=lambda table: table.name)
def test_every_key_of_a_table_has_a_sentence(table: ast.ClassDef) -> None:
    for key, text in documented(table).items():
        named_by_its_table = key in {"kind", "source"} or table.name == "Recipe"
        if text is None:
            assert named_by_its_table or key in inherited(table), f"{table.name}.{key} has no sentence"
            continue
        first = re.split(r"(?<=[.;:])\s", " ".join(text.split()))[0]
        assert not QUESTION.match(text), f"{table.name}.{key}"
        assert len(first.split()) <= 22, f"{table.name}.{key}: {first}"


@pytest.mark.parametrize("table", [table for _, table in TABLES], ids=lambda table: table.name)
def test_every_table_has_a_sentence(table: ast.ClassDef) -> None:
    text = ast.get_docstring(table)
    assert text
    assert not QUESTION.match(text)
