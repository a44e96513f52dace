"""What servers do, and what the transport makes of it."""

import asyncio
import socket
import time
from collections.abc import Sequence
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest

from critics.faulty import Reply, Server, serving
from stepalign import config
from stepalign.critics.cache import ReplyCache
from stepalign.errors import StepalignError
from stepalign.serving import client as transport
from stepalign.serving import endpoints
from stepalign.serving.client import ModelReply, Transport, UnansweredError

GOOD = Reply("fine")
BAD = Reply(status=500, body="{}")


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "_FIRST_WAIT_S", 0.02)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def ask_all(
    urls: str | Sequence[str], prompts: Sequence[str], *, cache: ReplyCache | None = None, **changed: Any
) -> list[ModelReply | BaseException]:
    """What becomes of prompts that are asked all at once."""
    table = {
        "base_url": urls,
        "model": "m",
        "timeout_s": 5.0,
        "total_timeout_s": 5.0,
        "cooldown_s": 0.1,
        "max_outage_s": 0.3,
    }
    settings = config.OpenAICriticConfig.model_validate(table | changed)

    async def run() -> list[ModelReply | BaseException]:
        async with Transport(settings, "sk-key", cache) as connection:
            requests = ({"messages": [{"role": "user", "content": prompt}]} for prompt in prompts)
            return await asyncio.gather(*map(connection.ask, requests), return_exceptions=True)

    return asyncio.run(run())


def ask(url: str | Sequence[str], **changed: Any) -> ModelReply:
    (found,) = ask_all(url, ["?"], **changed)
    if isinstance(found, BaseException):
        raise found
    return found


def refusal(url: str | Sequence[str], **changed: Any) -> UnansweredError:
    with pytest.raises(UnansweredError) as error:
        ask(url, **changed)
    return error.value


def gaps(server: Server) -> list[float]:
    return [later - earlier for earlier, later in zip(server.times, server.times[1:], strict=False)]


def free_url() -> tuple[str, int]:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    return f"http://127.0.0.1:{port}/v1", port


# ── one endpoint ────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "fault",
    [
        BAD,
        Reply(status=503, body=""),
        Reply(status=429, body=""),
        Reply(status=408, body=""),
        Reply(drop=True),
        Reply("fine", half=True),
        Reply(body="{not JSON"),
        Reply(body="<html>the proxy is sorry</html>", headers={"Content-Type": "text/html"}),
        Reply(body='{"choices": []}'),
        Reply(body='{"choices": [{"message": {"content": 7}}]}'),
        Reply(body="[" * 100_000),
    ],
)
def test_a_fault_that_passes_is_tried_again(fault: Reply) -> None:
    with serving(fault, fault, GOOD) as server:
        assert ask(server.url, max_retries=2).text == "fine"
        assert len(server.requests) == 3
    with serving(fault) as server:
        assert refusal(server.url, max_retries=1).reason == "server"
        assert len(server.requests) == 2


def test_waits_grow_and_are_cut_by_chance(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "_FIRST_WAIT_S", 0.08)
    with serving(BAD, BAD, BAD, GOOD) as server:
        ask(server.url)
    assert [low <= gap <= low * 2 + 0.1 for low, gap in zip((0.04, 0.08, 0.16), gaps(server), strict=True)] == [
        True
    ] * 3


def test_a_refusal_is_this_prompts_alone_and_not_tried_again() -> None:
    with serving(Reply(status=400, body='{"error": "the prompt is too long"}'), GOOD) as server:
        found = refusal(server.url)
        assert (found.reason, "the prompt is too long" in found.detail, len(server.requests)) == ("refused", True, 1)
        assert ask(server.url).text == "fine"


@pytest.mark.parametrize("status", [307, 401, 403, 404])
def test_what_no_request_can_help_stops_the_run(status: int) -> None:
    with serving(
        Reply(status=status, body='{"error": "bad key sk-key"}', headers={"Location": "/elsewhere"})
    ) as server:
        with pytest.raises(StepalignError, match=rf"answers {status} .*bad key \*\*\*.*critic\.model") as error:
            ask(server.url)
        assert len(server.requests) == 1
    assert "sk-key" not in str(error.value)


@pytest.mark.parametrize("unit", ["seconds", "milliseconds", "date"])
def test_retry_after_is_obeyed_and_costs_no_retry(unit: str) -> None:
    value = {"seconds": "0.3", "milliseconds": "300", "date": formatdate(time.time() + 2, usegmt=True)}[unit]
    name = "Retry-After-Ms" if unit == "milliseconds" else "Retry-After"
    with serving(Reply(status=429, headers={name: value}, body="{}"), GOOD) as server:
        assert ask(server.url, max_retries=0).text == "fine"
    assert gaps(server)[0] >= (0.9 if unit == "date" else 0.29)


def test_an_endpoint_that_asks_for_a_pause_gets_it_from_every_request() -> None:
    with serving(Reply(status=429, headers={"Retry-After": "0.3"}, body="{}"), GOOD) as server:

        async def run() -> None:
            table = {"base_url": server.url, "model": "m"}
            async with Transport(config.OpenAICriticConfig.model_validate(table), None, None) as connection:
                held = asyncio.create_task(connection.ask({"n": 0}))
                await asyncio.sleep(0.1)
                await asyncio.gather(held, connection.ask({"n": 1}), connection.ask({"n": 2}))

        asyncio.run(run())
    assert len(server.requests) == 4
    assert gaps(server)[0] >= 0.29


def test_a_pause_ends_with_the_total_time() -> None:
    with serving(Reply(status=429, headers={"Retry-After": "3600"}, body="{}")) as server:
        start = time.perf_counter()
        found = refusal(server.url, total_timeout_s=0.3)
    assert (found.reason, "429" in found.detail) == ("timeout", True)
    assert time.perf_counter() - start < 1


@pytest.mark.parametrize("value", ["nan", "inf", "-5", "soon", ""])
def test_a_pause_that_makes_no_sense_is_a_fault_like_others(value: str) -> None:
    with serving(Reply(status=429, headers={"Retry-After": value}, body="{}"), GOOD) as server:
        assert ask(server.url, max_retries=1).text == "fine"


def test_a_request_and_a_prompt_have_time_limits_of_their_own() -> None:
    with serving(Reply("slow", wait_s=30), GOOD) as server:
        assert ask(server.url, timeout_s=0.1).text == "fine"
    with serving(Reply("slow", wait_s=30)) as server:
        start = time.perf_counter()
        assert refusal(server.url, timeout_s=0.1, max_retries=1).detail == "no answer within 0.1 s"
        found = refusal(server.url, timeout_s=0.2, total_timeout_s=0.3, max_retries=50)
        assert (found.reason, found.detail) == ("timeout", "no answer within 0.3 s; at last: no answer within 0.2 s")
    assert time.perf_counter() - start < 2


def test_thinking_is_taken_off_wherever_it_stands() -> None:
    with serving(Reply("<think>a</think> b</think> fine")) as server:
        assert ask(server.url).text == " fine"
    with serving(Reply("fine", reasoning="</think> I think")) as server:
        assert ask(server.url).text == "fine"
    with serving(Reply("<think>on and on")) as server:
        assert ask(server.url).text == "<think>on and on"
    with serving(Reply(None, reasoning="all of it")) as server:
        assert ask(server.url).text == ""


def test_text_that_no_file_could_hold_is_mended(tmp_path: Path) -> None:
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


# ── several, and none ───────────────────────────────────────────────────────────────────────────────────────


def test_the_load_is_shared() -> None:
    with serving(Reply("fine", wait_s=0.1)) as one, serving(Reply("fine", wait_s=0.1)) as two:
        ask_all([one.url, two.url], [str(number) for number in range(8)])
    assert (len(one.requests), len(two.requests)) == (4, 4)


def test_a_slow_endpoint_gets_less() -> None:
    with serving(Reply("fine", wait_s=0.5)) as slow, serving(Reply("fine", wait_s=0.01)) as quick:

        async def trickle() -> None:
            table = {"base_url": [slow.url, quick.url], "model": "m"}
            async with Transport(config.OpenAICriticConfig.model_validate(table), None, None) as connection:
                room = asyncio.Semaphore(4)

                async def one(number: int) -> None:
                    async with room:
                        await connection.ask({"n": number})

                await asyncio.gather(*map(one, range(16)))

        asyncio.run(trickle())
    assert len(slow.requests) < len(quick.requests)


def test_a_dead_endpoint_is_left_alone_and_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    url, port = free_url()
    with serving(GOOD) as alive:

        async def run() -> int:
            table = {"base_url": [url, alive.url], "model": "m", "max_retries": 1, "cooldown_s": 0.1}
            async with Transport(config.OpenAICriticConfig.model_validate(table), None, None) as connection:
                for number in range(6):
                    assert (await connection.ask({"n": number})).text == "fine"
                with serving(GOOD, port=port) as back:
                    await asyncio.sleep(0.3)
                    for number in range(6, 12):
                        await connection.ask({"n": number})
                    return len(back.requests)

        assert asyncio.run(run()) >= 2
    assert [record.getMessage().partition(":")[0] for record in caplog.records] == ["critic"] * 2
    assert "answers again" in caplog.text


def test_one_prompt_that_always_fails_kills_no_endpoint_and_many_do() -> None:
    with serving(BAD) as server:
        assert refusal(server.url, max_retries=5).reason == "server"
        assert len(server.requests) == 6
        found = ask_all(server.url, [str(number) for number in range(endpoints._DEATHS)])
        assert all(isinstance(one, StepalignError) for one in found)


def test_when_all_are_dead_the_run_waits_and_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    url, port = free_url()

    async def run() -> ModelReply:
        table = {
            "base_url": url,
            "model": "m",
            "max_retries": 0,
            "cooldown_s": 0.1,
            "max_outage_s": 5,
            "total_timeout_s": 0.3,
        }
        async with Transport(config.OpenAICriticConfig.model_validate(table), None, None) as connection:
            waiting = asyncio.create_task(connection.ask({}))
            await asyncio.sleep(0.6)  # longer than the prompt's own time, which stands still
            with serving(GOOD, port=port):
                return await waiting

    assert asyncio.run(run()).text == "fine"
    assert "no endpoint answers; waiting up to 5 s for one" in caplog.text


def test_when_all_stay_dead_the_run_stops_and_says_how_to_go_on(tmp_path: Path) -> None:
    url, _ = free_url()
    cache = ReplyCache(tmp_path / "answers.jsonl")
    start = time.perf_counter()
    with pytest.raises(StepalignError) as error:
        ask(url, cache=cache)
    assert 0.3 <= time.perf_counter() - start < 2
    for part in ("no critic endpoint has answered for 0 s", url, "answers.jsonl", "the same command goes on"):
        assert part in str(error.value)


# ── the cache ───────────────────────────────────────────────────────────────────────────────────────────────


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
