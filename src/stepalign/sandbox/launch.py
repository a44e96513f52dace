"""The caller's side: start the server, in bubblewrap where that works, and send it tasks."""

import logging
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, Literal

import stepalign
from stepalign.errors import StepalignError
from stepalign.sandbox import wire

Kind = Literal["bubblewrap", "limits"]

log = logging.getLogger("stepalign")

_START_S = 60.0
_GRACE_S = 3.0
"""Seconds that a judge may be late before the server is killed."""
_TEMPORARY_BYTES = 64 * 2**20
_ENVIRONMENT = {"PYTHONHASHSEED": "0", "PYTHONDONTWRITEBYTECODE": "1", "LANG": "C.UTF-8"}
_START = "import sys; sys.path.insert(0, {root!r}); from stepalign.sandbox.server import main; main({memory}, {write})"


class SandboxError(Exception):
    """The end of a server in the midst of a task."""


class SandboxStartError(SandboxError):
    """A server that does not start."""


class Sandbox:
    """One server. It starts with the first task, and again after it was killed or has ended itself."""

    def __init__(self, kind: Kind, *, memory_bytes: int) -> None:
        self._kind, self._memory_bytes = kind, memory_bytes
        self._process: subprocess.Popen[bytes] | None = None
        self._socket = socket.socket()
        self._is_ready = False
        self.filtered = False
        """True where system calls are filtered; known after the start."""

    def start(self) -> None:
        """Wait until the server takes a task, and start it where it is gone.

        Raises:
            SandboxStartError: it does not start, with the reason.
        """
        if self._is_ready or (self._process is not None and self._hears()):
            return
        self.close()
        self._socket, theirs = socket.socketpair()
        with theirs, tempfile.TemporaryFile() as errors:
            command = _command(self._kind, self._memory_bytes)
            self._process = subprocess.Popen(
                command,
                stdin=theirs.fileno(),
                stdout=errors,
                stderr=errors,
                env=_ENVIRONMENT,
                cwd="/",
                start_new_session=True,
            )
            theirs.close()
            if not self._hears():
                self.close()
                errors.seek(0)
                said = errors.read().decode(errors="replace").strip().splitlines()
                raise SandboxStartError(said[-1] if said else "it ends without a word")

    def run(self, task: Mapping[str, Any], timeout_s: float) -> dict[str, Any]:
        """Run a task (`judge.judge`) and return its reply.

        Raises:
            SandboxError: the server died. It starts again with the next task.
            SandboxStartError: it does not start.
            TimeoutError: the judge had no reply in time, likewise.
        """
        self.start()
        token = secrets.token_hex()
        self._is_ready = False
        self._socket.settimeout(timeout_s + _GRACE_S)
        try:
            self._socket.sendall(b"\x01")
            wire.send(self._socket, {**task, "timeout_s": timeout_s, "token": token})
            reply = wire.receive(self._socket)
            if not isinstance(reply, dict) or reply.pop("token", None) != token:
                raise wire.WireError("a reply that is not the judge's")
        except BaseException as error:  # after Ctrl-C a late reply would be taken for the next one
            self.close()
            if isinstance(error, OSError | EOFError | wire.WireError) and not isinstance(error, TimeoutError):
                raise SandboxError(str(error)) from None
            raise
        return reply

    def close(self) -> None:
        """Kill the server and all that it has started."""
        self._is_ready = False
        self._socket.close()
        if self._process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None

    def _hears(self) -> bool:
        """Wait for the server's word that it takes a task; return False where it is gone."""
        self._socket.settimeout(_START_S)
        try:
            self.filtered = bool(wire.receive(self._socket)["filtered"])
        except (OSError, EOFError, wire.WireError):
            return False
        self._is_ready = True
        return True


@cache
def choose(wanted: Literal["auto", "bubblewrap", "limits"]) -> tuple[Kind, str]:
    """Return the kind of sandbox that works here, and a warning that names what it does not confine, or nothing.

    Raises:
        StepalignError: bubblewrap is wanted and does not work.
    """
    reason = ""
    kinds: list[Kind] = ["bubblewrap", "limits"]
    for kind in kinds if wanted == "auto" else [wanted]:
        if kind == "bubblewrap" and not shutil.which("bwrap"):
            reason = "bwrap is not installed"
            continue
        sandbox = Sandbox(kind, memory_bytes=2**30)
        try:
            sandbox.start()
        except SandboxStartError as error:
            reason = str(error)
            continue
        finally:
            sandbox.close()
        warning = _not_confined(kind, sandbox.filtered)
        if warning:
            warning += f" ({reason})" if reason else ""
            log.warning(warning)
        return kind, warning
    raise StepalignError(f"grader.sandbox = {wanted!r}: no sandbox can be started: {reason}")


def _not_confined(kind: Kind, filtered: bool) -> str:
    """Name what a sandbox does not confine; nothing where it confines all."""
    if kind == "bubblewrap":
        return "" if filtered else "programs may start processes within their sandbox: system calls are not filtered"
    open_to = "they can read the files of this user"
    if not filtered:
        open_to = "they can read and write the files of this user, use the network and stop other processes"
    return f"programs run without bubblewrap: {open_to}"


def _command(kind: Kind, memory_bytes: int) -> list[str]:
    package = Path(stepalign.__file__).parent
    python = os.path.realpath(sys.executable)
    options = [python, "-s", "-S", "-P", "-c"]
    if kind == "limits":
        return [*options, _START.format(root=str(package.parent), memory=memory_bytes, write=0)]
    bwrap = shutil.which("bwrap") or "bwrap"
    return [
        *(bwrap, "--unshare-all", "--die-with-parent", "--new-session", "--cap-drop", "ALL"),
        *_readable(package),
        *("--size", str(_TEMPORARY_BYTES), "--tmpfs", "/tmp", "--remount-ro", "/", "--chdir", "/tmp", "--"),
        *options,
        _START.format(root="/app", memory=memory_bytes, write=1),
    ]


def _readable(package: Path) -> list[str]:
    """Return the options that show the interpreter, its libraries, and this room; no data and no packages."""
    prefix = Path(sys.base_prefix)
    options = []
    for folder in (
        "/usr/lib",
        "/usr/lib64",
        "/usr/lib32",
        "/lib",
        "/lib64",
        "/etc/ld.so.cache",
        "/usr/bin",
        "/usr/local/lib",
    ):
        options += ["--ro-bind-try", folder, folder]
    if prefix not in (Path("/usr"), Path("/usr/local")):
        options += ["--ro-bind", str(prefix), str(prefix)]
    library = sysconfig.get_path("stdlib", vars={"installed_base": str(prefix)})
    for packages in (
        Path(library) / "site-packages",
        Path(library) / "dist-packages",
        Path("/usr/lib/python3/dist-packages"),
    ):
        if packages.is_dir():
            options += ["--tmpfs", str(packages), "--remount-ro", str(packages)]
    for device in ("/dev/null", "/dev/urandom"):
        options += ["--dev-bind", device, device]
    options += ["--ro-bind", str(package / "__init__.py"), "/app/stepalign/__init__.py"]
    return [*options, "--ro-bind", str(package / "sandbox"), "/app/stepalign/sandbox"]
