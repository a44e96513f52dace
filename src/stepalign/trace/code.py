"""Solutions that are Python programs: the last fenced block is the program, its statements are the steps.

A step is a top-level statement; functions and classes are opened, so that each statement of a body is a step, and so is
the header with its decorators and docstring. A compound statement of up to `MAX_BLOCK_LINES` lines is one step, a
longer one is opened like a function. Comments directly above a statement and the line of an `else:` belong to the step
that they introduce. Statements that share a line are one step. So steps are whole lines, and a step's title names them:
`lines 4–6`, counted within the program as a traceback counts.

A program that does not parse keeps its longest parsable beginning; the rest is one step. Text around the program, the
fences included, is `prose`. Left out: other languages, whose fences are no program; programs without a fence, because
nothing tells them from prose.
"""

import ast
import re
import warnings
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import islice, pairwise
from typing import NamedTuple

from stepalign.trace.base import Section, Trace
from stepalign.trace.thoughts import answer_end
from stepalign.trace.thoughts import response_start as find_response_start

NO_PROGRAM = "no fenced program"
SEVERAL_PROGRAMS = "several fenced programs"
UNCLOSED = "a fence that is not closed"
SYNTAX_ERROR = "a program that does not parse"

MAX_BLOCK_LINES = 4
"""Lines up to which a compound statement is one step."""
_MAX_TRIES = 32
"""Beginnings of a program that are tried to be parsed."""
_MAX_CLOSINGS = 8
"""Lines that may close a fence, which are tried until the program between parses."""
_PYTHON = frozenset({"", "py", "py3", "python", "python3", "ipython", "pycon"})
_LINE = re.compile(r"[^\r\n]*(?:\r\n|\r|\n|\Z)")
_FENCE = re.compile(r"^(?P<indent>[ \t]*)(?P<mark>`{3,}|~{3,})[ \t]*(?P<info>[^\r\n`]*)(?:\r\n|\r|\n|\Z)", re.MULTILINE)


class Block(NamedTuple):
    """A fenced block: the characters `[start, end)` between its fences."""

    start: int
    end: int
    indent: str
    """White space before the opening fence, which each line of the program may have as well."""
    closed: bool


class CodeFormat:
    """A program in the last fenced block, with prose around it."""

    def parse(self, text: str, response_start: int | None = None) -> Trace:
        """Read a response's program and the prose around it."""
        return _parse(text, response_start)

    def final_answers(self, trace: Trace, *, is_cut: bool = False) -> tuple[str, ...]:
        """Return the program, without the indentation of its fence; line numbers stay."""
        program = program_of(trace)
        return (program,) if program.strip() else ()

    def write(self, solution: str, answer: str) -> str | None:
        """Write a reference program as a response. None where it would end its own fence."""
        text = f"```python\n{solution.strip()}\n```"
        return text if program_of(_parse(text, 0)).strip() == solution.strip() else None


def program_of(trace: Trace) -> str:
    """Return a trace's program; empty without one. Its lines are those of the text, in number and order."""
    if not trace.steps:
        return ""
    start, end = trace.steps[0].start, trace.steps[-1].end
    fence = trace.text[:start].rstrip("\r\n").rpartition("\n")[2]
    return _dedent(trace.text[start:end], fence[: len(fence) - len(fence.lstrip(" \t"))]).rstrip()


def line_starts(trace: Trace) -> list[int]:
    """Return the character at which each line of the program begins."""
    if not trace.steps:
        return []
    start, end = trace.steps[0].start, trace.steps[-1].end
    return [match.start() for match in _LINE.finditer(trace.text, start, end) if match.start() < match.end()]


def step_at(trace: Trace, line: int) -> int:
    """Return the step that has a line of the program, both counted from 1; the last one for a line behind the end."""
    starts = line_starts(trace)
    at = starts[min(max(line, 1), len(starts)) - 1]
    return bisect_right([step.start for step in trace.steps], at)


def lines_of(trace: Trace, step: Section) -> tuple[int, int]:
    """Return a step's first and last line, counted from 1 within the program. Blank lines at its end do not count."""
    starts = line_starts(trace)
    body = trace.content(step).rstrip()
    return bisect_right(starts, step.start), bisect_right(starts, step.start + max(len(body) - 1, 0))


@lru_cache(maxsize=256)  # several stages read the same rollout's text
def _parse(text: str, response_start: int | None) -> Trace:
    begin = find_response_start(text) if response_start is None else response_start
    blocks = list(_blocks(text, begin, answer_end(text, begin)))
    if not blocks:
        whole = (Section("prose", None, "", 0, len(text)),) if text else ()
        return Trace(text, whole, (NO_PROGRAM,), begin, "code")
    block = blocks[-1]
    lines = [match[0] for match in _LINE.finditer(text, block.start, block.end) if match[0]]
    starts, parsed = _step_starts([_dedent(line, block.indent) for line in lines])
    offsets = [block.start]
    for line in lines:
        offsets.append(offsets[-1] + len(line))
    bounds = [*(offsets[line - 1] for line in starts), block.end]
    sections = []
    for number, ((start, end), first, following) in enumerate(
        zip(pairwise(bounds), starts, [*starts[1:], len(lines) + 1], strict=True), start=1
    ):
        last = max((k for k in range(first, following) if lines[k - 1].strip()), default=first)
        title = f"line {first}" if first == last else f"lines {first}–{last}"
        sections.append(Section("step", number, title, start, end))
    prose = [Section("prose", None, "", start, end) for start, end in ((0, block.start), (block.end, len(text)))]
    sections = [section for section in (prose[0], *sections, prose[1]) if section.start < section.end]
    faults = (
        (SEVERAL_PROGRAMS, len(blocks) > 1),
        (UNCLOSED, not block.closed),
        (SYNTAX_ERROR, not parsed),
    )
    return Trace(text, tuple(sections), tuple(name for name, is_fault in faults if is_fault), begin, "code")


def _blocks(text: str, begin: int, end: int) -> Iterator[Block]:
    """Yield the fenced blocks that may be programs: not empty, and of Python or of no language."""
    fences = list(_FENCE.finditer(text, begin, end))
    index = 0
    while index < len(fences):
        opening = fences[index]
        index += 1
        closings = (k for k in range(index, len(fences)) if _closes(opening, fences[k]))
        candidates = list(islice(closings, _MAX_CLOSINGS))
        start, stop = opening.end(), end
        if candidates:
            # A fence inside a docstring closes nothing: the program would not parse up to there.
            closing = next((k for k in candidates if _parses(text[start : fences[k].start()], opening)), candidates[0])
            stop, index = fences[closing].start(), closing + 1
        language = opening["info"].split()[0].lower().strip("{}.") if opening["info"].strip() else ""
        if language in _PYTHON and text[start:stop].strip():
            yield Block(start, stop, opening["indent"], bool(candidates))
        if not candidates:
            return


def _closes(opening: re.Match[str], fence: re.Match[str]) -> bool:
    same = fence["mark"][0] == opening["mark"][0] and len(fence["mark"]) >= len(opening["mark"])
    return same and not fence["info"].strip() and len(fence["indent"]) <= len(opening["indent"]) + 3


def _parses(program: str, opening: re.Match[str]) -> bool:
    lines = [_dedent(match[0], opening["indent"]) for match in _LINE.finditer(program)]
    return isinstance(_tree("".join(lines)), ast.Module)


def _dedent(text: str, indent: str) -> str:
    return re.sub(rf"^[ \t]{{1,{len(indent)}}}", "", text, flags=re.MULTILINE) if indent else text


def parse_program(program: str) -> ast.Module | None:
    """Parse a program; None where it does not parse."""
    tree = _tree(program)
    return tree if isinstance(tree, ast.Module) else None


def _tree(program: str) -> ast.Module | int:
    """Parse a program, or return the line of its first error."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # an invalid escape
        try:
            return ast.parse(program)
        except SyntaxError as error:
            return error.lineno or 1
        except (ValueError, RecursionError, MemoryError):  # a null character, or nesting too deep
            return 1


def _step_starts(lines: Sequence[str]) -> tuple[list[int], bool]:
    """Return the first line of each step, counted from 1, and whether the whole program parses."""
    body, is_whole = _longest_parsable(lines)
    starts = list(_suite_starts(body, lines, 0))
    if not is_whole:
        behind = body[-1].end_lineno or 0 if body else 0
        starts += [line for line in range(behind + 1, len(lines) + 1) if lines[line - 1].strip()][:1]
    return [1, *starts[1:]], is_whole


def _longest_parsable(lines: Sequence[str]) -> tuple[list[ast.stmt], bool]:
    """Return the statements of the longest beginning that parses, and whether that is all."""
    end = len(lines)
    for _ in range(_MAX_TRIES):
        tree = _tree("".join(lines[:end]))
        if isinstance(tree, ast.Module):
            return tree.body, end == len(lines)
        end = min(end, tree) - 1
        if end <= 0:
            break
    return [], False


def _suite_starts(suite: Sequence[ast.stmt], lines: Sequence[str], above: int) -> Iterator[int]:
    """Yield the first line of each step of a suite. `above` is the last line that belongs to something else."""
    for statement in suite:
        first = min(each.lineno for each in (statement, *getattr(statement, "decorator_list", [])))
        before = lines[statement.lineno - 1].encode()[: statement.col_offset]
        if first > above and not before.strip():
            yield _with_comments(first, lines, above)
        if _is_opened(statement):
            yield from _inner_starts(statement, lines)
        above = statement.end_lineno or above


def _inner_starts(statement: ast.stmt, lines: Sequence[str]) -> Iterator[int]:
    body: list[ast.stmt] = getattr(statement, "body", [])
    above = statement.lineno
    if isinstance(statement, _SCOPES) and _is_docstring(body[0]):
        above, body = body[0].end_lineno or above, body[1:]
    yield from _suite_starts(body, lines, above)
    above = body[-1].end_lineno or above if body else above
    for first, suite in _clauses(statement, lines):
        if first > above:
            yield _with_comments(first, lines, above)
        if _is_opened(suite[0]):
            yield from _inner_starts(suite[0], lines)
        yield from _suite_starts(suite[1:], lines, suite[0].end_lineno or first)
        above = suite[-1].end_lineno or above


def _clauses(statement: ast.stmt, lines: Sequence[str]) -> Iterator[tuple[int, Sequence[ast.stmt]]]:
    """Yield line and suite of each `except`, `case`, `elif`, `else` and `finally`."""
    for handler in getattr(statement, "handlers", []):
        yield handler.lineno, handler.body
    for case in getattr(statement, "cases", []):
        yield case.pattern.lineno, case.body
    orelse: list[ast.stmt] = getattr(statement, "orelse", [])
    while orelse and lines[orelse[0].lineno - 1].lstrip().startswith("elif") and isinstance(orelse[0], ast.If):
        yield orelse[0].lineno, orelse[0].body
        orelse = orelse[0].orelse
    for suite, word in ((orelse, "else"), (getattr(statement, "finalbody", []), "finally")):
        if suite:
            first = suite[0].lineno
            above = (line for line in range(first, 0, -1) if lines[line - 1].lstrip().startswith(word))
            yield next(above, first), suite


def _with_comments(first: int, lines: Sequence[str], above: int) -> int:
    while first - 1 > above and lines[first - 2].lstrip().startswith("#"):
        first -= 1
    return first


_SCOPES = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
_COMPOUND = (ast.If, ast.For, ast.AsyncFor, ast.While, ast.With, ast.AsyncWith, ast.Try, ast.TryStar, ast.Match)


def _is_opened(statement: ast.stmt) -> bool:
    length = (statement.end_lineno or statement.lineno) - statement.lineno + 1
    return isinstance(statement, _SCOPES) or (length > MAX_BLOCK_LINES and isinstance(statement, _COMPOUND))


def _is_docstring(statement: ast.stmt) -> bool:
    value = statement.value if isinstance(statement, ast.Expr) else None
    return isinstance(value, ast.Constant) and isinstance(value.value, str)
