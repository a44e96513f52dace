"""Programs that may be right, made of the solver's own program and the reference.

The reference takes the solver's names where the two programs have the same shape: parameters by position, other local
names by the statements that agree but for names. Then both are compared unit by unit (`units`). A candidate takes some
of the differences from the reference and keeps the solver's own lines elsewhere, as they are. Left out: changes within
a statement, because a critique speaks of whole steps.
"""

import ast
import difflib
import tokenize
from collections.abc import Iterator, Sequence
from contextlib import suppress
from io import StringIO
from itertools import combinations

from stepalign.critics.code import units as u
from stepalign.critics.code.units import Source, Unit

_MAX_DIFFERENCES = 5
"""Differences of which every choice is tried; of more, each alone and all together."""
_MAX_SHARE = 0.5
"""Largest share of the solver's units that a mend replaces."""
_Edit = tuple[int, int, Sequence[str]]
"""Units `[start, stop)` of the solver's, and the canonical lines in their place."""


def mends(source: Source, reference: str, entry_point: str, wrong_line: int) -> Iterator[list[str]]:
    """Yield candidates as raw lines: small repairs, the one of the wrong line first; then the reference's lines.

    Of the latter, the first keeps the solver's lines before the wrong one, the next what both begin with, the last
    nothing.
    """
    tree = u.parse(reference)
    if tree is None:
        return
    own = u.units(source.tree, source.lines) if source.tree.body else []
    tree = renamed(tree, source.tree, entry_point)
    other = u.units(tree, ast.unparse(tree).split("\n")) if tree.body else []
    matcher = difflib.SequenceMatcher(None, [unit.text for unit in own], [unit.text for unit in other], autojunk=False)
    edits: list[_Edit] = [
        (i, j, [unit.text for unit in other[k:m]]) for tag, i, j, k, m in matcher.get_opcodes() if tag != "equal"
    ]

    def is_at_line(edit: _Edit) -> bool:
        return any(unit.first <= wrong_line <= unit.last for unit in own[edit[0] : edit[1]])

    sizes = range(1, len(edits)) if len(edits) <= _MAX_DIFFERENCES else range(1, 2)
    choices = [choice for size in sizes for choice in combinations(edits, size)] + [tuple(edits)]
    small = [choice for choice in choices if _num_replaced(choice) <= _MAX_SHARE * len(own)]
    is_whole = source.num_parsed == len(source.lines)
    small = small if is_whole else [choice for choice in small if len(choice) == len(edits)]
    for choice in sorted(small, key=lambda choice: (len(choice), not any(map(is_at_line, choice)))):
        yield _applied(source, own, choice)
    if (kept := _kept_before(source, own, entry_point, wrong_line)) and (body := _body(other, entry_point)):
        yield _applied(source, own, [(kept, len(own), body)])
    yield _applied(source, own, edits)
    yield _applied(source, own, [(0, len(own), [unit.text for unit in other])])


def _num_replaced(choice: Sequence[_Edit]) -> int:
    return sum(max(stop - start, len(lines)) for start, stop, lines in choice)


def _applied(source: Source, own: Sequence[Unit], edits: Sequence[_Edit]) -> list[str]:
    """Write the program with some of its units replaced. What does not parse is left out."""
    written, line = list[str](), 1
    for start, stop, texts in edits:
        first = own[start].first if start < len(own) else (own[-1].last + 1 if own else 1)
        written += source.raw[line - 1 : first - 1]
        if written and not written[-1].endswith(("\n", "\r")):
            written[-1] += source.newline
        written += _written(source, texts)
        line = own[stop - 1].last + 1 if stop > start else first
    return written + source.raw[line - 1 : source.num_parsed]


def _written(source: Source, texts: Sequence[str]) -> list[str]:
    """Write canonical lines in the solver's own indentation and line ends. The inside of a docstring stays as it is."""
    written = []
    for text in texts:
        inside = _rows_in_strings(text)
        for row, line in enumerate(text.split("\n")):
            level = 0 if row in inside else (len(line) - len(line.lstrip(" "))) // 4
            written.append(source.fence_indent + source.indent * level + line[4 * level :] + source.newline)
    return written


def _rows_in_strings(text: str) -> set[int]:
    """Return the rows, counted from 0, that begin inside a string."""
    rows = set[int]()
    with suppress(tokenize.TokenError, IndentationError):  # a unit may be the header of a block alone
        for token in tokenize.generate_tokens(StringIO(text).readline):
            if token.type == tokenize.STRING:
                rows.update(range(token.start[0], token.end[0]))
    return rows


def _kept_before(source: Source, own: Sequence[Unit], entry_point: str, wrong_line: int) -> int:
    """Return the number of units to keep before the statement of the function's body that has the wrong line; or 0."""
    function = _function(source.tree, entry_point)
    if function is None:
        return 0
    inside = [statement.lineno for statement in function.body if statement.lineno <= wrong_line]
    is_inside = function.lineno < wrong_line <= (function.end_lineno or 0) or wrong_line > source.num_parsed
    if not inside or not is_inside:
        return 0
    first = inside[-1] if wrong_line <= source.num_parsed else (function.end_lineno or 0) + 1
    return sum(unit.first < first for unit in own)


def _body(other: Sequence[Unit], entry_point: str) -> list[str]:
    """Return the units of the reference function's body; none where there is more than the function before it."""
    texts = [unit.text for unit in other]
    header = next((k for k, text in enumerate(texts) if text.startswith(f"def {entry_point}(")), None)
    return texts[header + 1 :] if header == 0 else []


def _function(tree: ast.Module, name: str) -> ast.FunctionDef | None:
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    return next((node for node in functions if node.name == name), functions[-1] if functions and not name else None)


def renamed(reference: ast.Module, own: ast.Module, entry_point: str) -> ast.Module:
    """Give the reference's function the solver's names, as far as the two agree. Lines are those of `ast.unparse`."""
    reference = ast.parse(ast.unparse(reference))
    theirs, ours = (_function(tree, entry_point) for tree in (reference, own))
    if theirs is None or ours is None:
        return reference
    names = name_map(theirs, ours)
    taken = set(names.values())
    for name in sorted(_locals(theirs) - names.keys()):
        names[name] = f"{name}_2" if name in taken else name

    class _Rename(ast.NodeTransformer):
        def visit_Name(self, node: ast.Name) -> ast.Name:
            return ast.copy_location(ast.Name(names.get(node.id, node.id), node.ctx), node)

        def visit_arg(self, node: ast.arg) -> ast.arg:
            return ast.copy_location(ast.arg(names.get(node.arg, node.arg), node.annotation), node)

    _Rename().visit(theirs)
    return reference


def name_map(theirs: ast.FunctionDef, ours: ast.FunctionDef) -> dict[str, str]:
    """Map the reference's local names to the solver's, each to one."""
    names: dict[str, str] = {}

    def add(pairs: Iterator[tuple[str, str]]) -> None:
        for their_name, our_name in pairs:
            if their_name not in names and our_name not in names.values():
                names[their_name] = our_name

    positional = ([arg.arg for arg in (*f.args.posonlyargs, *f.args.args)] for f in (theirs, ours))
    add(zip(*positional, strict=False))
    shapes = [list(_shapes(function)) for function in (theirs, ours)]
    first, second = ([shape for shape, _ in part] for part in shapes)
    matcher = difflib.SequenceMatcher(None, first, second, autojunk=False)
    for block in matcher.get_matching_blocks():
        for k in range(block.size):
            add(zip(shapes[0][block.a + k][1], shapes[1][block.b + k][1], strict=False))
    return names


def _shapes(function: ast.FunctionDef) -> Iterator[tuple[str, list[str]]]:
    """Yield each statement with its local names replaced, and these names in their order."""
    local = _locals(function)
    for line in ast.unparse(function).split("\n")[1:]:
        stripped = line.strip()
        tree = u.parse(stripped) or u.parse(f"{stripped}\n pass")
        nodes = [node for node in ast.walk(tree) if isinstance(node, ast.Name) and node.id in local] if tree else []
        ordered = [node.id for node in sorted(nodes, key=lambda node: (node.lineno, node.col_offset))]
        for node in nodes:
            node.id = "_"
        yield (ast.unparse(tree) if tree else stripped), ordered


def _locals(function: ast.FunctionDef) -> set[str]:
    arguments = {node.arg for node in ast.walk(function) if isinstance(node, ast.arg)}
    stored = {n.id for n in ast.walk(function) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    shared = {name for n in ast.walk(function) if isinstance(n, ast.Global | ast.Nonlocal) for name in n.names}
    return (arguments | stored) - shared
