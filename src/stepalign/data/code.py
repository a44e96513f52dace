"""Problems with unit tests: MBPP, files of HumanEval's format, and any file with statement and tests.

A statement is the task and, in the words of MBPP's customary prompt (Austin et al., arXiv 2108.07732), the shown tests,
from which the function's name follows. Line breaks are `\\n` in all texts. Left out: MBPP's
`challenge_test_list`, which 11 problems have.
"""

import ast
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from stepalign import config
from stepalign.data import files
from stepalign.data.normalize import Candidate, cell, text
from stepalign.errors import StepalignError
from stepalign.io import short
from stepalign.trace.code import parse_program
from stepalign.unit_tests import UnitTests

Split = Literal["train", "validation", "test", "prompt"]

SPLITS: dict[Split, range] = {
    "prompt": range(1, 11),
    "test": range(11, 511),
    "validation": range(511, 601),
    "train": range(601, 975),
}
"""MBPP's customary splits, by task id."""

_DEFAULT = config.CodeColumnsConfig()


def mbpp(source: config.MbppConfig) -> Iterator[Candidate]:
    """Yield the problems of a split of MBPP; an id is `mbpp-` and the task id."""
    if source.path is None:
        otherwise = 'Where there is no network, name its raw file instead: source = "mbpp", path = "mbpp.jsonl"'
        rows = files.hub_rows(
            source.hub,
            config="full",
            split=source.split,
            streaming=False,
            otherwise=otherwise,
            revision=source.revision,
        )
    else:
        rows = files.rows(source.path)
    for _, where, row in rows:
        task = cell(row, "task_id", where)
        if type(task) is not int:
            raise StepalignError(f"{where}: column 'task_id': a whole number is wanted, found {short(task)}")
        if task not in SPLITS[source.split]:
            continue
        yield _candidate(
            where,
            f"mbpp-{task}",
            task=text(row, "text", where),
            tests=_snippets(row, "test_list", where),
            num_shown=source.shown_tests,
            solution=_code(row, "code", where),
            setup=_code(row, "test_setup_code", where),
            source=source.hub,
        )


def humaneval(source: config.HumanEvalConfig) -> Iterator[Candidate]:
    """Yield the problems of HumanEval, or of a file with `task_id`, `prompt`, `entry_point`, `test`.

    A statement holds the prompt, whose definitions but the entry point are also the preamble. The test is the call of
    `check` on the entry point.
    """
    if source.path is None:
        otherwise = 'Where there is no network, name a file instead: source = "humaneval", path = "HumanEval.jsonl"'
        rows = files.hub_rows(source.hub, split="test", streaming=False, otherwise=otherwise, revision=source.revision)
    else:
        rows = files.rows(source.path)
    for _, where, row in rows:
        prompt, entry_point = _code(row, "prompt", where), text(row, "entry_point", where)
        body = _code(row, "canonical_solution", where) if "canonical_solution" in row else ""
        test = _code(row, "test", where).strip()
        yield _candidate(
            where,
            text(row, "task_id", where, numbers=True).replace("/", "-"),
            task=prompt.strip() and f"Complete the following Python function:\n\n```python\n{prompt.strip()}\n```",
            tests=[f"{test}\n\ncheck({entry_point})"] if test else [],
            num_shown=0,
            solution=prompt + body if body.strip() else "",
            entry_point=entry_point,
            preamble=_without(prompt, entry_point),
            source=source.hub,
        )


def code_file(source: config.CodeFileConfig) -> Iterator[Candidate]:
    """Yield a file's rows. Without an id column an id is the file's stem and the line or row."""
    names = source.columns
    for number, where, row in files.rows(source.path):
        absent = {
            column for column, name in names if not name or (name == getattr(_DEFAULT, column) and name not in row)
        }
        codes = {
            column: "" if column in absent else _code(row, getattr(names, column), where)
            for column in ("solution", "entry_point", "preamble", "setup")
        }
        yield _candidate(
            where,
            f"{source.path.stem}-{number}" if names.id is None else text(row, names.id, where, numbers=True),
            task=text(row, names.statement, where),
            tests=_snippets(row, names.tests, where),
            num_shown=source.shown_tests,
            hidden=[] if "hidden_tests" in absent else _snippets(row, names.hidden_tests, where),
            source=source.path.name,
            **codes,
        )


def _candidate(
    where: str,
    name: str,
    *,
    task: str,
    tests: Sequence[str],
    num_shown: int,
    hidden: Sequence[str] = (),
    solution: str,
    entry_point: str = "",
    preamble: str = "",
    setup: str = "",
    source: str,
) -> Candidate:
    shown = tuple(tests[:num_shown])
    every = (*tests, *hidden)
    listed = "\n".join(("", "", "Your code should pass these tests:", "", *shown)) if shown else ""
    return Candidate(
        where=where,
        id=name,
        statement=task.strip() and task.strip() + listed,
        solution=solution,
        source=source,
        tests=UnitTests(
            shown=shown,
            hidden=every[len(shown) :],
            entry_point=entry_point.strip() or _called(every, solution),
            preamble=preamble.strip("\n"),
            setup=setup.strip("\n"),
        )
        if every
        else None,
        trace_format="code",
        rejected=None if all(parse_program(code) for code in (preamble, setup, *every)) else "tests that do not parse",
    )


def _snippets(row: Mapping[str, Any], column: str, where: str) -> list[str]:
    """Return a column's snippets of code, without empty ones; null is none."""
    value = cell(row, column, where)
    snippets = [value] if isinstance(value, str) else [] if value is None else value
    if not isinstance(snippets, list) or not all(isinstance(snippet, str) for snippet in snippets):
        raise StepalignError(f"{where}: column {column!r}: a list of texts, or a text, is wanted, found {short(value)}")
    return [clean for snippet in snippets if (clean := _unix(snippet).strip())]


def _code(row: Mapping[str, Any], column: str, where: str) -> str:
    return _unix(text(row, column, where))


def _unix(code: str) -> str:
    return code.replace("\r\n", "\n").replace("\r", "\n")


def _called(tests: Sequence[str], solution: str) -> str:
    """Return the first function of a reference program that every test calls; empty without one."""
    calls = [
        {node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}
        for test in tests
        if (tree := parse_program(test))
    ]
    defined = [node.name for node in getattr(parse_program(solution), "body", []) if isinstance(node, ast.FunctionDef)]
    return next((name for name in defined if all(name in names for names in calls)), "")


def _without(prompt: str, entry_point: str) -> str:
    """Return the statements of a prompt but the entry point's; the prompt may lack the entry point's body."""
    tree = parse_program(prompt) or parse_program(f"{prompt.rstrip()}\n    pass")
    body = tree.body if tree else []
    return "\n\n".join(ast.unparse(node) for node in body if getattr(node, "name", None) != entry_point)
