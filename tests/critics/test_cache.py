"""The answers on disk: kept across processes and kills."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from stepalign.critics.cache import Cache
from stepalign.errors import StepalignError


def test_what_is_put_is_there_for_others_and_stays(tmp_path: Path) -> None:
    one, two = Cache(tmp_path / "runs" / "cache.sqlite"), Cache(tmp_path / "runs" / "cache.sqlite")
    assert one.get("a") is None
    one.put("a", "é\n\u0000")
    two.put("a", "later")
    assert (one.get("a"), two.get("a"), two.get("b")) == ("é\n\u0000", "é\n\u0000", None)
    one.close()
    two.close()


_WRITER = """
import os, signal, sys
from pathlib import Path
from stepalign.critics.cache import Cache
cache = Cache(Path(sys.argv[1]))
for number in range(200):
    cache.put(f"{sys.argv[2]} {number}", "x" * 1000)
    cache.put(f"shared {number}", "y")
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_several_processes_write_at_once_and_a_kill_loses_nothing(tmp_path: Path) -> None:
    path = tmp_path / "cache.sqlite"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    writers = [subprocess.Popen([sys.executable, "-c", _WRITER, str(path), name], env=environment) for name in "ab"]
    assert [writer.wait(timeout=60) for writer in writers] == [-signal.SIGKILL] * 2
    cache = Cache(path)
    for number in range(200):
        assert [cache.get(f"{name} {number}") for name in ("a", "b", "shared")] == ["x" * 1000, "x" * 1000, "y"]
    cache.close()


def test_a_file_that_is_no_cache_is_an_error_that_names_it(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("not a database, though long enough to be looked at " * 100)
    with pytest.raises(StepalignError, match=r"notes\.txt: the critic's cache cannot be used: file is not a database"):
        Cache(path)
    with pytest.raises(StepalignError, match="notes"):
        Cache(path / "inside")
