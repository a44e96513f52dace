"""The pages of documentation: links, files, commands, keys and names that exist."""

import ast
import pkgutil
import re
import shlex
import tomllib
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest
import typer

import stepalign
from stepalign import cli, config
from stepalign.config import packaged
from stepalign.config.migrate import KEYS
from stepalign.config.recipe import Recipe
from stepalign.config.registry import FAMILIES, Table, nested

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
OLD_NAMES = {ROOT / "CHANGELOG.md", ROOT / "docs" / "migrating.md"}
"""Pages that say what an old name has become."""
COMMANDS = typer.main.get_command(cli.app).commands  # type: ignore[attr-defined]
FRAGMENT = """
name = "fragment"
model = { name_or_path = "a/model" }
problems = { train = { source = "sums" } }
sampler = { kind = "vllm" }
critic = { kind = "openai", base_url = "http://localhost:8000/v1", model = "a/critic" }
"""
"""What a recipe of the documentation leaves out."""

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def blocks(page: Path) -> Iterator[tuple[str, str]]:
    """Language and text of the fenced and the indented blocks of a page."""
    text = page.read_text()
    yield from re.findall(r"^```(\w*)[^\n`]*\n(.*?)^```$", text, flags=re.M | re.S)
    prose = re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S)
    for block in re.findall(r"(?<=\n\n)((?: {4}.*\n+)+)", prose):
        lines = "".join(line[4:] for line in block.splitlines(keepends=True))
        yield ("toml" if lines.startswith("[") else ""), lines


def spans(page: Path) -> list[str]:
    """The code in the sentences of a page."""
    prose = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.M | re.S)
    return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose)]


def commands(page: Path) -> Iterator[list[str]]:
    """The words of every `stepalign` command of a page, after `stepalign`."""
    lines = [line for language, text in blocks(page) if language in ("", "bash") for line in _joined(text).splitlines()]
    for line in (*lines, *spans(page)):
        found = re.search(r"(?:^|-m |^python -m )stepalign(?:\.cli)? +([a-z].*)", line)
        if found:
            yield shlex.split(found[1].rstrip("'") if found[1].count("'") % 2 else found[1], comments=True)


def _joined(text: str) -> str:
    return re.sub(r"\\\n\s*", " ", text)


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), flags=re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@each_page
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        path, _, anchor = link.partition("#")
        if "://" not in link:
            target = page.parent / path if path else page
            assert target.exists(), link
            assert not anchor or anchor in anchors(target), link


def test_every_page_is_linked_from_the_readme() -> None:
    assert set(re.findall(r"docs/[\w-]+\.md", PAGES[0].read_text())) == {f"docs/{page.name}" for page in PAGES[2:]}


@each_page
def test_a_page_can_be_read_at_once(page: Path) -> None:
    if page.name != "CHANGELOG.md":  # it grows with each release
        assert len(page.read_text().splitlines()) <= 150


@each_page
def test_files_that_are_named_exist(page: Path) -> None:
    names = re.findall(r"(?<![\w/.\-])(?:bench|docs|recipes|scripts|src|tests|tools)/[\w./*-]*\w", page.read_text())
    gone = {"bench/plan.py", "bench/handover.py", "recipes/prompts"} if page in OLD_NAMES else set()
    for name in set(names) - gone:
        assert list(ROOT.glob(name)), name
    for name in spans(page):
        if re.fullmatch(r"[\w/]+/[\w.]+\.(?:py|txt|toml)", name) and page not in OLD_NAMES:
            folders = (ROOT, ROOT / "src" / "stepalign", ROOT / "recipes")
            assert any((folder / name).exists() for folder in folders), name


@each_page
def test_flags_of_scripts_exist(page: Path) -> None:
    for script, arguments in re.findall(r"python ((?:bench|scripts)/\w+\.py)([^`|\n]*)", _joined(page.read_text())):
        for flag in re.findall(r"--[\w-]+", arguments):
            assert f'"{flag}"' in (ROOT / script).read_text(), f"{script} {flag}"


@each_page
def test_commands_and_their_flags_exist(page: Path, tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text(FRAGMENT)
    for name, *words in commands(page):
        assert name in COMMANDS, f"stepalign {name}"
        arguments = ["1" if word in ("…", "N") else word for word in words if not word.startswith("[")]
        try:
            context = COMMANDS[name].make_context(name, arguments)
        except Exception as error:  # typer does not export click's classes
            if type(error).__name__ == "MissingParameter":
                continue  # a sentence may leave out what it is not about
            raise AssertionError(f"stepalign {name}: {error}") from None
        overrides = [text.replace("…", "1") for text in context.params.get("overrides") or () if "=" in text]
        recipe = packaged.locate("lab/base" if name == "lab" else str(context.params.get("file")))
        recipe = ROOT / recipe  # a path stays as it is where it is absolute
        config.load(recipe if recipe.is_file() and recipe.suffix == ".toml" else tmp_path / "recipe.toml", overrides)


@each_page
def test_recipes_in_blocks_are_valid(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    (tmp_path / "base.toml").write_text(FRAGMENT)
    for language, text in blocks(page):
        if language == "toml":
            parent = tomllib.loads(text).get("extends")
            own = f'extends = "{tmp_path / "base.toml"}"\n{text}'
            if parent:
                own = text.replace(f'"{parent}"', f'"{packaged.locate(parent).resolve()}"')
            (tmp_path / "recipe.toml").write_text(own)
            config.load(tmp_path / "recipe.toml", trust=True)


@pytest.mark.parametrize("page", [page for page in PAGES if page not in OLD_NAMES], ids=lambda page: page.name)
def test_keys_that_are_named_exist(page: Path) -> None:
    for span in spans(page):
        path = re.match(r"([a-z_]+(?:\.[a-z_]+)+)(?:\s*=|$)", span)
        table = path[1].split(".")[0] if path else ""
        assert table not in KEYS[""], span
        if path and table in Recipe.model_fields and not re.search(r"\.(jsonl?|html|toml|py)$", path[1]):
            assert _exists(Recipe, path[1].split(".")), span


def _exists(table: type[Table] | None, parts: list[str]) -> bool:
    key, *rest = parts
    if table is None or key not in table.model_fields:
        return False
    family, inner = nested(table, key, {})
    kinds = family.tables.values() if family else [inner]
    return not rest or any(_exists(kind, rest) for kind in kinds)


@each_page
def test_python_names_exist(page: Path) -> None:
    for language, text in blocks(page):
        for node in ast.walk(ast.parse(text)) if language == "python" else ():
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith("stepalign"):
                module = import_module(str(node.module))
                assert all(hasattr(module, alias.name) for alias in node.names), ast.unparse(node)
            elif isinstance(node, ast.Attribute) and ast.unparse(node.value) == "stepalign":
                assert node.attr in stepalign.__all__, ast.unparse(node)
    for span in spans(page) if page not in OLD_NAMES else ():
        name = re.match(r"stepalign(?:\.[A-Za-z_]\w*)+", span)
        if name:
            pkgutil.resolve_name(name[0])


def test_the_page_on_resuming_lists_the_keys_that_may_change() -> None:
    page = (ROOT / "docs" / "resuming.md").read_text()
    section = page[page.index("## What may change") :].split("\n## ")[0]
    tables = [Recipe.model_construct(), *(table for family in FAMILIES.values() for table in family.tables.values())]
    for table in tables:
        keys = _runtime_keys(table if isinstance(table, type) else type(table))
        assert all(f"`{key}`" in section or f".{key}`" in section for key in keys), keys


def _runtime_keys(table: type[Table]) -> Iterator[str]:
    for name, field in table.model_fields.items():
        if isinstance(field.json_schema_extra, dict) and field.json_schema_extra.get("runtime"):
            yield name
        elif isinstance(field.annotation, type) and issubclass(field.annotation, Table):
            yield from _runtime_keys(field.annotation)


@pytest.mark.parametrize(
    "file", sorted((ROOT / "recipes").rglob("*.toml")), ids=lambda file: str(file.relative_to(ROOT))
)
def test_the_train_commands_at_a_recipes_head_load_and_run_in_one_process(file: Path) -> None:
    head = re.sub(r" \\\n# +", " ", file.read_text())
    for line in re.findall(r"^# +stepalign train (.+)$", head, re.M):
        name, *overrides = shlex.split(re.sub(r"  +\(.*", "", line), comments=True)
        settings = config.load(packaged.locate(name), [one for one in overrides if not one.startswith("problems.")])
        assert settings.distributed.strategy in ("auto", "data_parallel"), line
        assert not (settings.sampler.kind == "vllm" and settings.model.dtype == "float32"), line
