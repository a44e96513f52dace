"""A chat-completions server that fails as told, to show what a client and a critic make of it.

with serving(Reply(status=500), Reply("fine")) as server:
    ...  # server.url, server.requests
"""

import asyncio
import json
import logging
import random
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from aiohttp import web

_QUIET = logging.getLogger("fault-server")
_QUIET.disabled = True


@dataclass
class Reply:
    """What the server does with one request."""

    content: Any = ""
    """The message's content: any JSON value, or a function of the prompt."""
    status: int = 200
    reason: str | None = None
    headers: dict[str, str] = field(default_factory=dict)
    finish: str | None = "stop"
    reasoning: str | None = None
    message: Mapping[str, Any] = field(default_factory=dict)
    """Further fields of the message."""
    logprobs: Mapping[str, float] | None = None
    """The likeliest first tokens."""
    usage: Any = field(default_factory=lambda: {"prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 18})
    body: str | bytes | Callable[[Mapping[str, str]], str] | None = None
    """The whole body, or a function of the request's headers; None is a chat completion."""
    drop: bool = False
    """Close the connection instead of answering."""
    half: bool = False
    """Close it in the middle of the body."""
    wait_s: float = 0.0

    def encode(self, headers: Mapping[str, str], prompt: str) -> bytes:
        if callable(self.body):
            return self.body(headers).encode()
        if self.body is not None:
            return self.body.encode() if isinstance(self.body, str) else self.body
        said = self.content(prompt) if callable(self.content) else self.content
        message = {"role": "assistant", "content": said, "reasoning_content": self.reasoning, **self.message}
        top = [{"token": token, "logprob": value} for token, value in (self.logprobs or {}).items()]
        logprobs = None if self.logprobs is None else {"content": [{"token": said, "top_logprobs": top}]}
        completion = {
            "id": "c", "object": "chat.completion", "created": 0, "model": "critic",
            "choices": [{"index": 0, "message": message, "finish_reason": self.finish, "logprobs": logprobs}],
            "usage": self.usage,
        }  # fmt: skip
        return json.dumps(completion).encode()


@dataclass
class Server:
    url: str
    replies: Sequence[Reply] | Callable[[dict[str, Any]], Reply]
    """One a request, in order, the last one for all that follow; or a function of the request."""
    requests: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    at_once: int = 0
    most_at_once: int = 0

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse:
        asked = json.loads(await request.read() or "{}")
        if callable(self.replies):
            reply = self.replies(asked)
        else:
            reply = self.replies[min(len(self.requests), len(self.replies) - 1)]
        self.requests.append({"path": request.path, **asked})
        self.keys.append(request.headers.get("Authorization"))
        self.times.append(time.perf_counter())
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            await asyncio.sleep(reply.wait_s)
        finally:
            self.at_once -= 1
        prompt = (asked.get("messages") or [{"content": ""}])[0]["content"]
        headers = {"Content-Type": "application/json", **reply.headers}
        body = b"" if reply.drop else reply.encode(request.headers, prompt)
        if reply.drop or reply.half:
            response = web.StreamResponse(status=reply.status, reason=reply.reason, headers=headers)
            response.content_length = len(body)
            if reply.half:
                await response.prepare(request)
                await response.write(body[: len(body) // 2])
            if request.transport:
                request.transport.close()
            return response
        return web.Response(status=reply.status, reason=reply.reason, headers=headers, body=body)


def free_url() -> tuple[str, int]:
    """A URL at which nothing answers, and its port."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    return f"http://127.0.0.1:{port}/v1", port


@contextmanager
def serving(
    *replies: Reply, choose: Callable[[dict[str, Any]], Reply] | None = None, port: int = 0,
    tls: ssl.SSLContext | None = None,
) -> Iterator[Server]:  # fmt: skip
    """Serve in a thread: these replies in order, or what `choose` makes of each request."""
    server = Server("", choose or list(replies))
    up: Future[tuple[asyncio.AbstractEventLoop, asyncio.Event, int]] = Future()

    async def run() -> None:
        runner = web.ServerRunner(web.Server(server.answer, access_log=None, logger=_QUIET), shutdown_timeout=0.01)
        await runner.setup()
        stop = asyncio.Event()
        try:
            await web.TCPSite(runner, "127.0.0.1", port, ssl_context=tls, reuse_address=True).start()
            up.set_result((asyncio.get_running_loop(), stop, runner.addresses[0][1]))
            await stop.wait()
        except BaseException as error:
            if not up.done():
                up.set_exception(error)
        finally:
            await runner.cleanup()

    thread = threading.Thread(target=lambda: asyncio.run(run()), name="fault-server")
    thread.start()
    loop, stop, bound = up.result()
    host = "localhost" if tls else "127.0.0.1"
    server.url = f"http{'s' if tls else ''}://{host}:{bound}/v1"
    try:
        yield server
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()


PASSING = (
    Reply(status=500, body="{}"),
    Reply(status=503, body=""),
    Reply(status=429, headers={"Retry-After": "0"}, body=""),
    Reply(status=408, body=""),
    Reply(drop=True),
    Reply("fine", half=True),
    Reply(body="{not JSON"),
    Reply(body="<html>the proxy is sorry</html>", headers={"Content-Type": "text/html"}),
    Reply(body='{"choices": []}'),
    Reply(body="[" * 100_000),
)
"""Faults after which the same request may be answered."""


def at_random(good: Reply, *, share: float, seed: int, wait_s: float = 0.0) -> Callable[[dict[str, Any]], Reply]:
    """A `choose` that fails this share of the requests, each in one of the ways of `PASSING`."""
    chance = random.Random(seed)

    def choose(_: dict[str, Any]) -> Reply:
        reply = chance.choice(PASSING) if chance.random() < share else good
        return replace(reply, wait_s=chance.uniform(0, 2 * wait_s))

    return choose
