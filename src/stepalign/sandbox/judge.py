"""The trusted side: run the tests, with calls answered by the program's process, and compare plain values.

A test sees the program's functions as handles. A call sends its arguments as values and gets a value back; an object
that has no plain value stays on the other side, and comparing it is an error. Names of a test are its own, those of
preamble and setup, builtins and modules of the standard library that can be imported here; only a name that is none of
these is the program's.
"""

import ast
import builtins
import importlib
import signal
import socket
import sys
import time
import types
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from functools import partialmethod
from typing import Any, NoReturn

from stepalign.sandbox import wire

_TEST = "<test>"
_ACTUAL, _EXPECTED = "@actual", "@expected"
"""Names of the functions that record both sides of an `==`. No Python code can spell them."""
_MAX_SHOWN = 500
_UNSAFE = {"StopIteration", "StopAsyncIteration"}
"""Exceptions that would end a test's loop in place of failing it."""


class _Ended(BaseException):
    """The end of the program's process, or of the time."""

    def __init__(self, outcome: str) -> None:
        self.outcome = outcome


class Program:
    """The program in the other process."""

    def __init__(self, channel: socket.socket, deadline: float) -> None:
        self._channel, self._deadline = channel, deadline
        self.output = ""
        self.ended: _Ended | None = None

    def ask(self, operation: str, *arguments: Any) -> Any:
        """Request an operation, and return its value or raise its exception."""
        if self.ended:
            raise self.ended
        try:
            self._channel.settimeout(max(self._deadline - time.monotonic(), 0.001))
            wire.send(self._channel, [operation, *wire.encode(list(arguments), _keep)])
            reply = wire.receive(self._channel)
        except TimeoutError:
            self._end("timeout")
        except (EOFError, OSError):
            self._end("killed")
        try:
            self.output = str(reply["output"])
            if "error" not in reply:
                return wire.decode(reply["value"], self._find)
            error = _exception(reply["error"])
        except Exception as fault:
            raise wire.WireError(f"a message that is no reply: {fault}") from None
        raise error

    def _end(self, outcome: str) -> NoReturn:
        self.ended = _Ended(outcome)
        raise self.ended from None

    def _find(self, coded: dict[str, Any]) -> "Handle":
        return Handle(self, int(coded["object"]), str(coded["type"]))


class Handle:
    """An object in the program's process. Its operations run there; it equals nothing."""

    def __init__(self, program: Program, number: int, kind: str) -> None:
        vars(self).update(_program=program, _number=number, _kind=kind)

    def _ask(self, operation: str, *arguments: Any) -> Any:
        return vars(self)["_program"].ask(operation, self, *arguments)

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        """Call it."""
        return self._ask("call", list(arguments), named)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self._ask("getattr", name)

    def __setattr__(self, name: str, value: Any) -> None:
        self._ask("setattr", name, value)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._ask("list"))

    __getitem__ = partialmethod(_ask, "getitem")
    __setitem__ = partialmethod(_ask, "setitem")
    __len__ = partialmethod(_ask, "len")
    __bool__ = partialmethod(_ask, "bool")
    __int__ = partialmethod(_ask, "int")
    __float__ = partialmethod(_ask, "float")
    __str__ = partialmethod(_ask, "str")

    def __repr__(self) -> str:
        return f"<object of type {vars(self)['_kind']}>"

    def _refuse(self, other: object) -> NoReturn:
        kind = vars(self)["_kind"]
        raise TypeError(f"the program gave an object of type {kind}, which has no plain value to compare")

    __eq__ = __ne__ = __lt__ = __le__ = __gt__ = __ge__ = _refuse
    __hash__ = None  # type: ignore[assignment]


def _keep(value: Any) -> dict[str, Any]:
    if isinstance(value, Handle):
        return {"object": vars(value)["_number"]}
    raise TypeError(f"a test cannot pass an object of type {type(value).__name__} to the program")


def _exception(described: Mapping[str, Any]) -> Exception:
    """Make an exception of the program's, of the nearest builtin type that a test may catch."""
    names = [str(name) for name in described["bases"]]
    known = [getattr(builtins, name, None) for name in names if name not in _UNSAFE]
    kind = next((k for k in known if isinstance(k, type) and issubclass(k, Exception)), Exception)
    kind = RuntimeError if _UNSAFE & set(names) else kind
    error = kind.__new__(kind)
    error.args = (str(described["message"]),)
    frames = [(int(line), str(name)) for line, name in described["frames"]]
    error.described = {"type": str(described["type"]), "message": error.args[0], "frames": frames}  # type: ignore[attr-defined]
    return error


class Judge:
    """Tests of one program, in the order given."""

    def __init__(self, program: Program, task: Mapping[str, Any]) -> None:
        self._program, self._task = program, task
        self._sides: dict[str, Any] = {}
        self._names: dict[str, Any] = {}
        """Names of the program that tests use."""

    def results(self) -> Iterator[dict[str, Any]]:
        """Yield the result of each test."""
        namespace: dict[str, Any] = {"__name__": "tests"}
        try:
            self._program.ask("load", self._task["preamble"], self._task["program"])
            self._exec(self._task["preamble"], "<preamble>", namespace)
            self._bind(namespace)
            self._exec(self._task["setup"], "<setup>", namespace)
        except BaseException as error:
            failed = self._failure(error)
            yield from ({**failed, "source": test} for test in self._task["tests"])
            return
        namespace |= {_ACTUAL: self._record(_ACTUAL), _EXPECTED: self._record(_EXPECTED)}
        for test in self._task["tests"]:
            if self._program.ended:
                yield {"outcome": "not run", "source": test}
            else:
                yield {"source": test} | self._run(test, namespace)

    def _run(self, test: str, namespace: Mapping[str, Any]) -> dict[str, Any]:
        self._sides.clear()
        tree = ast.parse(test, _TEST)
        statements = [node for node in ast.walk(tree) if isinstance(node, ast.Assert)]
        sources = {node.lineno: ast.get_source_segment(test, node) or test for node in statements}
        for node in statements:
            self._observe(node)
        try:
            exec(compile(ast.fix_missing_locations(tree), _TEST, "exec"), dict(namespace))
        except BaseException as error:
            failed = self._failure(error)
            if failed["outcome"] == "failed":
                line = _last_line(error.__traceback__)
                failed["source"] = sources.get(line, test)
                failed |= {key: _shown(value) for key, value in self._sides.items()}
            return failed
        return {"outcome": self._program.ended.outcome if self._program.ended else "passed"}

    def _exec(self, code: str, name: str, namespace: dict[str, Any]) -> None:
        exec(compile(code, name, "exec"), namespace)

    def _bind(self, namespace: dict[str, Any]) -> None:
        """Bind the names that tests and setup use, and that neither they nor the preamble define."""
        codes = [compile(code, _TEST, "exec") for code in (self._task["setup"], *self._task["tests"])]
        used = set(_names(codes)) - vars(builtins).keys()
        entry_point = self._task["entry_point"]
        modules: dict[str, Any] = {}
        for name in used & sys.stdlib_module_names - {entry_point} - namespace.keys():
            with suppress(ImportError):  # another platform's, such as nt
                modules[name] = importlib.import_module(name)
        unknown = sorted(used - namespace.keys() - modules.keys() | {entry_point})
        given = self._program.ask("names", *unknown)
        self._names = {name: given[name] for name in unknown if name in given}
        namespace |= modules | self._names

    def _observe(self, node: ast.Assert) -> None:
        """Record both sides of an assertion `a == b`, where they are computed."""
        match node.test:
            case ast.Compare(left=left, ops=[ast.Eq()], comparators=[right]):
                sides = (_ACTUAL, _EXPECTED)
                if self._calls_program(right) and not self._calls_program(left):
                    sides = (_EXPECTED, _ACTUAL)
                first, second = (ast.Name(name, ast.Load()) for name in sides)
                test = ast.Compare(ast.Call(first, [left], []), [ast.Eq()], [ast.Call(second, [right], [])])
                node.test = ast.copy_location(test, node.test)

    def _calls_program(self, node: ast.AST) -> bool:
        return any(isinstance(each, ast.Name) and each.id in self._names for each in ast.walk(node))

    def _record(self, side: str) -> Any:
        def record(value: Any) -> Any:
            self._sides[side.lstrip("@")] = value
            return value

        return record

    def _failure(self, error: BaseException) -> dict[str, Any]:
        if isinstance(error, _Ended):
            self._program.ended = error  # the alarm's comes from elsewhere
            return {"outcome": error.outcome}
        described = getattr(error, "described", None)
        if described is None and isinstance(error, AssertionError):
            return {"outcome": "failed", "message": str(error)[:_MAX_SHOWN]}
        described = described or {"type": type(error).__name__, "message": str(error), "frames": []}
        lines = self._task["program"].split("\n")
        frames = [(line, name) for line, name in described["frames"] if 1 <= line <= len(lines)]
        return {
            "outcome": "error",
            "exception": described["type"][:_MAX_SHOWN],
            "message": described["message"][:_MAX_SHOWN],
            "lines": [line for line, _ in frames],
            "traceback": "".join(f"line {line}, in {name}\n    {lines[line - 1].strip()}\n" for line, name in frames),
        }


def _names(codes: Iterable[types.CodeType]) -> Iterator[str]:
    for code in codes:
        yield from code.co_names
        yield from _names(constant for constant in code.co_consts if isinstance(constant, types.CodeType))


def _last_line(step: types.TracebackType | None) -> int:
    """Return the innermost line of the test in a traceback."""
    line = 0
    while step is not None:
        line = step.tb_lineno if step.tb_frame.f_code.co_filename == _TEST else line
        step = step.tb_next
    return line


def _shown(value: Any) -> str:
    try:
        text = repr(value)
    except Exception as error:  # an integer of more digits than Python prints
        text = f"<{error}>"
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}…"


def judge(task: Mapping[str, Any], channel: socket.socket, timeout_s: float) -> dict[str, Any]:
    """Run a task's tests, and return their results."""

    def late(*_: object) -> NoReturn:
        raise _Ended("timeout")

    signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, timeout_s)
    program = Program(channel, time.monotonic() + timeout_s)
    results, printed = list[dict[str, Any]](), 0
    try:
        for result in Judge(program, task).results():
            results.append({**result, "output": program.output[printed:]})
            printed = len(program.output)
    except _Ended as ended:  # while a result was written
        results.append({"outcome": ended.outcome, "source": task["tests"][len(results)]})
    signal.setitimer(signal.ITIMER_REAL, 0)
    results += [{"outcome": "not run", "source": test} for test in task["tests"][len(results) :]]
    return {"results": results}
