"""The process that stays: it forks a judge and a program's process for each task, and never reads a task itself.

What it read would stay in memory, where the next program could find it. So a task is announced by one byte, and the
judge reads the rest. A judge that has no time left is killed by the caller, together with the server.
"""

import gc
import importlib
import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path

from stepalign.sandbox import confine, wire
from stepalign.sandbox.judge import judge
from stepalign.sandbox.program import serve

_PRELOADED = (
    "array", "bisect", "cmath", "collections", "copy", "datetime", "decimal", "fractions", "functools", "heapq",
    "itertools", "json", "math", "operator", "random", "re", "statistics", "string", "sys", "typing",
)  # fmt: skip
_EXTRA_CPU_S = 2


def main(memory_bytes: int, may_write: bool) -> None:
    """Serve tasks on descriptor 0, a socket, until it is closed."""
    for name in _PRELOADED:
        importlib.import_module(name)
    confine.hide()
    gc.freeze()
    caller = socket.socket(fileno=0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    ready = {"filtered": _can_filter(memory_bytes, may_write)}
    wire.send(caller, ready)

    def start(run: Callable[[], None]) -> int:
        pid = os.fork()
        if not pid:
            try:
                confine.die_with_parent()
                run()
            finally:
                os._exit(1)
        return pid

    while caller.recv(1):
        # The judge's end is opened before and closed after both forks; each closes the other's end.
        ours, theirs = socket.socketpair()

        def run_program(theirs: socket.socket = theirs) -> None:
            channel = _keep_only(theirs)
            limit_s = int(wire.receive(channel))
            confine.confine(memory_bytes=memory_bytes, cpu_s=limit_s, may_write=may_write)
            serve(channel)

        def run_judge(ours: socket.socket = ours, theirs: socket.socket = theirs) -> None:
            theirs.close()
            _to_null(1, 2)  # a test may print
            task = wire.receive(caller)
            limit_s = int(task["timeout_s"]) + _EXTRA_CPU_S
            wire.send(ours, limit_s)
            confine.confine(memory_bytes=memory_bytes, cpu_s=limit_s, may_write=False)
            reply = judge(task, ours, task["timeout_s"])
            wire.send(caller, reply | {"token": task["token"]})
            os._exit(0)

        program_pid = start(run_program)
        judge_pid = start(run_judge)
        ours.close()
        theirs.close()
        _, status = os.waitpid(judge_pid, 0)
        os.kill(program_pid, signal.SIGKILL)
        os.waitpid(program_pid, 0)
        if status or (may_write and any(Path().iterdir())):
            return  # a judge that died, or files that the next program could read
        wire.send(caller, ready)


def _keep_only(channel: socket.socket) -> socket.socket:
    """Close every other descriptor, and put `/dev/null` in place of the standard ones."""
    os.dup2(channel.detach(), 3)
    os.closerange(4, 1024)
    _to_null(0, 1, 2)
    return socket.socket(fileno=3)


def _to_null(*descriptors: int) -> None:
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in descriptors:
        os.dup2(null, descriptor)
    os.close(null)


def _can_filter(memory_bytes: int, may_write: bool) -> bool:
    """Return whether a forked process can be confined wholly."""
    pid = os.fork()
    if not pid:
        filtered = False
        try:
            filtered = confine.confine(memory_bytes=memory_bytes, cpu_s=1, may_write=may_write)
        finally:
            os._exit(0 if filtered else 1)
    return os.waitpid(pid, 0)[1] == 0
