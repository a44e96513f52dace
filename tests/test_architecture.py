"""The structure of the package: imports without circles, and docstrings in plain words."""

import ast
import re
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from stepalign.config.registry import FAMILIES

SOURCE = Path(__file__).parents[1] / "src" / "stepalign"
MODULES = {
    ".".join(("stepalign", *path.relative_to(SOURCE).with_suffix("").parts)).removesuffix(".__init__"): path
    for path in SOURCE.rglob("*.py")
}
NO_LOGIC = {
    "stepalign",
    "stepalign.__main__",
    "stepalign.api",
    "stepalign.launch",
    *(name for name in MODULES if name.startswith("stepalign.cli")),
}
"""Modules that may import every room, and that no room imports."""


def imports(module: str) -> Iterator[str]:
    """The package's modules that a module imports, those of a function or of type checking included."""
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in MODULES)
        elif isinstance(node, ast.ImportFrom) and node.module in MODULES:
            for alias in node.names:
                submodule = f"{node.module}.{alias.name}"
                yield submodule if submodule in MODULES else node.module


def room_of(module: str) -> str:
    return ".".join(module.split(".")[:2])


def assert_no_circle(graph: dict[str, set[str]]) -> None:
    try:
        tuple(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail("an import circle: " + " → ".join(error.args[1]))


def test_no_module_imports_itself_in_a_circle() -> None:
    # The package's own module names the functions of every room, for type checkers alone.
    graph = {name: set(imports(name)) - {name, "stepalign"} for name in MODULES if name != "stepalign"}
    assert sum(map(len, graph.values())) > 300
    assert_no_circle(graph)


def test_no_room_imports_itself_in_a_circle() -> None:
    graph: dict[str, set[str]] = {}
    for name in MODULES:
        if name != "stepalign":
            rooms = {room_of(other) for other in imports(name)} - {room_of(name), "stepalign"}
            graph.setdefault(room_of(name), set()).update(rooms)
    assert_no_circle(graph)


def test_a_room_imports_rooms_of_its_row_and_above() -> None:
    """The table of packages in docs/architecture.md: it has all of them, in an order that imports follow."""
    table = (SOURCE.parents[1] / "docs" / "architecture.md").read_text().partition("| package | owns |")[2]
    rows = re.findall(r"^\| (`.*?) \|", table, re.MULTILINE)
    row_of = {f"stepalign.{name}": number for number, row in enumerate(rows) for name in re.findall(r"`(\w+)`", row)}
    assert row_of.keys() == {room_of(name) for name in MODULES} - {"stepalign", "stepalign.__main__"}
    for name in MODULES.keys() - {"stepalign", "stepalign.__main__"}:
        for other in {room_of(found) for found in imports(name)} - {"stepalign"}:
            assert row_of[other] <= row_of[room_of(name)], f"{name} imports {other}"


def test_no_room_imports_the_entry_points() -> None:
    for name in MODULES.keys() - NO_LOGIC:
        for other in imports(name):
            allowed = other not in NO_LOGIC - {"stepalign"} or name in {"stepalign.lab.running"}
            assert allowed, f"{name} imports {other}"


def docstrings() -> Iterator[tuple[str, str]]:
    """Every docstring, those of attributes included, and where it is."""
    for name, path in MODULES.items():
        for node in ast.walk(ast.parse(path.read_text())):
            body = getattr(node, "body", [])
            for statement in body if isinstance(body, list) else []:
                value = getattr(statement, "value", None)
                if isinstance(statement, ast.Expr) and isinstance(value, ast.Constant) and isinstance(value.value, str):
                    yield f"{name}:{statement.lineno}", value.value.strip()


def test_a_docstring_begins_with_a_short_statement() -> None:
    """No question word, and at most 20 words. The aim is 15."""
    faults = []
    for where, text in docstrings():
        first = re.split(r"(?<=[.:;])\s|\n\n", text, maxsplit=1)[0]
        words = [word for word in re.split(r"[\s/]+", first) if re.search(r"\w", word)]
        if re.match(r"(What|Whether|Where|How|Who|Which|When|Why)\b", text) or len(words) > 20:
            faults.append(f"{where}: {first}")
    assert not faults, "\n".join(faults)


def test_modules_are_short() -> None:
    lengths = {name: len(path.read_text().splitlines()) for name, path in MODULES.items()}
    assert max(lengths.values()) <= 350, max(lengths, key=lengths.__getitem__)


def lengths_of(path: Path) -> dict[str, int]:
    """The lines of each class, function and method of a module, by its dotted name."""
    lengths = {}
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            lengths[node.name] = node.end_lineno - node.lineno + 1
            for method in getattr(node, "body", []):
                if isinstance(method, ast.FunctionDef):
                    lengths[f"{node.name}.{method.name}"] = method.end_lineno - method.lineno + 1
    return lengths


STREAM = ("submit", "graded", "results", "drain", "_grade", "_critique")


def test_the_way_of_a_rollout_is_short_and_as_the_page_says() -> None:
    """The table of docs/architecture.md: its functions exist, and their lines are about as many as it says."""
    page = (SOURCE.parents[1] / "docs" / "architecture.md").read_text()
    rows = [row.strip("|").split("|") for row in re.findall(r"^\| \d+\. .*\|$", page, re.MULTILINE)]
    assert len(rows) > 10
    total = 0
    for _, files, names, stated in rows:
        known: dict[str, int] = {}
        for file in re.findall(r"`([^`]+)`", files):
            known |= lengths_of(SOURCE / file)
        lines, owner = 0, ""
        for name in re.findall(r"`([^`]+)`", names):
            owner = owner if name.startswith(".") else name.split(".")[0]
            dotted = owner + name if name.startswith(".") else name
            # The stream's set-up and threads' plumbing can be skipped.
            parts = [f"{dotted}.{method}" for method in STREAM] if dotted == "CritiqueStream" else [dotted]
            lines += sum(known[part] for part in parts)
        assert abs(lines - int(stated)) <= 20, f"{files}: {lines} lines, the page says {stated}"
        total += lines
    assert total <= 1300


def test_neither_the_loop_nor_sampling_imports_an_algorithm() -> None:
    algorithms = {place.partition(":")[0] for place in FAMILIES["algorithm"].implementations.values()}
    rooms = [name for name in MODULES if name.startswith(("stepalign.trainer", "stepalign.rollouts"))]
    assert len(algorithms) > 5
    assert not {name for module in rooms for name in imports(module)} & algorithms
