"""HTTP client for OpenAI-compatible servers: one JSON body in, one answer out, across failures of the servers.

A request that fails in passing (no connection, a time-out, 408, 409, 429, 5xx, a body that cannot be read) is sent
again, to the endpoint that is next (`endpoints`), after a wait that doubles each time and is cut at random to between
half and all of it. `Retry-After` holds for its endpoint as a whole and costs no retry, but a pause shorter than the
first wait is replaced by the growing one. Failures while all endpoints are down cost no retry either: the run pauses
instead. Redirections, 401, 403, 404 and a certificate or URL that is not valid end the run, because no request can
succeed; any other refusal concerns one request.

Built on aiohttp rather than the OpenAI SDK. On one core the SDK costs 1.2 ms a request (0.8 over aiohttp), aiohttp
0.15 (`bench/critic_throughput.py` needs at most 0.8 with everything else in it). The SDK's retries know one
endpoint, and its answers are read whole whatever their size; here a body ends at `max_bytes`.

Left out: streaming, because an answer counts once it is whole.
"""

import asyncio
import email.utils
import hashlib
import json
import random
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import cache
from types import TracebackType
from typing import Any, Self, TypeVar
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp

from stepalign.errors import StepalignError
from stepalign.serving.endpoints import Endpoint, Endpoints, Lease

T = TypeVar("T")

_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.5, 30.0
_MAX_DETAIL = 300


class UnansweredError(Exception):
    """A request without an answer; `reason` is `timeout`, `server` or `refused`, `status` that of a refusal."""

    def __init__(self, reason: str, detail: str, status: int = 0) -> None:
        super().__init__(detail)
        self.reason, self.detail, self.status = reason, detail, status


class TransientError(Exception):
    """A failure after which the same request may succeed."""

    def __init__(self, reason: str, detail: str, *, unreachable: bool = False, pause_s: float | None = None) -> None:
        super().__init__(detail)
        self.reason, self.detail, self.unreachable, self.pause_s = reason, detail, unreachable, pause_s


class Client:
    """Connection to endpoints that serve one model, as an asynchronous context manager."""

    def __init__(
        self,
        urls: Sequence[str],
        *,
        name: str,
        key: str | None,
        timeout_s: float,
        cooldown_s: float,
        max_outage_s: float,
        max_retries: int | None = None,
        total_timeout_s: float | None = None,
        failures: int = 1,
        trial_s: float | None = None,
        refusal_advice: str,
        outage_advice: str,
    ) -> None:
        """
        Args:
            urls: base URLs; `/chat/completions` and the like are appended.
            name: what they serve (`critic`, `sampler`), for messages.
            key: sent as bearer token, and removed from every message.
            timeout_s: for one request.
            cooldown_s: time without requests after an endpoint failed.
            max_outage_s: time that all endpoints may be down.
            max_retries: further attempts after a failure; None tries until the outage is too long.
            total_timeout_s: for one answer with all its attempts, outages excepted. None: no limit, and a pause that
                an endpoint asks for counts as an outage, so that it ends.
            failures: see `Endpoints`.
            trial_s: see `Endpoints`; None is `timeout_s`.
            refusal_advice: the last sentence of the error after 401, 403, 404 or a redirection.
            outage_advice: the last sentence of the error that ends an outage.
        """
        self._name, self._key, self._timeout_s, self._total_timeout_s = name, key, timeout_s, total_timeout_s
        self._max_retries, self._refusal_advice = max_retries, refusal_advice
        self.endpoints = Endpoints(
            urls,
            name=name,
            cooldown_s=cooldown_s,
            max_outage_s=max_outage_s,
            failures=failures,
            trial_s=timeout_s if trial_s is None else trial_s,
            advice=outage_advice,
        )

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),
            headers={"Content-Type": "application/json"}
            | ({"Authorization": f"Bearer {self._key}"} if self._key else {}),
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._session.close()

    async def post(
        self,
        path: str,
        body: bytes,
        read: Callable[[bytes | None], T],
        *,
        max_bytes: int,
        on_missing: Callable[[Endpoint], Awaitable[object]] | None = None,
    ) -> T:
        """Send a request to the least loaded endpoint until one answers.

        Args:
            path: appended to the base URL.
            body: JSON.
            read: reads the answer's body, None where it is longer than `max_bytes`. ValueError: it is no answer.
            max_bytes: where reading stops.
            on_missing: called with an endpoint that answers 404; the request is then sent there once more.

        Raises:
            UnansweredError: this request has no answer.
            StepalignError: no request can be answered.
        """
        request, total_s = hashlib.sha256(body).hexdigest(), self._total_timeout_s
        failures = pauses = 0
        last = TransientError("timeout", f"no answer within {total_s} s")
        try:
            async with asyncio.timeout(total_s) as limit:
                while True:
                    lease = await self.endpoints.lease(limit)
                    try:
                        return await self._attempt(lease, request, path, body, read, max_bytes, on_missing)
                    except UnansweredError as error:
                        if error.status in (401, 403, 404) or error.status < 400:
                            raise self.fatal(error) from None
                        raise
                    except TransientError as error:
                        last, paused = error, error.pause_s is not None
                        pauses = pauses + 1 if paused else 0
                        failures += not paused and not self.endpoints.all_down
                        if self._max_retries is not None and failures > self._max_retries:
                            raise UnansweredError(error.reason, error.detail) from None
                        if not paused or (error.pause_s or 0.0) < _FIRST_WAIT_S:
                            doublings = max((pauses if paused else failures) - 1, 0)
                            wait_s = min(_FIRST_WAIT_S * 2.0 ** min(doublings, 10), _LONGEST_WAIT_S)
                            await asyncio.sleep(wait_s * random.uniform(0.5, 1.0))
        except TimeoutError:
            raise UnansweredError("timeout", f"no answer within {total_s:g} s; at last: {last.detail}") from None

    async def post_to(
        self,
        endpoint: Endpoint,
        path: str,
        body: bytes,
        read: Callable[[bytes | None], T],
        *,
        max_bytes: int,
        timeout_s: float | None = None,
        on_missing: Callable[[Endpoint], Awaitable[object]] | None = None,
    ) -> T:
        """Send a request once, to this endpoint. See `post`.

        Raises:
            UnansweredError: it refuses.
            TransientError: it does not answer now.
        """
        lease = self.endpoints.lease_at(endpoint)
        return await self._attempt(lease, path, path, body, read, max_bytes, on_missing, timeout_s)

    def fatal(self, refusal: UnansweredError) -> StepalignError:
        """Return the error that ends a run after a refusal."""
        return StepalignError(f"{self._name}: {refusal.detail}. {self._refusal_advice}")

    async def _attempt(
        self,
        lease: Lease,
        request: str,
        path: str,
        body: bytes,
        read: Callable[[bytes | None], T],
        max_bytes: int,
        on_missing: Callable[[Endpoint], Awaitable[object]] | None,
        timeout_s: float | None = None,
    ) -> T:
        """Send a request once, and record the outcome at its endpoint."""
        url, timeout_s = lease.endpoint.url.rstrip("/") + path, timeout_s or self._timeout_s
        try:
            try:
                answer = await self._send(url, body, read, max_bytes, timeout_s)
            except UnansweredError as error:
                if error.status != 404 or on_missing is None:
                    raise
                await on_missing(lease.endpoint)
                answer = await self._send(url, body, read, max_bytes, timeout_s)
        except TransientError as error:
            if error.pause_s is None or self._total_timeout_s is None:
                self.endpoints.failed(
                    lease, request, error.detail, unreachable=error.unreachable, pause_s=error.pause_s or 0.0
                )
            else:
                self.endpoints.rate_limited(lease, min(error.pause_s, self._total_timeout_s))
            raise
        except UnansweredError:
            self.endpoints.answered(lease)
            raise
        except BaseException:
            self.endpoints.release(lease)
            raise
        self.endpoints.answered(lease)
        return answer

    async def _send(
        self, url: str, body: bytes, read: Callable[[bytes | None], T], max_bytes: int, timeout_s: float
    ) -> T:
        try:
            async with self._session.post(
                url, data=body, proxy=_proxy(url), allow_redirects=False, timeout=aiohttp.ClientTimeout(timeout_s)
            ) as response:
                received = await _read(response, max_bytes)
        except TimeoutError:
            raise TransientError("timeout", f"no answer within {timeout_s:g} s") from None
        except (aiohttp.InvalidURL, aiohttp.ClientSSLError) as error:
            raise StepalignError(
                f"{self._name}: {url} cannot be used: {self._excerpt(f'{type(error).__name__}: {error}')}"
            ) from None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            unreachable = isinstance(error, aiohttp.ClientConnectorError)
            detail = self._excerpt(f"{type(error).__name__}: {error}")
            raise TransientError("server", detail, unreachable=unreachable) from None
        status = response.status
        if status >= 300:
            detail = f"{url} answers {status} {response.reason}: {self._excerpt(received or b'')}"
            if status in (408, 409, 429) or status >= 500:
                pause_s = _retry_after(response.headers) if status in (429, 503) else None
                raise TransientError("server", detail, pause_s=pause_s)
            raise UnansweredError("refused", detail, status)
        try:
            return read(received)
        except ValueError as error:
            raise TransientError("server", f"{error}: {self._excerpt(received or b'')}") from None

    def _excerpt(self, text: str | bytes) -> str:
        """The beginning of a server's text, without the key, which a server may repeat."""
        content = text.encode(errors="replace") if isinstance(text, str) else text
        if self._key:
            content = content.replace(self._key.encode(), b"***")
        return " ".join(content[: 4 * _MAX_DETAIL].decode(errors="replace").split())[:_MAX_DETAIL]


def to_json(value: Mapping[str, Any]) -> bytes:
    """Equal bodies for equal requests."""
    return json.dumps(value, sort_keys=True).encode()


async def _read(response: aiohttp.ClientResponse, max_bytes: int) -> bytes | None:
    """The response's body; None where it is longer than `max_bytes`."""
    pieces, size = [], 0
    async for piece in response.content.iter_any():
        pieces.append(piece)
        size += len(piece)
        if size > max_bytes:
            response.close()
            return None
    return b"".join(pieces)


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
