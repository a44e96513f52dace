"""Pages in a real browser: none scrolls sideways, on a telephone or on a desk. Run with `pytest -m slow`."""

import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

import stepalign
from stepalign.config import Recipe

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
LONG = "a-run-whose-name-is-wider-than-a-telephone-and-has-hardly-a-place-to-break_0123456789"
PAGES = ["run", "comparison", "preview", "preflight", "probe"]
WIDTHS = [390, 1280]


@pytest.fixture(scope="module")
def pages(recipe_in: Callable[..., Recipe], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The pages of a tiny run with a long name, by kind."""
    folder = tmp_path_factory.mktemp("pages")
    runs = [recipe_in(folder, f"name={name}", "training.max_steps=2") for name in (LONG, f"{LONG}-again")]
    results = [stepalign.train(recipe) for recipe in runs]
    stepalign.write_report([result.folder for result in results], folder / "comparison.html")
    stepalign.preview(runs[0], out=folder / "preview.html")
    stepalign.preflight(runs[0], folder / "preflight")
    return {
        "run": results[0].folder / "report.html",
        "comparison": folder / "comparison.html",
        "preview": folder / "preview.html",
        "preflight": folder / "preflight" / "preflight.html",
        "probe": folder / "preflight" / "probe" / "probe.html",
    }


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The documentation's site, as `make docs` builds it."""
    if find_spec("mkdocs") is None:
        pytest.skip('MkDocs is not installed: pip install "stepalign[docs]"')
    out = tmp_path_factory.mktemp("site")
    for module in (["tools.site", "build/docs"], ["mkdocs", "build", "--quiet", "--site-dir", str(out)]):
        subprocess.run([sys.executable, "-m", *module], cwd=ROOT, check=True)
    return out


def wider(browser: Any, page: Path, width: int) -> str:
    """What reaches over the window, with every fold open; empty for nothing."""
    browser.get(page.as_uri())
    browser.execute_script("document.querySelectorAll('details').forEach((fold) => { fold.open = true })")
    found = int(browser.execute_script("return document.documentElement.scrollWidth"))
    return f"{page}: {found} > {width}" if found > width else ""


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("kind", PAGES)
def test_a_page_does_not_scroll_sideways(
    kind: str, width: int, pages: dict[str, Path], browser: Any, in_window: Callable[[int], Any]
) -> None:
    with in_window(width):
        assert not wider(browser, pages[kind], width)


@pytest.mark.parametrize("width", WIDTHS)
def test_no_page_of_the_site_scrolls_sideways(
    width: int, site: Path, browser: Any, in_window: Callable[[int], Any]
) -> None:
    found = sorted(site.rglob("index.html"))
    assert len(found) > 40
    with in_window(width):
        assert not list(filter(None, (wider(browser, page, width) for page in found)))
