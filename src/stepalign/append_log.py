"""Append log: records of one kind as JSON lines, in a file that a kill leaves readable."""

import errno
import fcntl
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Generic, TypeVar

from pydantic import TypeAdapter, ValidationError

from stepalign.errors import StepalignError
from stepalign.io import NOT_SUPPORTED, explain, name_of, unwritable

R = TypeVar("R")


class AppendLog(Generic[R]):
    """Records of one kind as JSON lines, appended one by one, in a file that survives a kill.

    Threads, processes and hosts may append to one file on a shared disk: each `append` is one write at the end of
    the file, under a lock of the file. A killed writer leaves at most a half-written line. Readers leave that line
    out, and the next append starts a new line.

    `read` may be called again, for what other processes have appended. A stage that is the only writer may call
    `truncate` after `read`, so that the file holds whole records only.
    """

    def __init__(self, path: Path, kind: type[R]) -> None:
        """Name the file. It is created by the first `append`."""
        self.path = path
        self.offset = 0
        """The bytes read so far: the end of the last record that `read` returned."""
        self._kind = kind
        self._adapter: TypeAdapter[R] = TypeAdapter(kind)
        self._lines = 0
        self._lock = threading.Lock()

    @property
    def place(self) -> str:
        """File and line of the last record read, for messages."""
        return f"{self.path}, line {self._lines}"

    def read(self) -> Iterator[R]:
        """Yield the records that were appended since the last call, at first all of them.

        Raises:
            StepalignError: naming the line, where the file is damaged in another way than by a kill.
        """
        try:
            with self.path.open("rb") as file:
                file.seek(self.offset)
                for line in file:
                    if not line.endswith(b"\n"):
                        return
                    self._lines += 1
                    try:
                        record = self._adapter.validate_json(line, strict=True)
                    except ValidationError as error:
                        if not _is_torn(line):
                            reason = f"not a {name_of(self._kind)}: {explain(error)}"
                            raise StepalignError(f"{self.place}: {reason}") from None
                        self.offset += len(line)
                        continue
                    self.offset += len(line)
                    yield record
        except FileNotFoundError:
            return
        except OSError as error:
            raise StepalignError(f"{self.path}: {error.strerror}") from None

    def append(self, *records: R, durable: bool = False) -> None:
        """Append records in one write.

        Args:
            records: all of them are in the file when this returns, or a part after a kill.
            durable: flush to the disk, so that a power cut does not lose them either.
        """
        lines = b"".join(self._adapter.dump_json(record) + b"\n" for record in records)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
            try:
                with self._lock:
                    _lock_file(descriptor)
                    size = os.fstat(descriptor).st_size
                    torn = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"
                    lines = b"\n" + lines if torn else lines
                    if os.write(descriptor, lines) < len(lines):
                        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                if durable:
                    os.fsync(descriptor)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise unwritable(self.path, error) from None

    def truncate(self, offset: int | None = None) -> None:
        """Cut the file at `offset`, by default after the last record read. For the only writer of a file."""
        self.offset = self.offset if offset is None else offset
        try:
            if self.path.exists():
                os.truncate(self.path, self.offset)
        except OSError as error:
            raise unwritable(self.path, error) from None


def _is_torn(line: bytes) -> bool:
    """Return whether a line is the beginning of a JSON object, as a killed writer leaves it."""
    try:
        TypeAdapter(Any).validate_json(line.rstrip(b"\n").decode(errors="ignore"))
    except ValidationError as error:
        return "EOF while parsing" in str(error)
    return False


def _lock_file(descriptor: int) -> None:
    """Lock an open file until it is closed. The lock reaches other hosts where the file system supports it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    except OSError as error:
        if error.errno not in NOT_SUPPORTED:
            raise
