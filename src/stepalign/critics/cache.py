"""The server's answers on disk, by content, so that a resumed or repeated run pays for none twice.

One SQLite file in WAL mode, which several processes may use at once and a kill at any moment leaves whole; each
answer is there as soon as `put` returns. Values are JSON. Only answers are kept, not what the checks made of them, so
checks and policies may change. Left out: eviction. The file is the run's, a few kB an answer; delete it to pay again.
"""

import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from stepalign.errors import StepalignError

_BUSY_S = 30.0
"""How long a write waits for another process's."""

T = TypeVar("T")


class Cache:
    """A mapping from keys to texts in a file. To be used by one thread at a time, by any number of processes."""

    def __init__(self, path: Path) -> None:
        """Open the file, or create it.

        Raises:
            StepalignError: it cannot be opened, or holds something else.
        """
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StepalignError(f"{path}: {error.strerror}") from None
        self._database = self._guarded(
            lambda: sqlite3.connect(path, timeout=_BUSY_S, isolation_level=None, check_same_thread=False)
        )
        self._guarded(self._prepare)

    def get(self, key: str) -> str | None:
        """What is kept under a key."""
        row = self._guarded(
            lambda: self._database.execute("SELECT value FROM answers WHERE key = ?", (key,)).fetchone()
        )
        return None if row is None else str(row[0])

    def put(self, key: str, value: str) -> None:
        """Keep a value. The first one under a key stays: others that wait for it have been given it."""
        self._guarded(lambda: self._database.execute("INSERT OR IGNORE INTO answers VALUES (?, ?)", (key, value)))

    def close(self) -> None:
        """Close the file."""
        self._database.close()

    def _prepare(self) -> None:
        deadline = time.monotonic() + _BUSY_S
        while True:
            try:
                self._database.execute("PRAGMA journal_mode = WAL")
                break
            except sqlite3.OperationalError as error:  # the switch itself does not wait for other processes
                if "locked" not in str(error) or time.monotonic() > deadline:
                    raise
                time.sleep(0.01)
        self._database.execute("PRAGMA synchronous = NORMAL")  # a power cut may cost the last answers, a kill none
        self._database.execute("CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, value TEXT) WITHOUT ROWID")

    def _guarded(self, action: Callable[[], T]) -> T:
        try:
            return action()
        except sqlite3.Error as error:
            raise StepalignError(f"{self.path}: the critic's cache cannot be used: {error}") from None
