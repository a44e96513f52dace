"""Base URLs that serve one model: load balancing, cooldown, and the clock of an outage.

The endpoint with the fewest requests under way takes the next one. An endpoint is *down* when it cannot be connected
to, or when `failures` different requests have failed there with no success between. It cools down, then the next
request tries it: a success ends the outage, a failure doubles the cooldown. While all endpoints are down, requests
wait; after `max_outage_s` they raise an error, unless a trial is still under way. An endpoint that asks for a pause
(`Retry-After`) gets no request until the pause is over.
"""

import asyncio
import logging
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from yarl import URL

from stepalign.errors import StepalignError
from stepalign.serving.redaction import redact_urls

log = logging.getLogger("stepalign")

_MAX_DOUBLINGS = 3


def check_urls(key: str, urls: Sequence[str]) -> None:
    """Refuse a URL under the recipe's `key` to which no request can be sent."""
    for url in urls:
        try:
            parts = URL(url)
            host, port = (parts.host or "").encode("idna"), parts.port
        except ValueError:  # a port that is no number, a label of the host that is too long
            host, port = b"", None
        valid = host and port and url.startswith(("http://", "https://")) and url.isprintable() and " " not in url
        if valid and parts.raw_user is not None:
            raise StepalignError(
                f"{key}: a URL with a user or password would be shown in the recipe and the report; put a key into "
                "the environment variable that api_key_env names"
            )
        if not valid or parts.query_string or parts.fragment:
            raise StepalignError(f"{key}: a URL like http://localhost:8000/v1 is wanted, found {redact_urls(url)!r}")


class TimeLimit:
    """Time left of a request, within one event loop. It stands still during an outage."""

    def __init__(self, seconds: float | None) -> None:
        """Begin now; None is no limit."""
        self.seconds = seconds
        self._until = float("inf") if seconds is None else asyncio.get_running_loop().time() + seconds

    @property
    def left_s(self) -> float:
        """Seconds left, at least 0."""
        return max(self._until - asyncio.get_running_loop().time(), 0.0)

    def extend(self, seconds: float) -> None:
        """Add time that does not count."""
        self._until += seconds


@dataclass(eq=False)
class Endpoint:
    """One base URL. Times are the event loop's."""

    url: str
    in_flight: int = 0
    not_before: float = 0.0
    trials: int = 0
    """Requests under way that find out if it is still down."""
    trial_until: float = 0.0
    """Time until which an endpoint that is down gets no other request, unless its trial ends first."""
    down: bool = False
    cooldowns: int = 0
    """Cooldowns since the last success."""
    failing: set[str] = field(default_factory=set)
    """The requests that have failed since the last success."""
    error: str = ""


@dataclass(frozen=True, eq=False)
class Lease:
    """One request's place at an endpoint; a trial finds out if the endpoint is still down."""

    endpoint: Endpoint
    is_trial: bool


class Endpoints:
    """Load balancer over base URLs, for use within one event loop."""

    def __init__(
        self,
        urls: Sequence[str],
        *,
        name: str,
        cooldown_s: float,
        max_outage_s: float,
        failures: int,
        trial_s: float,
        advice: str,
    ) -> None:
        """Begin with every endpoint up.

        Args:
            urls: at least one.
            name: what they serve (`critic`, `sampler`), for messages.
            cooldown_s: time without requests after a failure; doubles up to three times.
            max_outage_s: time that all of them may be down.
            failures: different requests that fail in a row before an endpoint that answers counts as down.
            trial_s: time after which a trial that is still under way no longer keeps other requests away.
            advice: the last sentence of the error that ends an outage.
        """
        self._all = [Endpoint(url) for url in urls]
        self.name, self._advice = name, advice
        self._cooldown_s, self._max_outage_s = cooldown_s, max_outage_s
        self._failures, self._trial_s = failures, trial_s
        self._all_down_since = 0.0
        self._turn = 0
        self._changed = asyncio.Event()

    @property
    def urls(self) -> list[str]:
        """The base URLs."""
        return [endpoint.url for endpoint in self._all]

    @property
    def all_down(self) -> bool:
        """True while no endpoint is up."""
        return all(endpoint.down for endpoint in self._all)

    def available(self) -> list[Endpoint]:
        """Return the endpoints that no cooldown and no pause keeps from requests."""
        now = asyncio.get_running_loop().time()
        return [endpoint for endpoint in self._all if endpoint.not_before <= now]

    async def lease(self, limit: TimeLimit) -> Lease:
        """Wait for a place at an endpoint. The limit stands still while all endpoints are down.

        Raises:
            TimeoutError: the limit is over.
            StepalignError: the outage is too long.
        """
        while True:
            now = asyncio.get_running_loop().time()
            free_at = {endpoint: max(endpoint.not_before, endpoint.trial_until) for endpoint in self._all}
            if ready := [endpoint for endpoint in self._all if free_at[endpoint] <= now]:
                self._turn += 1
                turn = self._turn % len(ready)
                endpoint = min(ready[turn:] + ready[:turn], key=lambda one: (not one.down, one.in_flight))
                return self.lease_at(endpoint)
            until = min(free_at.values())
            if not self.all_down:
                if not limit.left_s:
                    raise TimeoutError
                await self._wait(min(until - now, limit.left_s))
                continue
            stop_at = self._all_down_since + self._max_outage_s
            trying = any(endpoint.trials for endpoint in self._all)  # an answer may take longer than an outage may
            if now >= stop_at and not trying:
                errors = "; ".join(f"{endpoint.url}: {endpoint.error}" for endpoint in self._all)
                outage = f"no {self.name} endpoint has answered for {now - self._all_down_since:.0f} s"
                raise StepalignError(f"{outage} ({errors}). {self._advice}")
            await self._wait((until if trying else min(until, stop_at)) - now)
            limit.extend(asyncio.get_running_loop().time() - now)

    def lease_at(self, endpoint: Endpoint) -> Lease:
        """Take a place at this endpoint, whatever its state."""
        endpoint.in_flight += 1
        endpoint.trials += endpoint.down
        if endpoint.down:
            endpoint.trial_until = asyncio.get_running_loop().time() + self._trial_s
        return Lease(endpoint, endpoint.down)

    def answered(self, lease: Lease) -> None:
        """Record an answer, a refusal included."""
        endpoint = lease.endpoint
        if endpoint.down:
            log.warning("%s: %s answers again", self.name, endpoint.url)
        endpoint.down, endpoint.cooldowns, endpoint.failing = False, 0, set()
        self.release(lease)

    def failed(self, lease: Lease, request: str, error: str, unreachable: bool, pause_s: float) -> None:
        """Record a request without an answer, or without a readable one."""
        endpoint = lease.endpoint
        endpoint.failing.add(request)
        endpoint.error = error
        gives_out = unreachable or len(endpoint.failing) >= self._failures
        if lease.is_trial if endpoint.down else gives_out:
            now = asyncio.get_running_loop().time()
            cooldown_s = self._cooldown_s * 2 ** min(endpoint.cooldowns, _MAX_DOUBLINGS)
            endpoint.not_before = now + max(cooldown_s, min(pause_s, self._max_outage_s))
            endpoint.cooldowns += 1
            if not endpoint.down:
                endpoint.down = True
                log.warning("%s: %s gets no requests for a while: %s", self.name, endpoint.url, error)
                if self.all_down:
                    self._all_down_since = now
                    log.warning("%s: no endpoint answers; waiting up to %g s for one", self.name, self._max_outage_s)
        self.release(lease)

    def rate_limited(self, lease: Lease, pause_s: float) -> None:
        """Record that the endpoint asks for a pause."""
        endpoint = lease.endpoint
        endpoint.not_before = max(endpoint.not_before, asyncio.get_running_loop().time() + pause_s)
        endpoint.down, endpoint.failing = False, set()
        self.release(lease)

    def release(self, lease: Lease) -> None:
        """Give the place back."""
        lease.endpoint.in_flight -= 1
        if lease.is_trial:
            lease.endpoint.trials -= 1
            lease.endpoint.trial_until = 0.0
        self._changed.set()
        self._changed = asyncio.Event()

    async def _wait(self, seconds: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(max(seconds, 0.001)):
                await self._changed.wait()
