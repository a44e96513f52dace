"""Units of a program, one a statement or a header: compared in a canonical form, written as they were.

The canonical form is Python's own (`ast.unparse`): comments, layout and quotes do not count. Statements that share a
line are one unit.
"""

import ast
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from stepalign.trace import Trace
from stepalign.trace.code import line_starts, parse_program, program_of


class Unit(NamedTuple):
    """A statement or header: its canonical lines, and its first and last line in the program, counted from 1."""

    text: str
    first: int
    last: int


def parse(program: str) -> ast.Module | None:
    """Parse a program; None where Python cannot parse it, or not write it again."""
    tree = parse_program(program)
    try:
        if tree is not None:
            ast.unparse(tree)
    except (ValueError, RecursionError):  # an integer of too many digits, or nesting too deep
        return None
    return tree


def units(tree: ast.Module, lines: Sequence[str]) -> list[Unit]:
    """Divide a program; `lines` are its own."""
    canonical = ast.unparse(tree)
    again = ast.parse(canonical)
    places: dict[int, int] = {}
    for own, other in zip(_parts(tree), _parts(again), strict=True):
        places.setdefault(other.lineno, own.lineno)
    found: list[Unit] = []
    for number, line in enumerate(canonical.split("\n"), start=1):
        first = places.get(number)
        if first is None and (word := re.match(r" *(else|finally):$", line)):
            after = min((place for canon, place in places.items() if canon > number), default=len(lines))
            above = range(after, found[-1].first, -1)
            first = next((k for k in above if lines[k - 1].lstrip().startswith(word[1])), None)
        if first is None or (found and first <= found[-1].first):
            found[-1] = found[-1]._replace(text=f"{found[-1].text}\n{line}")
        else:
            found.append(Unit(line, first, first))
    ends = [*(unit.first - 1 for unit in found[1:]), len(lines)]
    return [unit._replace(last=_last_code_line(lines, unit.first, end)) for unit, end in zip(found, ends, strict=True)]


def _parts(tree: ast.AST) -> Iterator[ast.stmt | ast.expr | ast.ExceptHandler | ast.pattern]:
    """Yield what begins a line of the canonical form, in the same order for equal trees."""
    for node in ast.walk(tree):
        yield from getattr(node, "decorator_list", [])
        if isinstance(node, ast.stmt | ast.ExceptHandler):
            yield node
        elif isinstance(node, ast.match_case):
            yield node.pattern


def _last_code_line(lines: Sequence[str], first: int, end: int) -> int:
    code = (k for k in range(end, first, -1) if lines[k - 1].strip() and not lines[k - 1].lstrip().startswith("#"))
    return next(code, first)


class Source(NamedTuple):
    """The program of a rollout, line by line: as it stands in the text, and without its fence's indentation."""

    raw: list[str]
    lines: list[str]
    tree: ast.Module
    """The statements of the part that parses."""
    num_parsed: int
    """Lines of that part."""

    @property
    def fence_indent(self) -> str:
        """White space before each line in the text."""
        pairs = [(raw.rstrip(), line.rstrip()) for raw, line in zip(self.raw, self.lines, strict=True) if line.strip()]
        return min((raw[: len(raw) - len(line)] for raw, line in pairs), key=len, default="")

    @property
    def newline(self) -> str:
        """The characters that end its lines."""
        return "\r\n" if any(line.endswith("\r\n") for line in self.raw) else "\n"

    @property
    def indent(self) -> str:
        """One level of indentation."""
        indents = (match[0] for line in self.lines if (match := re.match(r"[ \t]+(?=[^\s#])", line)))
        return min(indents, key=len, default="    ")


def source_of(trace: Trace) -> Source:
    """Read the program of a trace that has one."""
    starts, end = line_starts(trace), trace.steps[-1].end
    raw = [trace.text[a:b] for a, b in zip(starts, [*starts[1:], end], strict=True)]
    program = program_of(trace).replace("\r\n", "\n").replace("\r", "\n").split("\n")
    lines = [*program, *[""] * (len(raw) - len(program))]
    tree, parsed = parse("\n".join(lines)), len(lines)
    if tree is None:
        parsed = next((trace.text.count("\n", starts[0], step.start) for step in trace.steps[-1:]), 0)
        tree = parse("\n".join(lines[:parsed]))
    return Source(raw, lines, tree, parsed) if tree else Source(raw, lines, ast.Module([], []), 0)
