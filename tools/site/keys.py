"""Every key of a recipe as Markdown: from the tables' types, ranges, defaults and docstrings."""

import ast
import inspect
import json
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from itertools import pairwise
from typing import Any

from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

from stepalign.config.recipe import Recipe
from stepalign.config.registry import Family, Table, nested

_RUNTIME = "↻"
_BOUNDS = {"exclusiveMinimum": ">", "minimum": "≥", "exclusiveMaximum": "<", "maximum": "≤"}


class _Schema(GenerateJsonSchema):
    """JSON schema in which an object of Python stands as its name."""

    def handle_invalid_for_json_schema(self, schema: core_schema.CoreSchema, error_info: str) -> JsonSchemaValue:
        return {"type": "string"}


def markdown() -> str:
    """Return the sections of all tables, the recipe's own keys first."""
    sections = _Sections()
    sections.add("The recipe itself", Recipe)
    return "\n\n".join(sections.texts)


class _Sections:
    """Sections in the order in which tables are reached. A table that two keys have is described once."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self._titles: dict[type[Table] | str, str] = {}
        self._waiting: list[tuple[str, Family | None, type[Table]]] = []

    def add(self, title: str, table: type[Table], path: str = "") -> None:
        """Add the section of a table, then those of the tables in it."""
        self.texts.append(f"## {title}\n\n{self._described(table, path, table.model_fields)}")
        self._add_waiting()

    def _add_waiting(self) -> None:
        waiting, self._waiting = self._waiting, []
        for path, family, table in waiting:
            if family is None:
                self.add(path, table, f"{path}.")
            else:
                self._add_family(path, family)

    def _add_family(self, path: str, family: Family) -> None:
        kinds = family.tables
        first, *others = kinds.values()
        shared = [key for key in first.model_fields if all(_same(key, first, other) for other in others)]
        names = ", ".join(f"[`{kind}`](#{_slug(f'{path}: {kind}')})" for kind in kinds)
        default = f", by default `{family.default}`" if family.default else ""
        self.texts.append(f"## {path}\n\n`{family.tag}` is one of {names}{default}.")
        if shared:
            self.texts.append(f"Keys of each kind:\n\n{self._rows(first, f'{path}.', shared)}")
        for kind, table in kinds.items():
            own = [key for key in table.model_fields if key not in (*shared, family.tag)]
            self.texts.append(f"### {path}: {kind}\n\n{self._described(table, f'{path}.', own)}")
        self._add_waiting()

    def _described(self, table: type[Table], path: str, keys: Any) -> str:
        return f"{inspect.getdoc(table)}\n\n{self._rows(table, path, keys)}".strip()

    def _rows(self, table: type[Table], path: str, keys: Any) -> str:
        rows = [self._row(table, path, key, _properties(table)[key]) for key in keys]
        return "\n".join(["| key | value | default | |", "|---|---|---|---|", *rows]) if rows else ""

    def _row(self, table: type[Table], path: str, key: str, schema: dict[str, Any]) -> str:
        family, inner = nested(table, key, {})
        if family is None and inner is None:
            default = "required" if table.model_fields[key].is_required() else _value(schema.get("default"))
            kind = _type(schema)
        else:
            kind, default = f"[table](#{_slug(self._title(path + key, family, inner))})", ""
        mark = f" {_RUNTIME}" if schema.get("runtime") else ""
        cells = (f"`{key}`{mark}", kind, default, _docstrings(table).get(key, ""))
        return f"| {' | '.join(' '.join(cell.replace('|', chr(92) + '|').split()) for cell in cells)} |"

    def _title(self, path: str, family: Family | None, inner: type[Table] | None) -> str:
        """Return the title of the section of a table, and let it follow where there is none yet."""
        table = inner or next(iter(family.tables.values()))  # type: ignore[union-attr]
        identity: type[Table] | str = family.name if family else table
        if identity not in self._titles:
            title = f"{path} ({table.__name__})" if path in self._titles.values() else path
            self._titles[identity] = title
            self._waiting.append((title, family, table))
        return self._titles[identity]


def _same(key: str, first: type[Table], other: type[Table]) -> bool:
    """Return whether two tables have a key with the same type, range, default and docstring."""
    pairs = ((_properties(table).get(key), _docstrings(table).get(key)) for table in (first, other))
    return len({json.dumps(pair) for pair in pairs}) == 1


@cache
def _properties(table: type[Table]) -> dict[str, Any]:
    return dict(table.model_json_schema(schema_generator=_Schema)["properties"])


def _value(default: object) -> str:
    return "" if default is None else f"`{json.dumps(default, ensure_ascii=False)}`"


def _slug(title: str) -> str:
    """Return the anchor of a title, as the site and GitHub make it."""
    return "".join(
        character for character in title.lower().replace(" ", "-") if character.isalnum() or character in "-_"
    )


def _type(schema: dict[str, Any]) -> str:
    """Return a key's type in TOML's words, with its range."""
    if "anyOf" in schema:
        return " or ".join(_type(one) for one in schema["anyOf"] if one.get("type") != "null")
    if "enum" in schema or "const" in schema:
        return ", ".join(f"`{json.dumps(value)}`" for value in schema.get("enum", [schema.get("const")]))
    kind = str(schema.get("type", "table"))
    if kind == "array":
        inner = [_type(one) for one in schema.get("prefixItems", [schema.get("items", {})])]
        return f"list of {', '.join(inner)}"
    words = {"string": schema.get("format", "text"), "object": "table"}.get(kind, kind)
    return " ".join([words, *(f"{sign} {schema[name]:g}" for name, sign in _BOUNDS.items() if name in schema)])


def _docstrings(table: type[Table]) -> dict[str, str]:
    """Return the docstring of each key, of the class that is nearest."""
    found: dict[str, str] = {}
    for owner in table.__mro__:
        if issubclass(owner, Table):
            found = dict(_in_module(owner.__module__).get(owner.__name__, ())) | found
    return found


@cache
def _in_module(module: str) -> dict[str, tuple[tuple[str, str], ...]]:
    """Return name and docstring of each attribute of a module's classes."""
    tree = ast.parse(inspect.getsource(import_module(module)))
    classes = (node for node in tree.body if isinstance(node, ast.ClassDef))
    return {node.name: tuple(_attributes(node.body)) for node in classes}


def _attributes(body: list[ast.stmt]) -> Iterator[tuple[str, str]]:
    for statement, following in pairwise(body):
        match statement, following:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                yield name, inspect.cleandoc(text)
