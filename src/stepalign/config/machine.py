"""Check of what a recipe needs of this machine: files and folders that it names, and optional packages.

A command checks the tables that it uses before long work, and before the hub is asked for anything. Left out:
templates (`trainer.checks`), names on the hub, servers.
"""

from collections.abc import Iterator
from functools import reduce
from pathlib import Path
from typing import Any

from stepalign import extras
from stepalign.config.model import ModelConfig, is_local
from stepalign.config.recipe import Recipe
from stepalign.config.registry import Table
from stepalign.config.sources import HubSourceConfig
from stepalign.errors import StepalignError
from stepalign.io import home_expanded

TRAINING = ("model", "problems", "sampler", "grader", "critic", "teacher", "distributed", "probe", "tracking")
"""The tables that a run uses."""


def check(recipe: Recipe, *keys: str) -> None:
    """Refuse files, folders and packages that are not there.

    Args:
        recipe: the recipe.
        keys: the tables to check, like `problems.train`. One that is None is left out.

    Raises:
        StepalignError: naming key and value, or the extra that installs a package.
    """
    check_files(recipe, *keys)
    check_packages(recipe, *keys)


def check_files(recipe: Recipe, *keys: str) -> None:
    """Refuse local files and folders that are not there. See `check`."""
    for prefix, table in _tables(recipe, keys):
        for name, value in table:
            if isinstance(value, Path) and not value.exists():
                raise StepalignError(f"{prefix}{name} = {str(value)!r}: no such file or folder")
        if isinstance(table, ModelConfig):
            table.locate(f"{prefix}name_or_path")
        if isinstance(table, HubSourceConfig) and table.repository:
            name = table.repository[0]
            if is_local(name) and not home_expanded(name).is_dir():
                raise StepalignError(f"{prefix}dataset = {name!r}: no such folder")


def check_packages(recipe: Recipe, *keys: str) -> None:
    """Refuse optional packages that are not installed. See `check`."""
    for prefix, table in _tables(recipe, keys):
        for need, extra in table.extras():
            extras.require(extra, f"{prefix}{need}")


def _tables(recipe: Recipe, keys: tuple[str, ...]) -> Iterator[tuple[str, Table]]:
    for key in keys:
        table: Any = reduce(getattr, key.split("."), recipe)
        if table is not None:
            yield from table.tables(f"{key}.")
