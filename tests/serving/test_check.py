"""The check of servers before a run."""

import socket
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from serving.fault_server import Reply, serving
from stepalign import config
from stepalign.critics.mending import OpenAIMender
from stepalign.errors import StepalignError
from stepalign.serving import client


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def check(*urls: str, **changed: Any) -> None:
    settings = config.OpenAIMenderConfig.model_validate({"base_url": urls, "model": "m", **changed})
    OpenAIMender(settings, Path(), ()).check_servers()


@pytest.mark.parametrize("status", [400, 422])
def test_a_server_that_refuses_the_request_stops_the_run(status: int) -> None:
    with (
        serving(Reply("yes")) as good,
        serving(Reply(status=status, body="continue_final_message is not known")) as server,
        pytest.raises(StepalignError, match=rf"critic\.mender: .* answers {status} .*message is not known"),
    ):
        check(good.url, server.url)


def test_a_server_that_refuses_only_so_short_a_reply_serves() -> None:
    def choose(body: dict[str, Any]) -> Reply:
        short = body["max_tokens"] < 16
        return Reply(status=400, body="Expected a value >= 16, but got 1 instead") if short else Reply("yes")

    with serving(choose=choose) as server:
        check(server.url)
        assert [request["max_tokens"] for request in server.requests] == [1, 1024]


@pytest.mark.parametrize(
    ("busy", "said"),
    [(Reply(status=429, body=""), "answers 429"), (Reply("late", wait_s=30), "no answer within 0.2 s")],
)
def test_a_busy_server_is_warned_of_alone(busy: Reply, said: str, caplog: pytest.LogCaptureFixture) -> None:
    with serving(busy, Reply("yes")) as server:
        check(server.url, timeout_s=0.2)
    assert f"critic.mender: {server.url}: " in caplog.text
    assert said in caplog.text


def test_a_server_that_lets_nobody_connect_is_not_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "_CONNECT_TIMEOUT_S", 0.2)
    with ExitStack() as stack:
        full = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        stack.enter_context(socket.create_connection(full.getsockname()))  # takes the only place in the queue
        with pytest.raises(StepalignError, match=r"no critic\.mender endpoint works .*Connection timeout"):
            check(f"http://127.0.0.1:{full.getsockname()[1]}/v1", timeout_s=5)


@pytest.mark.parametrize("world_size", [1, 5, 32, 33, 64])
def test_processes_together_keep_to_the_limit_of_requests(world_size: int) -> None:
    share = config.ServedModelConfig(base_url=("http://h",), model="m").divided(world_size).max_concurrency
    assert share == 1 or 0 < share * world_size <= 32
