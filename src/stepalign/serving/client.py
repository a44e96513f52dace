"""Chat completions over HTTP: one prompt in, one answer out, whatever the servers do meanwhile.

A request that fails in passing (no connection, a time-out, 408, 409, 429, 5xx, a body that is no chat completion) is
sent again, up to `retries` times, to whichever endpoint is next (`endpoints`), after a wait that doubles each time
and is cut by chance to between half and all of it. `Retry-After` is obeyed for its endpoint as a whole and costs no
retry. Neither do failures while all endpoints are dead: the run pauses instead. 401, 403, 404 and redirections stop the
run, since no request will fare better; any other refusal is this prompt's alone.

Built on aiohttp rather than the OpenAI SDK. On one core the SDK costs 1.2 ms a request (0.8 over aiohttp), aiohttp
0.15 (`bench/critic_throughput.py` needs at most 0.8 with everything else in it). The SDK's retries know one
endpoint, and its answers are read whole whatever their size; here a body ends at what `max_tokens` can fill.
"""

import asyncio
import email.utils
import hashlib
import json
import logging
import random
import time
from collections.abc import Mapping
from functools import cache
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp

from stepalign import config
from stepalign.critics.cache import ReplyCache
from stepalign.critics.llm import ModelReply
from stepalign.errors import StepalignError
from stepalign.serving.endpoints import Endpoints, Visit

log = logging.getLogger("stepalign")

_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.5, 30.0
_PER_TOKEN = 16
"""More characters than a token stands for on average, in any text."""
_ENVELOPE = 2**20
_SHOWN = 300


class UnansweredError(Exception):
    """A prompt for which no server has an answer; `reason` is `timeout`, `server` or `refused`."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason, self.detail = reason, detail


class _PassingError(Exception):
    """A failure after which the same request may well succeed."""

    def __init__(self, reason: str, detail: str, *, unreachable: bool = False, pause_s: float | None = None) -> None:
        super().__init__(detail)
        self.reason, self.detail, self.unreachable, self.pause_s = reason, detail, unreachable, pause_s


class Transport:
    """A connection to the endpoints, as an asynchronous context manager, and the cache before it."""

    def __init__(self, settings: config.OpenAICriticConfig, key: str | None, cache: ReplyCache | None) -> None:
        self._settings, self._key, self._cache = settings, key, cache
        self._limit = settings.max_tokens * _PER_TOKEN
        self._answering: dict[str, asyncio.Task[ModelReply]] = {}

    async def __aenter__(self) -> Self:
        settings = self._settings
        kept = (
            f"Its answers so far are kept in {self._cache.path}."
            if self._cache
            else "With critic.cache = 'off' its answers to unfinished steps are lost."
        )
        self._endpoints = Endpoints(
            settings.base_url, rest_s=settings.cooldown_s, outage_s=settings.max_outage_s, kept=kept
        )
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),
            timeout=aiohttp.ClientTimeout(total=settings.timeout_s),
            headers={"Content-Type": "application/json"}
            | ({"Authorization": f"Bearer {self._key}"} if self._key else {}),
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for task in self._answering.values():
            task.cancel()
        await asyncio.gather(*self._answering.values(), return_exceptions=True)
        await self._session.close()

    async def ask(self, request: Mapping[str, Any]) -> ModelReply:
        """The answer to a request: the one that is kept, the one on its way to an equal request, or a new one.

        Raises:
            UnansweredError: there is none, and why.
            StepalignError: no request can be answered.
        """
        body = json.dumps(request, sort_keys=True).encode()
        key = hashlib.sha256(body).hexdigest()
        if self._cache and (kept := self._cache.get(key)) is not None:
            return kept
        if (task := self._answering.get(key)) is None:
            task = self._answering[key] = asyncio.create_task(self._answer(key, body))
            task.add_done_callback(lambda _: self._answering.pop(key))
        return await task

    async def _answer(self, key: str, body: bytes) -> ModelReply:
        total_s, failures = self._settings.total_timeout_s, 0
        last = _PassingError("timeout", f"no answer within {total_s:g} s")
        try:
            async with asyncio.timeout(total_s) as limit:
                while True:
                    try:
                        answer = await self._try(key, body, limit)
                    except _PassingError as error:
                        last = error
                        failures += error.pause_s is None and not self._endpoints.dark
                        if failures > self._settings.max_retries:
                            raise UnansweredError(error.reason, error.detail) from None
                        if error.pause_s is None:
                            wait_s = min(_FIRST_WAIT_S * 2 ** max(failures - 1, 0), _LONGEST_WAIT_S)
                            await asyncio.sleep(wait_s * random.uniform(0.5, 1.0))
                    else:
                        if self._cache:
                            self._cache.put(key, answer)
                        return answer
        except TimeoutError:
            raise UnansweredError("timeout", f"no answer within {total_s:g} s; at last: {last.detail}") from None

    async def _try(self, key: str, body: bytes, limit: asyncio.Timeout) -> ModelReply:
        """One request to one endpoint, which learns how it went."""
        visit = await self._endpoints.take(limit)
        try:
            answer = await self._send(visit, body)
        except _PassingError as error:
            if error.pause_s is None:
                self._endpoints.failed(visit, key, error.detail, unreachable=error.unreachable)
            else:
                self._endpoints.held(visit, min(error.pause_s, self._settings.total_timeout_s))
            raise
        except UnansweredError:
            self._endpoints.answered(visit)
            raise
        except BaseException:
            self._endpoints.left(visit)
            raise
        self._endpoints.answered(visit)
        return answer

    async def _send(self, visit: Visit, body: bytes) -> ModelReply:
        url = visit.endpoint.url.rstrip("/") + "/chat/completions"
        try:
            async with self._session.post(url, data=body, proxy=_proxy(url), allow_redirects=False) as response:
                received = await self._read(response)
        except TimeoutError:
            raise _PassingError("timeout", f"no answer within {self._settings.timeout_s:g} s") from None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            unreachable = isinstance(error, aiohttp.ClientConnectorError)
            raise _PassingError(
                "server", self._shown(f"{type(error).__name__}: {error}"), unreachable=unreachable
            ) from None
        if response.status >= 300:
            self._refused(visit, response, received)
        if received is None:
            return ModelReply(text="", truncated=True)
        answer = _read_completion(received, self._limit)
        if answer is None:
            raise _PassingError("server", f"not a chat completion: {self._shown(received)}")
        return answer

    async def _read(self, response: aiohttp.ClientResponse) -> bytes | None:
        """A response's body; None where it is longer than an answer can be."""
        most = _ENVELOPE + 4 * self._limit  # a character is at most four bytes, an escaped one six
        pieces, size = [], 0
        async for piece in response.content.iter_any():
            pieces.append(piece)
            size += len(piece)
            if size > most:
                response.close()
                return None
        return b"".join(pieces)

    def _refused(self, visit: Visit, response: aiohttp.ClientResponse, body: bytes | None) -> None:
        status = response.status
        detail = f"{visit.endpoint.url} answers {status} {response.reason}: {self._shown(body or b'')}"
        if status < 400 or status in (401, 403, 404):
            raise StepalignError(
                f"critic: {detail}. Look at critic.base_url, critic.model and the key in the environment variable "
                f"{self._settings.api_key_env}; the same command then goes on from here."
            )
        pause_s = _retry_after(response.headers) if status in (429, 503) else None
        if status in (408, 409, 429) or status >= 500:
            raise _PassingError("server", detail, pause_s=pause_s)
        raise UnansweredError("refused", detail)

    def _shown(self, text: str | bytes) -> str:
        """A server's words for a person: short, and without the key, which a server may repeat."""
        found = text.encode(errors="replace") if isinstance(text, str) else text
        if self._key:
            found = found.replace(self._key.encode(), b"***")
        return " ".join(found[: 4 * _SHOWN].decode(errors="replace").split())[:_SHOWN]


@cache
def _proxy(url: str) -> str | None:
    """The proxy that the environment names for a URL. aiohttp would ask for it in a thread, at every request."""
    parts = urlsplit(url)
    return None if proxy_bypass(parts.hostname or "") else getproxies().get(parts.scheme)


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """The pause a server asks for, given in seconds or as a date."""
    for name, scale in (("Retry-After-Ms", 1000.0), ("Retry-After", 1.0)):
        if (value := headers.get(name)) is not None:
            try:
                pause_s = float(value) / scale
            except ValueError:
                date = email.utils.parsedate_tz(value)
                pause_s = email.utils.mktime_tz(date) - time.time() if date else -1.0
            if 0 <= pause_s < float("inf"):
                return pause_s
    return None


def _read_completion(body: bytes, limit: int) -> ModelReply | None:
    """The answer in a chat completion; None where it is none."""
    try:
        completion = json.loads(body)
        choice = completion["choices"][0]
        content = choice["message"].get("content") or ""
        usage = completion.get("usage") or {}
        tokens = {name: int(usage.get(name) or 0) for name in ("prompt_tokens", "completion_tokens")}
        if not isinstance(content, str):
            return None
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
        return None
    text = content.rpartition("</think>")[2]  # a server may give thinking in a field of its own: that is not read
    text = text.encode(errors="replace").decode()  # half a surrogate pair could not be written to a file
    truncated = choice.get("finish_reason") == "length" or len(text) > limit
    return ModelReply(text=text[:limit], truncated=truncated, **tokens)
