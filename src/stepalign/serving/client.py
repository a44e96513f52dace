"""HTTP client for OpenAI-compatible servers: one JSON body in, one answer out, whatever fails between.

A request that fails in passing (no connection, a time-out, 408, 409, 429, 5xx, a body that cannot be read) is sent
again, to the endpoint that is next (`endpoints`), after a wait that doubles each time and is cut at random to between
half and all of it. `Retry-After` holds for its endpoint as a whole and costs no retry, but a pause shorter than the
first wait is replaced by the growing one. Failures while all endpoints are down cost no retry either: the run pauses
instead. Redirections, the statuses of `_REFUSES_ALL`, a certificate that is not trusted and whatever cannot be sent at
all end the run, because no request can succeed; any other refusal concerns one request.

The time of a request and that of all its attempts are one deadline, the earlier of both, because of two that expire
together asyncio reports one. A trial of an endpoint that is down has the first alone. Text from outside is read without
the key (`redaction`).

Left out: the OpenAI SDK, because its retries know one endpoint, its answers are read whole whatever their size, and on
one core it costs 1.2 ms a request (0.8 over aiohttp), aiohttp 0.15; streaming, because an answer counts once it is
whole.
"""

import asyncio
import email.utils
import hashlib
import json
import logging
import os
import random
import ssl
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Generic, Self, TypeVar
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp

from stepalign.errors import StepalignError
from stepalign.serving.endpoints import Endpoint, Endpoints, Lease, TimeLimit
from stepalign.serving.redaction import Redaction, redact_urls

log = logging.getLogger("stepalign")

T = TypeVar("T")

_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.5, 30.0
_CONNECT_TIMEOUT_S = 30.0
_MAX_DETAIL = 300
_REFUSES_ALL = (401, 402, 403, 404, 405, 407, 410)
"""Statuses of a wrong key, model or URL, and of an account without credit."""


class UnansweredError(Exception):
    """A request without an answer; `reason` is `timeout`, `server` or `refused`, `status` that of a refusal."""

    def __init__(self, reason: str, detail: str, status: int = 0) -> None:
        super().__init__(detail)
        self.reason, self.detail, self.status = reason, detail, status


class TransientError(Exception):
    """A failure after which the same request may succeed."""

    def __init__(
        self,
        reason: str,
        detail: str,
        *,
        unreachable: bool = False,
        is_busy: bool = False,
        pause_s: float | None = None,
    ) -> None:
        super().__init__(detail)
        self.reason, self.detail, self.unreachable = reason, detail, unreachable
        self.is_busy, self.pause_s = is_busy, pause_s


@dataclass(frozen=True, kw_only=True)
class Call(Generic[T]):
    """A request and the reading of its answer."""

    path: str
    """Appended to an endpoint's URL."""
    body: bytes
    read: Callable[[bytes | None], T]
    """Reads the answer's body, None where it is longer than `max_bytes`. ValueError: it is no answer."""
    max_bytes: int
    timeout_s: float
    on_missing: Callable[[Endpoint], Awaitable[object]] | None = None
    """Called with an endpoint that answers 404; the request is then sent there once more."""


class Client:
    """Connection to endpoints that serve one model, as an asynchronous context manager."""

    def __init__(
        self,
        endpoints: Endpoints,
        *,
        key: str | None,
        max_retries: int | None = None,
        total_timeout_s: float | None = None,
        refusal_advice: str,
    ) -> None:
        """Prepare a connection; nothing is sent yet.

        Args:
            endpoints: where requests go.
            key: sent as bearer token, and removed from all that a server says.
            max_retries: further attempts after a failure; None tries until the outage is too long.
            total_timeout_s: for one answer with all its attempts, outages excepted. None: no limit, and a pause that
                an endpoint asks for counts as an outage, so that it ends.
            refusal_advice: the last sentence of the error after a status of `_REFUSES_ALL` or a redirection.
        """
        self.endpoints, self._key, self._total_timeout_s = endpoints, key, total_timeout_s
        self._max_retries, self._refusal_advice = max_retries, refusal_advice
        self.redact = Redaction(key)

    async def __aenter__(self) -> Self:
        bearer = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={"Content-Type": "application/json", **bearer},
            timeout=aiohttp.ClientTimeout(sock_connect=_CONNECT_TIMEOUT_S),  # `_send` has that of the whole request
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    async def post(self, call: Call[T]) -> T:
        """Send a request to the least loaded endpoint until one answers.

        Raises:
            UnansweredError: this request has no answer.
            StepalignError: no request can be answered.
        """
        request, limit = hashlib.sha256(call.body).hexdigest(), TimeLimit(self._total_timeout_s)
        failures = pauses = 0
        last = ""
        while limit.left_s:
            try:
                lease = await self.endpoints.lease(limit)
            except TimeoutError:
                break
            try:
                return await self._attempt(lease, request, call, limit)
            except UnansweredError as error:
                if _refuses_all(error):
                    raise self.fatal(error) from None
                raise
            except TransientError as error:
                if not limit.left_s:
                    break
                last, paused = f"; at last: {error.detail}", error.pause_s is not None
                pauses = pauses + 1 if paused else 0
                failures += not paused and not self.endpoints.all_down
                if self._max_retries is not None and failures > self._max_retries:
                    raise UnansweredError(error.reason, error.detail) from None
                # While all are down, `lease` waits.
                if not self.endpoints.all_down and (not paused or (error.pause_s or 0.0) < _FIRST_WAIT_S):
                    doublings = max((pauses if paused else failures) - 1, 0)
                    wait_s = min(_FIRST_WAIT_S * 2.0 ** min(doublings, 10), _LONGEST_WAIT_S)
                    await asyncio.sleep(min(wait_s * random.uniform(0.5, 1.0), limit.left_s))
        raise UnansweredError("timeout", f"no answer within {limit.seconds:g} s{last}")

    async def check(self, *calls: Call[Any]) -> None:
        """Send a request once to every endpoint, so that what is wrong with them is known before any work.

        Args:
            calls: the request, and further ones for an endpoint that refuses those before.

        Raises:
            StepalignError: one refuses all requests, or none works. Some that do not, and busy ones, are logged.
        """

        async def fault(url: str) -> str:
            for call in calls:
                try:
                    await self._send(url, call, TimeLimit(None))
                except TransientError as error:
                    if not error.is_busy:
                        return f"{url}: {error.detail}"
                    log.warning("%s: %s: %s", self.endpoints.name, url, error.detail)
                except UnansweredError as error:
                    if not _refuses_all(error) and call is not calls[-1]:
                        continue
                    raise self.fatal(error) from None
                break
            return ""

        faults = await asyncio.gather(*map(fault, self.endpoints.urls))
        if all(faults):
            reasons = "; ".join(faults)
            raise StepalignError(
                f"no {self.endpoints.name} endpoint works ({reasons}). Start it, then the same command"
            )
        for one in filter(None, faults):
            log.warning("%s: %s", self.endpoints.name, one)

    async def post_to(self, endpoint: Endpoint, call: Call[T]) -> T:
        """Send a request once, to this endpoint. It may refuse (`UnansweredError`) or fail (`TransientError`)."""
        return await self._attempt(self.endpoints.lease_at(endpoint), call.path, call, TimeLimit(None))

    def fatal(self, refusal: UnansweredError) -> StepalignError:
        """Return the error that ends a run after a refusal."""
        return StepalignError(f"{self.endpoints.name}: {refusal.detail}. {self._refusal_advice}")

    async def _attempt(self, lease: Lease, request: str, call: Call[T], limit: TimeLimit) -> T:
        """Send a request once, and record the outcome at its endpoint. A trial that fails costs no time of `limit`."""
        start, own_limit = time.monotonic(), TimeLimit(None) if lease.is_trial else limit
        try:
            try:
                answer = await self._send(lease.endpoint.url, call, own_limit)
            except UnansweredError as error:
                if error.status != 404 or call.on_missing is None:
                    raise
                await call.on_missing(lease.endpoint)
                answer = await self._send(lease.endpoint.url, call, own_limit)
        except TransientError as error:
            if lease.is_trial:
                limit.extend(time.monotonic() - start)
            if error.pause_s is None or self._total_timeout_s is None:
                self.endpoints.failed(lease, request, error.detail, error.unreachable, error.pause_s or 0.0)
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

    async def _send(self, base_url: str, call: Call[T], limit: TimeLimit) -> T:
        url, timeout_s = base_url.rstrip("/") + call.path, min(call.timeout_s, limit.left_s)
        try:
            async with (
                asyncio.timeout(timeout_s) as scope,
                self._session.post(url, data=call.body, proxy=_proxy(url), allow_redirects=False) as response,
            ):
                body = self.redact.bytes(await _read(response, call.max_bytes))
        except (aiohttp.ClientError, OSError, ValueError) as error:
            if scope.expired():
                raise TransientError("timeout", f"no answer within {timeout_s:g} s", is_busy=True) from None
            detail = self._excerpt(f"{type(error).__name__}: {error}")
            if _is_permanent(error):
                raise StepalignError(f"{self.endpoints.name}: {url} cannot be used: {detail}") from None
            unreachable = isinstance(error, aiohttp.ClientConnectorError | aiohttp.ConnectionTimeoutError)
            raise TransientError("server", detail, unreachable=unreachable) from None
        status = response.status
        if status >= 300:
            detail = f"{url} answers {status} {self._excerpt(response.reason or '')}: {self._excerpt(body or b'')}"
            if status in (408, 409, 429) or status >= 500:
                pause_s = _retry_after(response.headers) if status in (429, 503) else None
                is_busy = status == 429 or pause_s is not None
                raise TransientError("server", detail, is_busy=is_busy, pause_s=pause_s)
            raise UnansweredError("refused", detail, status)
        try:
            return call.read(body)
        except ValueError as error:
            raise TransientError("server", f"{error}: {self._excerpt(body or b'')}") from None

    def _excerpt(self, text: str | bytes) -> str:
        """Return the beginning of a server's text, on one line and without secrets."""
        content = text.encode(errors="replace") if isinstance(text, str) else text
        shown = (self.redact.bytes(content) or b"")[: 4 * _MAX_DETAIL].decode(errors="replace")
        return redact_urls(" ".join(shown.split()))[:_MAX_DETAIL]


def read_key(variable: str) -> str | None:
    """Read a key from an environment variable; None where it is not set.

    Raises:
        StepalignError: no HTTP header can carry it.
    """
    key = os.environ.get(variable, "").strip()
    if (bad := next((at for at, letter in enumerate(key, 1) if not "!" <= letter <= "~"), None)) is not None:
        raise StepalignError(
            f"environment variable {variable}: character {bad} of the key is a space, a line break or not ASCII, which "
            "no HTTP header can carry"
        )
    return key or None


def to_json(value: Mapping[str, Any]) -> bytes:
    """Encode a request's body; equal ones are equal bytes."""
    return json.dumps(value, sort_keys=True).encode()


async def _read(response: aiohttp.ClientResponse, max_bytes: int) -> bytes | None:
    body = bytearray()
    async for piece in response.content.iter_any():
        body += piece
        if len(body) > max_bytes:
            response.close()
            return None
    return bytes(body)


@cache
def _proxy(url: str) -> str | None:
    """Return the environment's proxy for a URL. aiohttp would look it up in a thread, at every request."""
    parts = urlsplit(url)
    return None if proxy_bypass(parts.hostname or "") else getproxies().get(parts.scheme)


def _refuses_all(error: UnansweredError) -> bool:
    """Return whether a server refuses every request."""
    return error.status in _REFUSES_ALL or error.status < 400


def _is_permanent(error: Exception) -> bool:
    """Return whether nothing that a server does can mend an error."""
    if isinstance(error, aiohttp.ClientConnectorSSLError):  # an end in the middle of the handshake may pass
        return not isinstance(error.os_error, ssl.SSLEOFError | ssl.SSLZeroReturnError)
    # A URL or a header that cannot be sent is a ValueError; answers that cannot be read are ClientErrors.
    return isinstance(error, aiohttp.ClientSSLError | ValueError)


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Return the pause that a server asks for, in seconds; it is given so or as a date. None: it makes no sense."""
    for name, scale in (("Retry-After-Ms", 1000.0), ("Retry-After", 1.0)):
        if (value := headers.get(name)) is not None:
            try:
                pause_s = float(value) / scale
            except ValueError:
                pause_s = _seconds_until(value)
            if 0 <= pause_s < float("inf"):
                return pause_s
    return None


def _seconds_until(date: str) -> float:
    """Return the seconds until a date of HTTP; -1 where it is none."""
    try:
        return email.utils.parsedate_to_datetime(date).timestamp() - time.time()
    except (ValueError, OverflowError, TypeError, IndexError):  # a year 99999 among them
        return -1.0
