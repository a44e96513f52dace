"""Failures of servers, and the client's answer to each."""

import asyncio
import json
import shutil
import socketserver
import ssl
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest

from serving.fault_server import Reply, Server, free_url, serving
from stepalign.errors import StepalignError
from stepalign.serving import client as client_module
from stepalign.serving.client import Call, Client, UnansweredError, to_json
from stepalign.serving.endpoints import Endpoints, check_urls

GOOD = Reply("fine")
BAD = Reply(status=500, body="{}")
MAX_BYTES = 2**18


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "_FIRST_WAIT_S", 0.02)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")


def client(urls: str | Sequence[str], *, timeout_s: float = 5.0, **changed: Any) -> "TestedClient":
    balancing = {"name": "critic", "cooldown_s": 0.1, "max_outage_s": 0.3, "failures": 3, "trial_s": timeout_s}
    limits = {"key": "sk-key", "total_timeout_s": 5.0, "max_retries": 3}
    balancing |= {key: value for key, value in changed.items() if key in balancing}
    limits |= {key: value for key, value in changed.items() if key in limits}
    assert set(changed) <= set(balancing) | set(limits)
    endpoints = Endpoints(
        [urls] if isinstance(urls, str) else urls, advice="Then the same command goes on.", **balancing
    )
    connection = TestedClient(endpoints, refusal_advice="Look at critic.model.", **limits)
    connection.timeout_s = timeout_s
    return connection


class TestedClient(Client):
    __test__ = False
    timeout_s: float


def read(body: bytes | None) -> str:
    """The text of a chat completion."""
    if body is None:
        return "too long"
    try:
        return str(json.loads(body)["choices"][0]["message"]["content"].strip())
    except (LookupError, TypeError, AttributeError, RecursionError):
        raise ValueError("not a chat completion") from None


async def send(connection: TestedClient, request: Mapping[str, Any], **options: Any) -> str:
    body, limit = to_json({"messages": [{"role": "user", "content": ""}], **request}), connection.timeout_s
    return await connection.post(
        Call(path="/chat/completions", body=body, read=read, max_bytes=MAX_BYTES, timeout_s=limit, **options)
    )


def ask_all(urls: str | Sequence[str], count: int, **changed: Any) -> list[str | BaseException]:
    """Answers to so many requests at once."""

    async def run() -> list[str | BaseException]:
        async with client(urls, **changed) as connection:
            return await asyncio.gather(*(send(connection, {"n": n}) for n in range(count)), return_exceptions=True)

    return asyncio.run(run())


def ask(url: str | Sequence[str], **changed: Any) -> str:
    (answer,) = ask_all(url, 1, **changed)
    if isinstance(answer, BaseException):
        raise answer
    return answer


def refusal(url: str | Sequence[str], **changed: Any) -> UnansweredError:
    with pytest.raises(UnansweredError) as error:
        ask(url, **changed)
    return error.value


def gaps(server: Server) -> list[float]:
    return [later - earlier for earlier, later in zip(server.times, server.times[1:], strict=False)]


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
        assert ask(server.url, max_retries=2) == "fine"
        assert len(server.requests) == 3
    with serving(fault) as server:
        assert refusal(server.url, max_retries=1).reason == "server"
        assert len(server.requests) == 2


def test_waits_grow_and_are_cut_by_chance(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "_FIRST_WAIT_S", 0.08)
    with serving(BAD, BAD, BAD, GOOD) as server:
        ask(server.url)
    assert [low <= gap <= low * 2 + 0.1 for low, gap in zip((0.04, 0.08, 0.16), gaps(server), strict=True)] == [
        True
    ] * 3


def test_a_refusal_is_this_prompts_alone_and_not_tried_again() -> None:
    with serving(Reply(status=400, body='{"error": "the prompt is too long"}'), GOOD) as server:
        error = refusal(server.url)
        assert (error.reason, "the prompt is too long" in error.detail, len(server.requests)) == ("refused", True, 1)
        assert ask(server.url) == "fine"


@pytest.mark.parametrize("status", [307, 401, 402, 403, 404, 405, 407, 410])
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
        assert ask(server.url, max_retries=0) == "fine"
    assert gaps(server)[0] >= (0.9 if unit == "date" else 0.29)


def test_an_endpoint_that_asks_for_a_pause_gets_it_from_every_request() -> None:
    with serving(Reply(status=429, headers={"Retry-After": "0.3"}, body="{}"), GOOD) as server:

        async def run() -> None:
            async with client(server.url) as connection:
                first = asyncio.create_task(send(connection, {"n": 0}))
                await asyncio.sleep(0.1)
                await asyncio.gather(first, send(connection, {"n": 1}), send(connection, {"n": 2}))

        asyncio.run(run())
    assert len(server.requests) == 4
    assert gaps(server)[0] >= 0.29


def test_a_pause_ends_with_the_total_time() -> None:
    with serving(Reply(status=429, headers={"Retry-After": "3600"}, body="{}")) as server:
        start = time.perf_counter()
        error = refusal(server.url, total_timeout_s=0.3)
    assert (error.reason, "429" in error.detail) == ("timeout", True)
    assert time.perf_counter() - start < 1


@pytest.mark.parametrize(
    "value",
    ["nan", "inf", "-inf", "-5", "1e999", "soon", "", "9" * 5000, "Fri, 01 Jan 99999 00:00:00 GMT",
     "Fri, 99 Foo 2026 00:00:00 GMT", "Thu, 01 Jan 1970 00:00:00 GMT", "Fri, 01 Jan 2027 00:00:00 +99999999999"],
)  # fmt: skip
def test_a_pause_that_makes_no_sense_is_a_fault_like_others(value: str) -> None:
    with serving(Reply(status=429, headers={"Retry-After": value}, body="{}"), GOOD) as server:
        assert ask(server.url, max_retries=1) == "fine"


def test_a_request_and_a_prompt_have_time_limits_of_their_own() -> None:
    with serving(Reply("slow", wait_s=30), GOOD) as server:
        assert ask(server.url, timeout_s=0.1) == "fine"
    with serving(Reply("slow", wait_s=30)) as server:
        start = time.perf_counter()
        assert refusal(server.url, timeout_s=0.1, max_retries=1).detail == "no answer within 0.1 s"
        error = refusal(server.url, timeout_s=0.2, total_timeout_s=0.3, max_retries=50)
        assert (error.reason, error.detail) == ("timeout", "no answer within 0.3 s; at last: no answer within 0.2 s")
    assert time.perf_counter() - start < 2


@pytest.mark.parametrize("timeout_s", [0.29, 0.3, 0.3001, 9.0])
def test_the_time_for_all_attempts_holds_however_near_the_time_of_one_is(timeout_s: float) -> None:
    async def run(url: str) -> list[str | BaseException]:
        async with client(url, timeout_s=timeout_s, total_timeout_s=0.3, failures=99, max_retries=9) as connection:
            asyncio.get_running_loop().call_later(0.2, time.sleep, 0.2)  # a busy loop sees both ends at once
            return await asyncio.gather(*(send(connection, {"n": n}) for n in range(6)), return_exceptions=True)

    with serving(Reply("late", wait_s=30)) as server:
        start = time.perf_counter()
        answers = asyncio.run(run(server.url))
        assert time.perf_counter() - start < 2
    assert [(type(answer), getattr(answer, "reason", "")) for answer in answers] == [(UnansweredError, "timeout")] * 6


def test_a_body_is_read_up_to_its_limit() -> None:
    with serving(Reply("x" * 30_000_000)) as server:
        assert ask(server.url) == "too long"


# ── several, and none ───────────────────────────────────────────────────────────────────────────────────────


def test_the_load_is_shared() -> None:
    with serving(Reply("fine", wait_s=0.1)) as one, serving(Reply("fine", wait_s=0.1)) as two:
        ask_all([one.url, two.url], 8)
    assert (len(one.requests), len(two.requests)) == (4, 4)


def test_a_slow_endpoint_gets_less() -> None:
    with serving(Reply("fine", wait_s=0.5)) as slow, serving(Reply("fine", wait_s=0.01)) as quick:

        async def trickle() -> None:
            async with client([slow.url, quick.url]) as connection:
                room = asyncio.Semaphore(4)

                async def one(number: int) -> None:
                    async with room:
                        await send(connection, {"n": number})

                await asyncio.gather(*map(one, range(16)))

        asyncio.run(trickle())
    assert len(slow.requests) < len(quick.requests)


def test_a_down_endpoint_is_left_alone_and_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    url, port = free_url()
    with serving(GOOD) as alive:

        async def run() -> int:
            async with client([url, alive.url], max_retries=1) as connection:
                for number in range(6):
                    assert await send(connection, {"n": number}) == "fine"
                with serving(GOOD, port=port) as back:
                    await asyncio.sleep(0.3)
                    for number in range(6, 12):
                        await send(connection, {"n": number})
                    return len(back.requests)

        assert asyncio.run(run()) >= 2
    assert [record.getMessage().partition(":")[0] for record in caplog.records] == ["critic"] * 2
    assert "answers again" in caplog.text


def test_one_prompt_that_always_fails_kills_no_endpoint_and_many_do() -> None:
    with serving(BAD) as server:
        assert refusal(server.url, max_retries=5).reason == "server"
        assert len(server.requests) == 6
        assert all(isinstance(error, StepalignError) for error in ask_all(server.url, 3))


def test_when_all_are_down_the_run_waits_and_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    url, port = free_url()

    async def run() -> str:
        async with client(url, max_retries=0, max_outage_s=5, total_timeout_s=0.3) as connection:
            waiting = asyncio.create_task(send(connection, {}))
            await asyncio.sleep(0.6)  # longer than the request's own time, which stands still
            with serving(GOOD, port=port):
                return await waiting

    assert asyncio.run(run()) == "fine"
    assert "no endpoint answers; waiting up to 5 s for one" in caplog.text


def test_the_time_of_a_request_stands_still_while_it_tries_a_server_that_hangs() -> None:
    limits: dict[str, Any] = {"timeout_s": 0.2, "total_timeout_s": 0.75, "cooldown_s": 0.015, "max_outage_s": 3}
    with serving(Reply(wait_s=30)) as server:
        errors = ask_all(server.url, 3, **limits)
    assert [(type(error), "no critic endpoint has answered" in str(error)) for error in errors] == [
        (StepalignError, True)
    ] * 3


def test_when_all_stay_down_the_run_stops_and_says_how_to_go_on() -> None:
    url, _ = free_url()
    start = time.perf_counter()
    with pytest.raises(StepalignError) as error:
        ask(url)
    assert 0.3 <= time.perf_counter() - start < 2
    for part in ("no critic endpoint has answered for 0 s", url, "the same command goes on"):
        assert part in str(error.value)


# ── a request without limits of its own (a completion may take half an hour) ────────────────────────────────


def unlimited(urls: str | Sequence[str], **changed: Any) -> TestedClient:
    options: dict[str, Any] = {"total_timeout_s": None, "max_retries": None, "failures": 1, "trial_s": 0.05}
    return client(urls, name="sampler", **options | changed)


def test_without_a_limit_only_an_outage_ends_a_request() -> None:
    with serving(*[BAD] * 6, GOOD) as server:

        async def run(**changed: Any) -> str:
            async with unlimited(server.url, cooldown_s=0.01, **changed) as connection:
                return await send(connection, {})

        assert asyncio.run(run(max_outage_s=5)) == "fine"
        server.requests.clear()
        with pytest.raises(StepalignError, match=r"no sampler endpoint has answered for \d s .* answers 500"):
            asyncio.run(run(max_outage_s=0.01))


@pytest.mark.parametrize("value", ["0", "0.001"])
def test_a_pause_of_nothing_does_not_spin(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "_FIRST_WAIT_S", 0.05)
    with serving(Reply(status=429, headers={"Retry-After": value}, body="{}")) as server:
        assert refusal(server.url, total_timeout_s=0.6).reason == "timeout"
    assert 3 <= len(server.requests) <= 6
    assert gaps(server)[-1] > gaps(server)[0]


def test_a_pause_without_end_is_an_outage_where_a_request_has_no_limit() -> None:
    with serving(Reply(status=429, headers={"Retry-After": "0"}, body="{}")) as server:

        async def run() -> str:
            async with unlimited(server.url) as connection:
                return await send(connection, {})

        with pytest.raises(StepalignError, match=r"no sampler endpoint has answered .* answers 429"):
            asyncio.run(run())
    assert len(server.requests) < 8


def test_after_an_outage_the_others_do_not_wait_for_the_first_answer() -> None:
    with serving(BAD, Reply("fine", wait_s=0.5)) as server:

        async def run() -> None:
            async with unlimited(server.url, max_outage_s=5) as connection:
                await asyncio.gather(*(send(connection, {"n": n}) for n in range(3)))

        start = time.perf_counter()
        asyncio.run(run())
    assert server.most_at_once > 1
    assert time.perf_counter() - start < 1.4, "three answers, one after the other, would take 1.5 s"


def test_an_answer_that_takes_longer_than_an_outage_may_is_waited_for() -> None:
    with serving(BAD, BAD, BAD, Reply("fine", wait_s=0.8), GOOD) as server:

        async def run() -> list[str]:
            async with unlimited(server.url, trial_s=5.0, max_outage_s=0.3) as connection:
                return await asyncio.gather(*(send(connection, {"n": n}) for n in range(3)))

        assert asyncio.run(run()) == ["fine"] * 3


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_refusal_of_everything_is_no_outage(status: int) -> None:
    with serving(Reply(status=status, body='{"error": "no"}')) as server:

        async def run() -> str:
            async with unlimited(server.url, max_outage_s=60) as connection:
                return await send(connection, {})

        with pytest.raises(StepalignError, match=rf"sampler: .* answers {status} "):
            asyncio.run(run())
        assert len(server.requests) == 1


def test_what_a_server_lost_is_given_to_it_and_the_request_sent_again() -> None:
    with serving(Reply(status=404, body="{}"), GOOD) as server:
        given: list[str] = []

        async def run() -> str:
            async def give(endpoint: Any) -> None:
                given.append(endpoint.url)

            async with client(server.url) as connection:
                return await send(connection, {}, on_missing=give)

        assert asyncio.run(run()) == "fine"
    assert (given, len(server.requests)) == ([server.url], 2)


# ── URLs and certificates ───────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "url",
    ["localhost:8000", "ftp://host/v1", "http://", "http://host:port/v1", "http://h:99999", "http://h:0/v1", "http:///v1",
     "http://[::1/v1", "http://a..b/v1", f"http://{'a' * 64}/v1", "http://a b/v1", "http://h/v1\n", "http://h/v1?model=m",
     "http://h/v1#top", "unix:///var/run/socket", "", " http://h/v1", "HTTP//h/v1", "http://h\u0000/v1"],
)  # fmt: skip
def test_a_base_url_that_is_none_is_an_error_that_names_the_key(url: str) -> None:
    with pytest.raises(StepalignError, match=r"sampler\.base_url: .*wanted, found"):
        check_urls("sampler.base_url", [url])
    check_urls("sampler.base_url", ["http://localhost:8000/v1", "https://host.example/v1", "http://[::1]:80/v1"])


@pytest.mark.parametrize("url", ["http://me:hunter2@host/v1", "https://hunter2@host/v1", "http://me:hunter2@ho st/v1"])
def test_a_url_with_a_password_is_refused_without_showing_it(url: str) -> None:
    with pytest.raises(StepalignError, match=r"critic\.base_url") as error:
        check_urls("critic.base_url", [url])
    assert "hunter2" not in str(error.value)


def test_what_cannot_be_sent_at_all_ends_the_run_at_once() -> None:
    start = time.perf_counter()
    with serving(GOOD) as server, pytest.raises(StepalignError, match="cannot be used"):
        ask(server.url, max_outage_s=60, key="sk-\nInjected: yes")
    assert time.perf_counter() - start < 5
    assert not server.requests


@pytest.mark.parametrize("key", [" sk-line\nbreak ", "sk-line\u2026", "sk-line break", "sk-line\x00"])
def test_a_key_that_no_header_can_carry_is_refused_without_showing_it(
    key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.environ", {"KEY": key})
    with pytest.raises(StepalignError, match="variable KEY: character 8 of the key") as error:
        client_module.read_key("KEY")
    assert "sk-line" not in str(error.value)


@pytest.mark.filterwarnings(  # at times a transport is left to the garbage collector; which one is not known
    "ignore::pytest.PytestUnraisableExceptionWarning"
)
@pytest.mark.parametrize(
    ("answer", "message"),
    [(b"", "no critic endpoint has answered"), (b"HTTP/1.1 400 Bad Request\r\n\r\n", "cannot be used")],
)
def test_a_handshake_that_breaks_off_may_pass_and_plain_http_behind_https_may_not(answer: bytes, message: str) -> None:
    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            self.request.recv(65536)  # the client's first message: unread, it would reset the connection
            self.request.sendall(answer)

    async def run(port: int) -> None:
        async with client(f"https://localhost:{port}/v1", max_outage_s=0.3) as connection:
            await send(connection, {})

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            with pytest.raises(StepalignError, match=message):
                asyncio.run(run(server.server_address[1]))
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl to make a certificate")
def test_a_certificate_that_is_not_trusted_ends_the_run_at_once(tmp_path: Path) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    subprocess.run(
        f"openssl req -x509 -newkey rsa:2048 -nodes -subj /CN=localhost -keyout {key} -out {certificate}".split(),
        check=True,
        capture_output=True,
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)

    async def run() -> None:
        server = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0, ssl=context)
        port = server.sockets[0].getsockname()[1]
        async with server, client(f"https://localhost:{port}/v1", max_outage_s=60) as connection:
            await send(connection, {})

    start = time.perf_counter()
    with pytest.raises(StepalignError, match=r"critic: https://localhost:\d+/v1/.* cannot be used: .*[Cc]ertificate"):
        asyncio.run(run())
    assert time.perf_counter() - start < 5
