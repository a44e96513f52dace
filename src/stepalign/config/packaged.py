"""Recipes by name: those that ship with the package, so that a run begins without a clone.

stepalign recipes                          # list them
stepalign train quickstart                 # by name, wherever a recipe's file is wanted
stepalign recipes quickstart --out my.toml # copy one to change it
"""

import difflib
import re
import textwrap
from collections.abc import Mapping
from pathlib import Path

from stepalign.arguments import checked
from stepalign.assets import LAB_RECIPES, RECIPES
from stepalign.errors import StepalignError
from stepalign.io import write_atomically


def names() -> Mapping[str, Path]:
    """Return the files of the shipped recipes by name: the path below `recipes/`, and `lab/…` for the lab's."""
    folders = {"": RECIPES, "lab/": LAB_RECIPES}
    return {
        prefix + path.relative_to(folder).with_suffix("").as_posix(): path
        for prefix, folder in folders.items()
        for path in sorted(folder.rglob("*.toml"))
    }


def locate(path: Path | str) -> Path:
    """Return a recipe's file: that of a path where there is one, else that of a shipped recipe's name."""
    path = Path(path)
    return path if path.suffix == ".toml" or path.is_file() else names().get(path.as_posix(), path)


def summary(file: Path) -> str:
    """Return the first sentence of the comment that a recipe begins with, within a terminal's width."""
    comment = re.match(r"(?:# .+\n)*", file.read_text(encoding="utf-8"))
    text = " ".join(line.removeprefix("# ") for line in comment[0].splitlines()) if comment else ""
    return textwrap.shorten(re.split(r"(?<=\.)\s", text, maxsplit=1)[0].rstrip(":."), 72, placeholder=" …")


@checked
def copy(name: str, out: Path | str) -> Path:
    """Write a shipped recipe to a file of one's own, which extends what the recipe extends, by name.

    Raises:
        StepalignError: there is no such recipe, or the file exists.
    """
    shipped, out = names(), Path(out)
    if name not in shipped:
        close = difflib.get_close_matches(name, shipped, n=1)
        known = f"did you mean {close[0]}?" if close else "`stepalign recipes` lists them"
        raise StepalignError(f"no recipe {name!r} ships with the package; {known}")
    if out.exists():
        raise StepalignError(f"{out}: exists; choose another file with --out")
    by_file = {path.resolve(): each for each, path in shipped.items()}

    def by_name(match: re.Match[str]) -> str:
        parent = (shipped[name].parent / match[1]).resolve()
        return f'extends = "{by_file.get(parent, match[1])}"'

    text = shipped[name].read_text(encoding="utf-8")
    write_atomically(out, re.sub(r'^extends = "(.+)"', by_name, text, flags=re.MULTILINE))
    return out
