"""Keywords of `stepalign.Recipe`: tables as objects or dicts, a key by its own name, and Python objects.

    Recipe(name="first", model="Qwen/Qwen3-1.7B", problems=rows, holdout=30, grader=grade, lr=1e-5, max_steps=100)

A key that several tables have is given with its table, or as `**{"evaluation.sampling.temperature": 0.6}`.
"""

from collections.abc import Mapping
from typing import Any

from stepalign.config.python import PythonObject
from stepalign.config.registry import Table, key_paths, lay_over, unknown_key
from stepalign.errors import StepalignError
from stepalign.io import short

_KINDS = {"grader", "critic", "sampler", "teacher", "algorithm"}
"""Tables for which a word is a kind."""
_METHODS = {"grader": "grade", "critic": "critique", "context": "__call__"}
"""Tables for which a function or an object may stand, and the object's method."""


def expand(table: type[Table], keywords: Mapping[str, Any], old: Mapping[str, Any]) -> dict[str, Any]:
    """Return a recipe's values from keywords.

    Args:
        table: the recipe's class.
        keywords: tables, values that stand for a table, and keys.
        old: the plain values that the keywords change; they say which kinds the tables have.

    Raises:
        StepalignError: several tables have a key.
    """
    keywords = _with_sources(keywords, old.get("problems") or {})
    values = {name: _table(name, value) for name, value in keywords.items() if name in table.model_fields}
    together = _copied(old)
    lay_over(together, values, table)
    for name, value in keywords.items():
        if name not in table.model_fields:
            _set(values, name.split(".") if "." in name else _find(table, together, name), value)
    return values


def plain(value: Any) -> Any:
    """Return a table as a dict of what was given, and of its kind; any other value as it is."""
    if not isinstance(value, Table):
        return value
    names = [name for name in type(value).model_fields if name in value.model_fields_set or name in ("kind", "source")]
    return {name: plain(getattr(value, name)) for name in names}


def _table(name: str, value: Any) -> Any:
    """Return a table for a value that stands for one; others are as they are."""
    value = plain(value)
    if name == "problems" and value is not None:
        if not isinstance(value, Mapping) or "source" in value or _is_columns(value):
            return {"train": source_of(value)}
        return {
            key: source_of(part) if key in ("train", "evaluation") and part is not None else part
            for key, part in value.items()
        }
    if isinstance(value, str):
        words = {"model": {"name_or_path": value}, "context": {"kind": "template", "template": value}}
        return words.get(name, {"kind": value} if name in _KINDS else value)
    if name in _METHODS and value is not None and not isinstance(value, Mapping):
        if not (isinstance(value, PythonObject) or callable(value) or hasattr(value, _METHODS[name])):
            raise StepalignError(f"{name}: a function, an object, a name or a table is wanted, found {short(value)}")
        return {"kind": "python", "function": value if isinstance(value, PythonObject) else PythonObject.of(value)}
    return dict(value) if isinstance(value, Mapping) else value


def _with_sources(keywords: Mapping[str, Any], old: Mapping[str, Any]) -> dict[str, Any]:
    """Return keywords with `evaluation_problems` and `columns` in the table of problems.

    Columns are those of all problems given, and of `old` ones that are rows. Evaluation rows without any take those of
    the old training rows.
    """
    others = dict(keywords)
    evaluation, columns = others.pop("evaluation_problems", None), plain(others.pop("columns", None))
    if evaluation is None and columns is None:
        return others
    if not isinstance(columns, Mapping | None):
        raise StepalignError(f"columns: a map like {{'statement': 'question'}} is wanted, found {short(columns)}")
    problems = _table("problems", others.get("problems")) or {}
    rows = {name: dict(source) for name, source in old.items() if _is_rows(source)}
    if evaluation is not None:
        source = source_of(evaluation)
        if columns is None and _is_rows(source) and "columns" in rows.get("train", {}):
            source = {"columns": rows["train"]["columns"], **source}
        problems |= {"holdout": 0, "evaluation": source}
    if columns is not None:
        problems = rows | problems
        sources = [name for name in ("train", "evaluation") if problems.get(name)]
        if not sources:
            raise StepalignError(
                "columns are those of `problems`, which are not given; the recipe's source has its own"
            )
        # columns that are not mapped are kept
        problems |= {name: {**problems[name], "columns": {"meta": ["*"], **columns}} for name in sources}
    return {**others, "problems": problems}


def _is_rows(source: Any) -> bool:
    return isinstance(source, Mapping) and source.get("source") == "python"


def _is_columns(values: Mapping[str, Any]) -> bool:
    """Return whether a mapping is one of columns, which stands for no rows."""
    has_lists = any(isinstance(value, list | tuple) for value in values.values())
    return has_lists and values.keys().isdisjoint({"source", "train", "evaluation"})


def source_of(problems: Any) -> dict[str, Any]:
    """Return a source's values for rows, for a function that returns rows, or for a source's table."""
    if isinstance(values := plain(problems), Mapping) and not _is_columns(values):
        return dict(values)
    function = PythonObject.of(problems) if callable(problems) else PythonObject.of_rows(problems)
    return {"source": "python", "function": function}


def _find(table: type[Table], values: Mapping[str, Any], key: str) -> list[str]:
    """Return the place of a key that one table has."""
    paths = list(key_paths(table, values))
    places = [path for path in paths if path[-1] == key]
    if not places:
        raise StepalignError(f"Recipe: not valid\n  {key}: {unknown_key(key, table, paths)}")
    if len(places) > 1:
        names = " or ".join(".".join(path) for path in places)
        example = ".".join(places[0])
        raise StepalignError(f"Recipe: {key} means {names}: give the table, or **{{{example!r}: …}}")
    return places[0]


def _copied(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _copied(value) if isinstance(value, Mapping) else value for key, value in values.items()}


def _set(values: dict[str, Any], path: list[str], value: Any) -> None:
    """Set a value below tables, which are copied."""
    key, *rest = path
    if rest:
        values[key] = dict(values.get(key) or {})
        _set(values[key], rest, value)
    else:
        values[key] = value
