"""Replies on disk: kept across processes and kills, with their texts out of memory."""

import os
import signal
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pytest

from stepalign.critics.chat_completions import ReplyCache
from stepalign.critics.llm import ModelReply
from stepalign.errors import StepalignError


def test_what_one_process_puts_others_get_and_the_first_reply_stays(tmp_path: Path) -> None:
    one, two = ReplyCache(tmp_path / "runs" / "cache.jsonl"), ReplyCache(tmp_path / "runs" / "cache.jsonl")
    assert one.get("a") is None
    reply = ModelReply(text="é\n\u0000\u2028", truncated=True, prompt_tokens=3, completion_tokens=4)
    one.put("a", reply)
    two.put("a", ModelReply(text="later"))
    assert (one.get("a"), two.get("a"), two.get("b")) == (reply, reply, None)
    assert ReplyCache(one.path).get("a") == reply


_WRITER = """
import os, signal, sys
from pathlib import Path
from stepalign.critics.chat_completions import ReplyCache
from stepalign.critics.llm import ModelReply
cache = ReplyCache(Path(sys.argv[1]))
for number in range(200):
    cache.put(f"{sys.argv[2]} {number}", ModelReply(text="x" * 1000))
    cache.put(f"shared {number}", ModelReply(text="y"))
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_several_processes_write_at_once_and_a_kill_loses_nothing(tmp_path: Path) -> None:
    path = tmp_path / "cache.jsonl"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    writers = [subprocess.Popen([sys.executable, "-c", _WRITER, str(path), name], env=environment) for name in "ab"]
    assert [writer.wait(timeout=60) for writer in writers] == [-signal.SIGKILL] * 2
    with path.open("a") as file:
        file.write('{"key": "a 0", "reply": {"te')  # what a kill in the middle of a line leaves
    cache = ReplyCache(path)
    cache.put("after", ModelReply(text="z"))
    assert cache.get("after") == ModelReply(text="z")
    for number in range(200):
        replies = [cache.get(f"{name} {number}") for name in ("a", "b", "shared")]
        assert [reply.text for reply in replies if reply] == ["x" * 1000, "x" * 1000, "y"]


def test_memory_does_not_grow_with_the_texts(tmp_path: Path) -> None:
    path = tmp_path / "cache.jsonl"
    writer = ReplyCache(path)
    for number in range(1000):
        writer.put(str(number), ModelReply(text=f"{number} " * 5000))
    tracemalloc.start()
    reader = ReplyCache(path)
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert path.stat().st_size > 15_000_000
    assert kept < 1_000_000
    assert reader.get("999") == ModelReply(text="999 " * 5000)


def test_a_file_that_is_no_cache_is_an_error_that_names_it(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("not a cache\n" * 10)
    with pytest.raises(StepalignError, match=r"notes\.txt, line 1: not a CachedReply"):
        ReplyCache(path)
    with pytest.raises(StepalignError, match="notes"):
        ReplyCache(path / "inside")
