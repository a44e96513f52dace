"""Pages of the site that follow from the package: keys of recipes, shipped recipes, links."""

import re
from pathlib import Path

import pytest

import stepalign
from stepalign.config import packaged
from stepalign.config.recipe import Recipe
from stepalign.config.registry import FAMILIES
from tools.site import keys
from tools.site.__main__ import ROOT, SECTIONS, filled_in, lay_out
from tools.site.hooks import on_page_content


@pytest.fixture(scope="module")
def reference() -> str:
    return keys.markdown()


def section(text: str, title: str) -> str:
    return re.split(r"^#{2,3} ", text.split(f"# {title}\n", 1)[1], maxsplit=1, flags=re.M)[0]


def test_every_table_and_kind_of_a_recipe_has_one_section(reference: str) -> None:
    titles = re.findall(r"^#+ (.+)$", reference, flags=re.M)
    assert len(titles) == len(set(titles))
    tables = {title.rsplit(": ", 1)[-1] for title in titles}
    assert {key for key in Recipe.model_fields if f"[table](#{key})" in reference} <= tables
    kinds = {kind for name, family in FAMILIES.items() if name != "strategy" for kind in family.tables}
    assert kinds <= tables


def test_every_link_of_the_reference_has_its_section(reference: str) -> None:
    slugs = {
        re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")
        for title in re.findall(r"^#+ (.+)$", reference, flags=re.M)
    }
    assert set(re.findall(r"\(#([^)]+)\)", reference)) <= slugs


@pytest.mark.parametrize(
    ("title", "row"),
    [
        ("training", "| `max_steps` ↻ | integer > 0 | `100` | The number of steps. |"),
        ("model", "| `name_or_path` | text | required | A directory"),
        ("critic: openai", "| `base_url` ↻ | list of text | required | One URL"),
        ("critic: program", '| `on_failure` | `"refsol"`, `"drop"` | `"drop"` | The fallback'),
        ("critic", "| `max_failure_share` ↻ | number ≥ 0 ≤ 1 | `0.5` |"),
        ("evaluation", "| `sampling` | [table](#sampling) |  | Sampling of the evaluation's completions. |"),
        ("problems.train: hub", "| `columns` | [table](#problemstraincolumns) |"),
    ],
)
def test_a_key_has_its_type_range_default_and_sentence(reference: str, title: str, row: str) -> None:
    assert row in section(reference, title)


def test_every_key_says_what_it_is(reference: str) -> None:
    rows = [line for line in reference.splitlines() if line.startswith("| `")]
    assert len(rows) > 200
    silent = [row for row in rows if row.endswith("|  |") and "[table]" not in row]
    assert not silent


def test_pages_link_within_the_site(tmp_path: Path) -> None:
    lay_out(tmp_path / "pages")
    assert not any(mark in page.read_text() for page in (tmp_path / "pages").glob("*.md") for mark in SECTIONS)
    for page in (tmp_path / "pages").glob("*.md"):
        for link in re.findall(r"\]\(([^)#\s]+)", page.read_text()):
            assert "://" in link or (page.parent / link).exists(), f"{page.name}: {link}"


def test_shipped_recipes_are_listed() -> None:
    table = filled_in("(`make docs` lists them here.)")
    assert all(f"| `{name}` | " in table for name in packaged.names())


def test_every_page_is_in_the_navigation_and_every_name_in_the_api() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text().split("\nnav:\n")[1]
    pages = {page.name for page in (ROOT / "docs").glob("*.md")} | {"index.md", "CHANGELOG.md", "CONTRIBUTING.md"}
    assert set(re.findall(r"[\w-]+\.md", navigation)) == pages
    api = (ROOT / "docs" / "api.md").read_text()
    names = re.findall(r"^::: stepalign\.(\w+)$|heading: (\w+)", api, flags=re.M)
    assert sorted(name or heading for name, heading in names) == sorted({*stepalign.__all__} - {"__version__"})


def test_each_cell_of_a_table_has_its_columns_name() -> None:
    head = "<thead><tr><th>a</th><th align='left'><code>b</code>, \"%\"</th></tr></thead>"
    page = (
        f"<table>{head}<tbody><tr><td>1</td><td align='left'>2</td></tr><tr><td>3</td><td>4</td></tr></tbody></table>"
    )
    labelled = on_page_content(f"<p>{page}</p>{page}")
    assert re.findall(r"<td data-label=\"(.*?)\"(?: align='left')?>(\d)", labelled) == 2 * [
        ("a", "1"), ("b, %", "2"), ("a", "3"), ("b, %", "4"),
    ]  # fmt: skip
    assert re.sub(' data-label=".*?"', "", labelled) == f"<p>{page}</p>{page}"
