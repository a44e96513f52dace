"""The untrusted side: load a program, and answer calls until this process is killed.

Nothing here is secret from the program, and nothing here decides. A program that takes over this process can send other
values, which is all that it could have returned anyway.
"""

import io
import operator
import socket
import sys
import types
from collections.abc import Callable, Sequence
from typing import Any

from stepalign.sandbox import wire

FILE = "<program>"
MAX_OUTPUT_BYTES = 4_000
"""Bytes of output that are kept."""
_MAX_MESSAGE = 500
_MAX_FRAMES = 10

_OPERATIONS: dict[str, Callable[..., Any]] = {
    "call": lambda function, arguments, named: function(*arguments, **named),
    "getattr": getattr,
    "setattr": setattr,
    "getitem": operator.getitem,
    "setitem": operator.setitem,
    "len": len,
    "list": list,
    "bool": bool,
    "int": int,
    "float": float,
    "str": str,
}


class _Output(io.RawIOBase):
    """Output of which the beginning is kept."""

    def __init__(self) -> None:
        self.kept = bytearray()

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self.kept += bytes(data[: MAX_OUTPUT_BYTES - len(self.kept)])
        return len(data)


def serve(channel: socket.socket) -> None:
    """Answer requests: `load` first, then names and operations on objects."""
    output = _Output()
    sys.stdout = sys.stderr = io.TextIOWrapper(output, errors="replace", write_through=True)
    objects: list[Any] = []
    module = types.ModuleType("solution")
    sys.modules[module.__name__] = module

    def keep(value: Any) -> dict[str, Any]:
        objects.append(value)
        kind = "module" if isinstance(value, types.ModuleType) else type(value).__name__
        return {"object": len(objects) - 1, "type": kind}

    def find(coded: dict[str, Any]) -> Any:
        return objects[coded["object"]]

    def load(preamble: str, program: str) -> None:
        exec(compile(preamble, "<preamble>", "exec"), module.__dict__)
        exec(compile(program, FILE, "exec"), module.__dict__)

    def names(*wanted: str) -> dict[str, Any]:
        return {name: module.__dict__[name] for name in wanted if name in module.__dict__}

    operations = _OPERATIONS | {"load": load, "names": names}
    while True:
        name, *arguments = wire.receive(channel)
        try:
            value = operations[name](*wire.decode(arguments, find))
            reply = {"value": wire.encode(value, keep)}
        except BaseException as error:  # SystemExit is the program's, not this process'
            reply = {"error": _describe(error)}
        try:
            wire.send(channel, reply | {"output": output.kept.decode(errors="replace")})
        except wire.WireError as error:
            wire.send(channel, {"error": _describe(error), "output": ""})


def _describe(error: BaseException) -> dict[str, Any]:
    """Return the builtin types of an exception, its message, and the frames of the program, the innermost last."""
    frames, step = [], error.__traceback__
    while step is not None:
        if step.tb_frame.f_code.co_filename == FILE:
            frames.append([step.tb_lineno, step.tb_frame.f_code.co_name])
        step = step.tb_next
    if isinstance(error, SyntaxError) and error.filename == FILE:
        frames.append([error.lineno or 1, "<module>"])
    try:
        message = error.msg if isinstance(error, SyntaxError) else str(error)
    except Exception:
        message = ""
    return {
        "type": type(error).__name__,
        "bases": [base.__name__ for base in _bases(type(error))],
        "message": message[:_MAX_MESSAGE],
        "frames": frames[-_MAX_FRAMES:],
    }


def _bases(kind: type) -> Sequence[type]:
    return [base for base in kind.__mro__ if base.__module__ == "builtins"]
