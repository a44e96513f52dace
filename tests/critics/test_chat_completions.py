"""Chat completions: reading an answer, the cache in front of the servers, equal requests."""

import asyncio
import os
import signal
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from serving.fault_server import Reply, free_url, serving
from stepalign import config
from stepalign.critics.chat_completions import ChatCompletions, ReplyCache
from stepalign.critics.llm import ModelReply
from stepalign.errors import StepalignError
from stepalign.serving import client
from stepalign.serving.client import UnansweredError

GOOD = Reply("fine")
BAD = Reply(status=500, body="{}")


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "_FIRST_WAIT_S", 0.02)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def connect(url: str, cache: ReplyCache | None = None, **changed: Any) -> ChatCompletions:
    table = {"base_url": url, "model": "m", "timeout_s": 5.0, "cooldown_s": 0.1, "max_outage_s": 0.3}
    settings = config.OpenAICriticConfig.model_validate(table | changed)
    return ChatCompletions(settings, "sk-key", cache, table="critic", max_tokens=settings.max_tokens)


def ask_all(url: str, prompts: Sequence[str], *, cache: ReplyCache | None = None, **changed: Any) -> list[Any]:
    """Answers to prompts that are sent all at once."""

    async def run() -> list[Any]:
        async with connect(url, cache, **changed) as connection:
            requests = ({"messages": [{"role": "user", "content": prompt}]} for prompt in prompts)
            return await asyncio.gather(*map(connection.ask, requests), return_exceptions=True)

    return asyncio.run(run())


def ask(url: str, **changed: Any) -> ModelReply:
    (answer,) = ask_all(url, ["?"], **changed)
    if isinstance(answer, BaseException):
        raise answer
    assert isinstance(answer, ModelReply)
    return answer


def test_thinking_is_taken_off_wherever_it_stands() -> None:
    with serving(Reply("<think>a</think> b</think> fine")) as server:
        assert ask(server.url).text == " fine"
    with serving(Reply("fine", reasoning="</think> I think")) as server:
        assert ask(server.url).text == "fine"
    with serving(Reply("<think>on and on")) as server:
        assert ask(server.url).text == "<think>on and on"
    with serving(Reply(None, reasoning="all of it")) as server:
        assert ask(server.url).text == ""


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ([{"type": "text", "text": "fi"}, {"type": "text", "text": "ne"}], "fine"),
        (
            [{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}, {"type": "text", "text": "fine"}],
            "fine",
        ),
        (
            ["fi", {"text": "ne"}, {"type": "image_url", "image_url": {"url": "x"}}, {"type": "text", "text": None}],
            "fine",
        ),
        ([{"type": "output_text", "text": "<think>no</think>fine"}], "fine"),
        ([], ""),
        (None, ""),
    ],
)
def test_content_may_be_a_list_of_parts(content: Any, text: str) -> None:
    with serving(Reply(content)) as server:
        assert ask(server.url).text == text


def test_a_key_in_parts_is_found_where_they_are_joined() -> None:
    with serving(Reply([{"type": "text", "text": part} for part in ("your key: sk-", "key!")])) as server:
        assert ask(server.url).text == "your key: ***!"


@pytest.mark.parametrize("content", [7, True, {"text": "fine"}, [7], [None], [{"type": "text", "text": 7}]])
def test_content_that_is_no_text_is_a_fault(content: Any) -> None:
    with serving(Reply(content), GOOD) as server:
        assert ask(server.url).text == "fine"
        assert len(server.requests) == 2


def test_a_call_of_a_tool_is_an_empty_answer() -> None:
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    with serving(Reply(None, message={"tool_calls": [call]})) as server:
        assert ask(server.url).text == ""


@pytest.mark.parametrize(
    ("usage", "tokens"),
    [
        ('{"prompt_tokens": 1e999, "completion_tokens": 7}', (0, 7)),
        ('{"prompt_tokens": -1e999, "completion_tokens": NaN}', (0, 0)),
        ('{"prompt_tokens": -3, "completion_tokens": 2.0}', (0, 2)),
        (f'{{"prompt_tokens": {"9" * 5000}, "completion_tokens": 1e300}}', (0, 0)),
        ('{"prompt_tokens": "12", "completion_tokens": [1]}', (0, 0)),
        ('{"prompt_tokens": null, "completion_tokens": true}', (0, 0)),
        ("[]", (0, 0)),
        ('"many"', (0, 0)),
        ("7", (0, 0)),
        ("null", (0, 0)),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_number_of_tokens_that_makes_no_sense_counts_nothing(usage: str, tokens: tuple[int, int]) -> None:
    body = f'{{"choices": [{{"message": {{"content": "fine"}}, "finish_reason": "stop"}}], "usage": {usage}}}'
    with serving(Reply(body=body)) as server:
        found = ask(server.url)
        assert (found.text, found.prompt_tokens, found.completion_tokens) == ("fine", *tokens)


def test_a_cache_in_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    settings = config.OpenAICriticConfig(base_url="http://a", model="m", cache="~/replies.jsonl")
    cache = ReplyCache.of(settings, tmp_path / "run")
    assert cache is not None
    assert cache.path == tmp_path / "replies.jsonl"


@pytest.mark.parametrize("least", ["-Infinity", "-1e999", "NaN", "-1e300"])
def test_log_probabilities_that_no_file_could_hold_are_finite(tmp_path: Path, least: str) -> None:
    likeliest = f'[{{"token": "right", "logprob": -0.5}}, {{"token": "wrong", "logprob": {least}}}]'
    logprobs = f'{{"content": [{{"top_logprobs": {likeliest}}}]}}'
    choice = f'{{"message": {{"content": "right"}}, "finish_reason": "stop", "logprobs": {logprobs}}}'
    path = tmp_path / "cache.jsonl"
    with serving(Reply(body=f'{{"choices": [{choice}]}}')) as server:
        (reply,) = ask_all(server.url, ["?"], cache=ReplyCache(path))
    assert reply.top_logprobs == {"right": -0.5, "wrong": -9999.0}
    with serving() as server:  # it is read from the file
        assert ask_all(server.url, ["?"], cache=ReplyCache(path)) == [reply]
        assert not server.requests


def test_text_that_no_file_could_hold_is_repaired(tmp_path: Path) -> None:
    cache = ReplyCache(tmp_path / "cache.jsonl")
    with serving(Reply("a\ud83d b")) as server:
        for _ in range(2):
            assert ask_all(server.url, ["?\ud83d"], cache=cache)[0] == ModelReply(
                text="a? b", prompt_tokens=11, completion_tokens=7
            )
    assert server.requests[0]["messages"][0]["content"] == "?\ud83d"


def test_megabytes_end_where_an_answer_ends() -> None:
    with serving(Reply("x" * 1_000_000)) as server:
        found = ask(server.url, max_tokens=100)
        assert (len(found.text), found.truncated) == (1600, True)
    with serving(Reply("x" * 30_000_000)) as server:
        assert ask(server.url, max_tokens=100) == ModelReply(text="", truncated=True)
    with serving(Reply("half a", finish="length")) as server:
        assert ask(server.url).truncated


def test_when_all_stay_down_the_error_names_the_cache(tmp_path: Path) -> None:
    url, _ = free_url()
    cache = ReplyCache(tmp_path / "answers.jsonl")
    with pytest.raises(StepalignError, match=r"no critic endpoint .*answers\.jsonl\. .*the same command goes on"):
        ask(url, cache=cache)
    with pytest.raises(StepalignError, match=r"critic\.cache = 'off' its replies to unfinished steps are lost"):
        ask(url)


def test_a_refusal_of_everything_names_the_recipes_keys() -> None:
    with (
        serving(Reply(status=401, body="bad key sk-key")) as server,
        pytest.raises(StepalignError, match=r"bad key \*\*\*.*critic\.model.*STEPALIGN_CRITIC_API_KEY"),
    ):
        ask(server.url)


def test_one_of_two_equal_requests_may_be_cancelled() -> None:
    with serving(Reply("fine", wait_s=0.2)) as server:

        async def run() -> ModelReply:
            async with connect(server.url) as connection:
                first, second = (asyncio.create_task(connection.ask({"messages": [{"content": ""}]})) for _ in "ab")
                await asyncio.sleep(0.05)
                first.cancel()
                return await second

        assert asyncio.run(run()).text == "fine"
        assert len(server.requests) == 1


def test_leaving_cancels_what_is_under_way() -> None:
    with serving(Reply("late", wait_s=30)) as server:

        async def run() -> None:
            async with connect(server.url, timeout_s=60.0) as connection:
                asked = asyncio.create_task(connection.ask({"messages": [{"content": ""}]}))
                await asyncio.sleep(0.1)
                asked.cancel()

        start = time.perf_counter()
        asyncio.run(run())
    assert time.perf_counter() - start < 5


def test_an_answer_is_paid_for_once(tmp_path: Path) -> None:
    cache = ReplyCache(tmp_path / "cache.jsonl")
    with serving(Reply("fine", wait_s=0.05)) as server:
        first = ask_all(server.url, ["a", "a", "b"], cache=cache)
        assert ask_all(server.url, ["b", "a", "a"], cache=cache) == first
        assert len(server.requests) == 2  # equal prompts that are under way are one, too
        ask_all(server.url, ["a"], cache=None)
        assert len(server.requests) == 3


def test_a_fault_is_not_kept(tmp_path: Path) -> None:
    cache = ReplyCache(tmp_path / "cache.jsonl")
    with serving(BAD, GOOD) as server:
        assert isinstance(ask_all(server.url, ["a"], cache=cache, max_retries=0)[0], UnansweredError)
        assert ask_all(server.url, ["a"], cache=cache) == [
            ModelReply(text="fine", prompt_tokens=11, completion_tokens=7)
        ]


LOGPROBS = {"right": -0.1}


@pytest.mark.parametrize(
    ("reply", "requested", "is_kept"),
    [
        (GOOD, {}, True),
        (Reply(" \n"), {}, False),
        (Reply(None), {}, False),
        (Reply(None, finish="length"), {}, True),  # all of it was thinking
        (Reply("right", finish="length"), {"logprobs": True}, False),
        (Reply("right", finish="length", logprobs=LOGPROBS), {"logprobs": True}, True),
        (Reply(" ", finish="length", logprobs=LOGPROBS), {"logprobs": True}, True),  # its likeliest tokens are read
    ],
)
def test_a_reply_without_what_was_asked_for_is_not_kept(
    tmp_path: Path, reply: Reply, requested: dict[str, Any], is_kept: bool
) -> None:
    cache = ReplyCache(tmp_path / "cache.jsonl")

    async def run(url: str) -> ModelReply:
        async with connect(url, cache) as connection:
            return await connection.ask({"messages": [{"role": "user", "content": "?"}], **requested})

    with serving(reply, Reply("later", logprobs=LOGPROBS)) as server:
        first, second = (asyncio.run(run(server.url)) for _ in range(2))
    assert (len(server.requests) == 1, first == second) == (is_kept, is_kept)


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
