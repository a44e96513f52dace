"""Reading and writing recipe files: `extends`, overrides, and errors that name the key."""

import difflib
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tomli_w
from pydantic import ValidationError

from stepalign.config import algorithms as objectives
from stepalign.config import critics, samplers
from stepalign.config import recipe as sections
from stepalign.config.recipe import VERSION, Recipe
from stepalign.config.table import Table
from stepalign.errors import StepalignError


def load(path: Path | str, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe file, what it extends, and overrides like `optimizer.lr=1e-5`.

    Relative paths inside a recipe are relative to the working directory, `extends` to the recipe's own folder.

    Raises:
        StepalignError: naming the file and the key, what was found and what is allowed.
    """
    path = Path(path)
    values = _read(path, seen=())
    for override in overrides:
        _lay_over(values, _parse_override(override))
    version = values.get("version", VERSION)
    if isinstance(version, int) and version > VERSION:
        raise StepalignError(
            f"{path}: version = {version}, but this release of stepalign reads recipes up to version {VERSION}: "
            "upgrade stepalign"
        )
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        raise StepalignError(_explain(path, error)) from None


def dump(recipe: Recipe) -> str:
    """The resolved recipe as TOML. Keys that are None are left out."""
    return tomli_w.dumps(recipe.model_dump(mode="json", exclude_none=True))


def _read(path: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
    resolved = path.resolve()
    if resolved in seen:
        raise StepalignError(f"{path}: extends itself by way of {', '.join(map(str, seen))}")
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        by_whom = f" (extended by {seen[-1]})" if seen else ""
        raise StepalignError(f"{path}: no such recipe{by_whom}") from None
    except IsADirectoryError:
        raise StepalignError(f"{path}: a folder, not a recipe file") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise StepalignError(f"{path}: not valid TOML: {error}") from None
    parent = values.pop("extends", None)
    if parent is None:
        return values
    if not isinstance(parent, str):
        raise StepalignError(f"{path}: extends: a recipe's path as a string is wanted, found {parent!r}")
    inherited = _read(path.parent / parent, (*seen, resolved))
    _lay_over(inherited, values)
    return inherited


def _lay_over(base: dict[str, Any], values: Mapping[str, Any]) -> None:
    """Lay values over a base, table by table. A table that names another kind replaces the old one whole."""
    for key, value in values.items():
        old = base.get(key)
        if isinstance(old, dict) and isinstance(value, Mapping) and not _other_kind(key, old, value):
            _lay_over(old, value)
        else:
            base[key] = value


def _other_kind(table: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    implied = {"kind": objectives.DEFAULT_KIND} if table == "algorithm" else {}
    old = {**implied, **old}
    return any(tag in old and tag in new and old[tag] != new[tag] for tag in ("kind", "source"))


def _parse_override(override: str) -> dict[str, Any]:
    key, equals, text = override.partition("=")
    if not equals or not all(key.split(".")):
        raise StepalignError(f"override {override!r}: key=value is wanted, like optimizer.lr=1e-5")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text  # a bare word is text: model.path=gpt2 needs no quotes
    *tables, last = key.split(".")
    nested: dict[str, Any] = {last: value}
    for table in reversed(tables):
        nested = {table: nested}
    return nested


def _explain(path: Path, error: ValidationError) -> str:
    lines = [f"{path}: not a valid recipe"]
    for fault in error.errors():
        *tables, last = fault["loc"] or ("the recipe",)
        key = ".".join(str(part) for part in (*(part for part in tables if part not in _TAGS), last))
        message = fault["msg"].removeprefix("Value error, ")
        if fault["type"] == "extra_forbidden":
            message = "unknown key" + _suggestion(fault["loc"])
        elif fault["type"] == "missing":
            lines.append(f"  {key}: missing")
            continue
        found = "" if isinstance(fault["input"], dict) else f" (found {fault['input']!r})"
        lines.append(f"  {key}: {message}{found}")
    return "\n".join(lines)


_TAGS: dict[str, type[Table]] = {
    "openmath": sections.OpenMathConfig,
    "gsm8k": sections.Gsm8kConfig,
    "gsm_symbolic": sections.GsmSymbolicConfig,
    "sums": sections.SumsConfig,
    "file": sections.FileConfig,
    "program": critics.ProgramCriticConfig,
    "openai": critics.OpenAICriticConfig,
    "transformers": samplers.TransformersConfig,
    "vllm": samplers.VllmConfig,
    "vllm-server": samplers.VllmServerConfig,
    "distillation": objectives.DistillationConfig,
    "grpo": objectives.GRPOConfig,
}
"""What pydantic puts into a key's path where a table may be of several kinds."""


def _suggestion(location: tuple[int | str, ...]) -> str:
    """What the unknown key's table does allow, the likeliest first."""
    section = _section(location[:-1])
    if section is None:
        return ""
    allowed = list(section.model_fields)
    close = difflib.get_close_matches(str(location[-1]), allowed, n=1)
    return f"; did you mean {close[0]}?" if close else f"; allowed: {', '.join(allowed)}"


def _section(location: tuple[int | str, ...]) -> type[Table] | None:
    section: type[Table] | None = Recipe
    for part in location:
        if part in _TAGS:
            section = _TAGS[str(part)]
        elif section is not None and part in section.model_fields:
            annotation = section.model_fields[str(part)].annotation
            section = annotation if isinstance(annotation, type) and issubclass(annotation, Table) else None
    return section
