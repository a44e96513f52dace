"""A chat-completions server that misbehaves as told, to show what a critic makes of it."""

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Reply:
    """What the server does with one request."""

    content: str | Callable[[str], str] | None = ""
    """What it says, or what it makes of the prompt."""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    finish: str | None = "stop"
    reasoning: str | None = None
    body: str | None = None
    drop: bool = False
    """Close the connection instead of answering."""
    half: bool = False
    """Close it in the middle of the body."""
    wait_s: float = 0.0


@dataclass
class Server:
    url: str
    replies: list[Reply]
    """One a request, in order; the last one serves all that follow."""
    requests: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    at_once: int = 0
    most_at_once: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)


def free_url() -> tuple[str, int]:
    """A URL at which nothing answers, and its port."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    return f"http://127.0.0.1:{port}/v1", port


@contextmanager
def serving(*replies: Reply, port: int = 0) -> Iterator[Server]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with server.lock:
                reply = server.replies[min(len(server.requests), len(server.replies) - 1)]
                server.requests.append({"path": self.path, **request})
                server.keys.append(self.headers["Authorization"])
                server.times.append(time.perf_counter())
                server.at_once += 1
                server.most_at_once = max(server.most_at_once, server.at_once)
            closed.wait(reply.wait_s)
            with server.lock:
                server.at_once -= 1
            if reply.drop:
                self.connection.shutdown(socket.SHUT_RDWR)
                self.close_connection = True
                return
            said = reply.content(request["messages"][0]["content"]) if callable(reply.content) else reply.content
            message = {"role": "assistant", "content": said, "reasoning_content": reply.reasoning}
            completion = {
                "id": "c", "object": "chat.completion", "created": 0, "model": "critic",
                "choices": [{"index": 0, "message": message, "finish_reason": reply.finish}],
                "usage": {"prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 18},
            }  # fmt: skip
            body = (json.dumps(completion) if reply.body is None else reply.body).encode()
            headers = {"Content-Type": "application/json", "Content-Length": str(len(body)), **reply.headers}
            self.send_response(reply.status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body[: len(body) // 2] if reply.half else body)
            self.close_connection = reply.half

        def log_message(self, format: str, *args: object) -> None:
            pass

        def handle(self) -> None:
            with suppress(OSError, ValueError):  # the client may have gone
                super().handle()

    closed = threading.Event()
    listener = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    server = Server(f"http://127.0.0.1:{listener.server_port}/v1", list(replies))
    thread = threading.Thread(target=listener.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        closed.set()
        listener.shutdown()
        listener.server_close()
        thread.join()
