"""Lay out the pages of the documentation's site, for MkDocs or another generator to build.

    python -m tools.site build/docs

They are the pages of `docs/`, the README as the first one, and the files beside `docs/` to which they link. Sections
that follow from the package are filled in.
"""

import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from stepalign.config import packaged
from tools.site import keys

ROOT = Path(__file__).parents[2]
BESIDE = ("CHANGELOG.md", "CONTRIBUTING.md", "CITATION.cff", "LICENSE", "examples/first_run.ipynb")
"""Files outside `docs/` to which pages link."""


def lay_out(out: Path) -> None:
    """Write all pages into a folder, which is emptied first."""
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(ROOT / "docs", out)
    for name in BESIDE:
        (out / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, out / name)
    home = (ROOT / "README.md").read_text(encoding="utf-8")
    (out / "index.md").write_text(f"---\nhide: [navigation]\n---\n{home}", encoding="utf-8")
    for page in out.glob("*.md"):
        page.write_text(filled_in(page.read_text(encoding="utf-8")), encoding="utf-8")


def filled_in(text: str) -> str:
    """Return a page with its generated sections, and with links into the one folder of the site."""
    text = re.sub(r"\]\((?:\.\./|docs/)", "](", text).replace("](README.md", "](index.md")
    for mark, section in SECTIONS.items():
        text = text.replace(mark, section()) if mark in text else text
    return text


def shipped_recipes() -> str:
    """Return a table of the recipes that ship with the package."""
    rows = (f"| `{name}` | {packaged.summary(path)} |" for name, path in packaged.names().items())
    return "\n".join(["| recipe | |", "|---|---|", *rows])


SECTIONS: dict[str, Callable[[], str]] = {
    "(`make docs` lists every key here.)": keys.markdown,
    "(`make docs` lists them here.)": shipped_recipes,
    "(`make docs` shows signatures and docstrings here.)": str,
}
"""What takes the place of a page's sentence."""


if __name__ == "__main__":
    lay_out(Path(sys.argv[1]))
