"""Processes forked from a server that has imported torch and the package once: a start takes milliseconds."""

import multiprocessing
import os
import socket
import traceback
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any


def fork(target: Callable[..., object], *args: Any) -> BaseProcess:
    """Start a function in a process of its own."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["stepalign.launch"])
    process = context.Process(target=target, args=args)
    process.start()
    return process


def launch(processes: int, output: Path, command: Callable[..., object], *args: Any) -> list[str]:
    """Run a function in each process of a world, as torchrun would, and return what each prints."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    world = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(processes)}
    logs = [output / f"rank-{rank}.txt" for rank in range(processes)]
    running = [
        fork(_run, world | {"RANK": str(rank), "LOCAL_RANK": str(rank)}, log, command, args)
        for rank, log in enumerate(logs)
    ]
    try:
        for process in running:
            process.join(120)
            assert process.exitcode == 0, "\n".join(log.read_text() for log in logs)
    finally:
        for process in running:
            process.kill()
    return [log.read_text() for log in logs]


def _run(environment: dict[str, str], log: Path, command: Callable[..., object], args: tuple[Any, ...]) -> None:
    os.environ.update(environment)
    with log.open("w", buffering=1) as file, redirect_stdout(file), redirect_stderr(file):
        try:
            command(*args)
        except Exception:
            traceback.print_exc()  # into the log, which `launch` shows
            raise
