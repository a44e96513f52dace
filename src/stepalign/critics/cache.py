"""Cache of a server's replies on disk, by the content of the request.

No reply is paid for twice. The file is an append log (`io.AppendLog`): several processes, on several hosts, may share
it, and a kill at any moment loses at most the line that is being written. Memory holds keys and places in the file, not
texts. What the checks made of a reply is not kept, so checks and validation may change. Left out: eviction, because the
file is the run's, a few kB a reply.
"""

from pathlib import Path

from pydantic import TypeAdapter
from pydantic.dataclasses import dataclass

from stepalign.critics.llm import ModelReply
from stepalign.io import AppendLog


@dataclass(frozen=True, kw_only=True)
class CachedReply:
    """A line of the cache."""

    key: str
    reply: ModelReply


_LINE = TypeAdapter(CachedReply)


class ReplyCache:
    """A mapping from keys to replies in a file. For one thread a process, and any number of processes."""

    def __init__(self, path: Path) -> None:
        """Open the file. It is created with the first reply.

        Raises:
            StepalignError: it cannot be read, or holds something else.
        """
        self.path = path
        self._log = AppendLog(path, CachedReply)
        self._places: dict[str, tuple[int, int]] = {}
        self._read_new()

    def get(self, key: str) -> ModelReply | None:
        """Return the first reply under a key, from any process."""
        if key not in self._places:
            self._read_new()
        if key not in self._places:
            return None
        start, end = self._places[key]
        with self.path.open("rb") as file:
            file.seek(start)
            *_, line = file.read(end - start).splitlines()
        return _LINE.validate_json(line).reply

    def put(self, key: str, reply: ModelReply) -> None:
        """Add a reply. It is in the file when this returns."""
        self._log.append(CachedReply(key=key, reply=reply))

    def _read_new(self) -> None:
        start = self._log.offset
        for line in self._log.read():
            self._places.setdefault(line.key, (start, self._log.offset))
            start = self._log.offset
