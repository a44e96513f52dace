"""Reading and writing recipe files: `extends`, overrides, and errors that name the key."""

import json
import tomllib
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from stepalign.arguments import checked
from stepalign.config import benchmarks, packaged
from stepalign.config.migrate import old_keys
from stepalign.config.recipe import VERSION, Recipe
from stepalign.config.registry import fault_lines, lay_over
from stepalign.config.trust import check_trust
from stepalign.errors import StepalignError


@checked
def load(
    path: Path | str, overrides: Sequence[str] = (), *, trust: bool = False, benchmark: str | None = None
) -> Recipe:
    """Read a recipe file, what it extends, and overrides like `optimizer.lr=1e-5`.

    Relative paths inside a recipe are relative to the working directory, `extends` to the recipe's own folder.

    Args:
        path: the recipe's, or the name of one that ships with the package (`quickstart`), as in `extends`.
        overrides: `key=value`, later ones first.
        benchmark: evaluate on this benchmark as is customary (`config.benchmarks`), overrides laid over it.
        trust: allow templates and environment variables that `config.trust` refuses.

    Raises:
        StepalignError: naming the file and the key, what was found and what is allowed.
    """
    path = packaged.locate(path)
    values = _read(path, seen=())
    together: dict[str, Any] = {}
    for override in overrides:
        lay_over(together, _parse_override(override), table=None)
    if renamed := dict(old_keys(together)):
        faults = "; ".join(f"{old} is now {new}" for old, new in renamed.items())
        raise StepalignError(f"override of an earlier recipe format: {faults}")
    if benchmark is not None:
        if isinstance(values.get("problems"), dict):
            values["problems"].pop("evaluation", None)  # a limit or columns of it are not the benchmark's
        lay_over(values, benchmarks.benchmark(benchmark).values(), Recipe)
    lay_over(values, together, Recipe)
    version = values.get("version", VERSION)
    if isinstance(version, int) and version > VERSION:
        raise StepalignError(
            f"{path}: version = {version}, but this release of stepalign reads recipes up to version {VERSION}: "
            "upgrade stepalign"
        )
    try:
        recipe = Recipe.model_validate(values)
    except ValidationError as error:
        raise StepalignError(f"{path}: not a valid recipe\n{fault_lines(Recipe, values, error)}") from None
    if not trust:
        check_trust(recipe, path)
    return recipe


def dump(recipe: Recipe) -> str:
    """Return the resolved recipe as TOML. Keys that are None are left out."""
    import tomlkit

    return tomlkit.dumps(recipe.model_dump(mode="json", exclude_none=True))


def _read(path: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
    resolved = path.resolve()
    if resolved in seen:
        raise StepalignError(f"{path}: extends itself by way of {', '.join(map(str, seen))}")
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        by_whom = f" (extended by {seen[-1]})" if seen else ""
        advice = "" if path.suffix == ".toml" else "; `stepalign recipes` lists those that ship with the package"
        raise StepalignError(f"{path}: no such recipe{by_whom}{advice}") from None
    except IsADirectoryError:
        raise StepalignError(f"{path}: a folder, not a recipe file") from None
    except OSError as error:
        raise StepalignError(f"{path}: {error.strerror}") from None
    except RecursionError:
        raise StepalignError(f"{path}: nested too deeply") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise StepalignError(f"{path}: not valid TOML: {error}") from None
    version = values.get("version", VERSION)
    renamed = dict(old_keys(values)) if version in (1, VERSION) else {}
    if renamed or version == 1:
        faults = "".join(f"\n  {old} is now {new}" for old, new in renamed.items())
        raise StepalignError(f"{path}: a recipe of format 1; `stepalign migrate {path}` rewrites it:{faults}")
    parent = values.pop("extends", None)
    if parent is None:
        return values
    if not isinstance(parent, str):
        raise StepalignError(f"{path}: extends: a recipe's path as a string is wanted, found {parent!r}")
    inside = path.parent / parent
    inherited = _read(inside if inside.is_file() else packaged.locate(parent), (*seen, resolved))
    lay_over(inherited, values, Recipe)
    return inherited


def _parse_override(override: str) -> dict[str, Any]:
    key, equals, text = override.partition("=")
    for value in (text, json.dumps(text, ensure_ascii=False)):  # model.name_or_path=gpt2 needs no quotes
        with suppress(tomllib.TOMLDecodeError):
            if equals:
                return tomllib.loads(f"{key} = {value}")
    raise StepalignError(f"override {override!r}: key=value is wanted, like optimizer.lr=1e-5")
