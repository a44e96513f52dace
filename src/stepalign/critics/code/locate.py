"""The line at which a program goes wrong, by its tests.

A traceback names it. Without one, reference and program run side by side on the call of a shown test: the line is the
first that leaves a local variable with another value than the reference's of that name, else the `return` that was
executed last. Where that cannot be run, it is the last `return`. A program that does not end is stopped in a loop.
"""

import ast
from collections import defaultdict
from dataclasses import replace

from stepalign.critics.code import units as u
from stepalign.critics.code.mend import renamed
from stepalign.records import Grade, Problem, Rollout
from stepalign.rewards import Grader
from stepalign.trace import final_answers, trace_format
from stepalign.unit_tests import UnitTestResult, UnitTests

_MARK = "stepalign-trace:"
_RETURN = "return"
_TRACER = """

def __stepalign_trace__():
    import sys, zlib
    events, seen, state = [], {{}}, {{"line": 0, "frame": None}}

    def note(line, name, value):
        try:
            digest = zlib.crc32((type(value).__name__ + repr(value)[:2000]).encode())
        except Exception:
            return
        if (name == "{ret}" or seen.get(name) != digest) and len(events) < 120:
            seen[name] = digest
            events.append("%d:%s:%x" % (line, name, digest))

    def local(frame, event, value):
        for name in list(frame.f_locals):
            note(state["line"], name, frame.f_locals[name])
        if event == "return":
            note(frame.f_lineno, "{ret}", value)
        state["line"] = frame.f_lineno
        return local

    def begin(frame, event, value):
        if frame.f_code is {entry}.__code__ and state["frame"] is None:
            state["frame"], state["line"] = frame, frame.f_lineno
            return local

    sys.settrace(begin)
    try:
        {call}
    except BaseException:
        pass
    finally:
        sys.settrace(None)
    print("{mark}" + ";".join(events))

__stepalign_trace__()
"""
_Event = tuple[int, str, str]
"""A line, a local variable, and a digest of the value that the line left it with."""


def first_failure(grade: Grade) -> UnitTestResult | None:
    """Return the first test that fails, a shown one where one does."""
    return next((result for result in grade.tests if result.outcome != "passed"), None)


def wrong_line(problem: Problem, rollout: Rollout, grader: Grader) -> int:
    """Return the line of a program at which it goes wrong, counted from 1."""
    program = "".join(final_answers(rollout))
    failure = first_failure(rollout.grade) if rollout.grade else None
    if failure is not None and failure.lines:
        return failure.lines[-1]
    tree = u.parse(program)
    if tree is None:
        return program.count("\n") + 1
    if failure is not None and failure.outcome == "timeout":
        return _first(tree, ast.While) or _first(tree, ast.For) or _last_return(tree)
    entry_point = problem.tests.entry_point if problem.tests else ""
    if failure is not None and failure.source and (call := _call(failure.source, entry_point)):
        reference = u.parse(problem.solution)
        theirs = ast.unparse(renamed(reference, tree, entry_point)) if reference else ""
        own, other = (_run(code, entry_point, call, problem, rollout, grader) for code in (program, theirs))
        if own:
            return _departure(own, other)
    return _last_return(tree)


def _departure(own: list[_Event], other: list[_Event]) -> int:
    """Return the line of the first value that differs from the reference's, by variable and turn."""
    values = defaultdict[str, list[str]](list)
    for _, name, digest in other:
        values[name].append(digest)
    turns = defaultdict[str, int](int)
    for line, name, digest in own:
        expected = values.get(name, [])
        if name != _RETURN and expected and expected[turns[name] : turns[name] + 1] != [digest]:
            return line
        turns[name] += 1
    return next((line for line, name, _ in reversed(own) if name == _RETURN), own[-1][0])


def _run(code: str, entry_point: str, call: str, problem: Problem, rollout: Rollout, grader: Grader) -> list[_Event]:
    """Run a program on one call, and return what its lines do; empty where that cannot be seen."""
    if not code or problem.tests is None:
        return []
    traced = code + _TRACER.format(entry=entry_point, call=call, mark=_MARK, ret=_RETURN)
    text = trace_format(rollout.trace_format).write(traced, "")
    if text is None:
        return []
    tests = UnitTests(shown=("pass",), preamble=problem.tests.preamble, entry_point=entry_point)
    attempt = replace(rollout, text=text, response_start=0, completion_ids=(), token_starts=(), sampler_logprobs=None)
    (graded,) = grader.grade([attempt], {problem.id: replace(problem, tests=tests)})
    output = graded.grade.tests[0].output if graded.grade and graded.grade.tests else ""
    _, mark, events = output.rpartition(_MARK)
    parts = (event.split(":") for event in events.strip().split(";") if mark and event.count(":") == 2)
    return [(int(line), name, digest) for line, name, digest in parts]


def _call(source: str, entry_point: str) -> str:
    """Return the call of the function in a test; empty without one."""
    tree = u.parse(source)
    calls = (node for node in ast.walk(tree) if isinstance(node, ast.Call)) if tree else ()
    named = (node for node in calls if isinstance(node.func, ast.Name) and node.func.id == entry_point)
    return next((ast.unparse(node) for node in named), "")


def _first(tree: ast.Module, kind: type[ast.stmt]) -> int:
    return min((node.lineno for node in ast.walk(tree) if isinstance(node, kind)), default=0)


def _last_return(tree: ast.Module) -> int:
    """Return the line of the last `return`, or else of the last statement."""
    returns = [node.lineno for node in ast.walk(tree) if isinstance(node, ast.Return)]
    return max(returns or [node.lineno for node in ast.walk(tree) if isinstance(node, ast.stmt)], default=1)
