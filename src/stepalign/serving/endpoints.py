"""Base URLs that serve one model: which one takes the next request, and which are left alone for a while.

The endpoint with the fewest requests under way takes the next one. An endpoint is *dead* when it cannot be connected
to, or when requests of three different prompts have failed there with no success between (one prompt that always
fails kills none). It rests, then the next request tries it: success brings it back, failure doubles the rest. When
all are dead the requests wait, the log says so, and after `outage_s` the run stops with an error. An endpoint that
says when it wants to be asked again (`Retry-After`) is *held* until then.
"""

import asyncio
import logging
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import NoReturn

from stepalign.errors import StepalignError

log = logging.getLogger("stepalign")

_DEATHS = 3
"""Prompts that fail in a row before an endpoint that answers counts as dead."""
_MAX_DOUBLINGS = 3


@dataclass(eq=False)
class Endpoint:
    """One base URL. Times are the event loop's."""

    url: str
    in_flight: int = 0
    not_before: float = 0.0
    dead: bool = False
    on_trial: bool = False
    """Whether a request is under way that tells whether a dead endpoint is back."""
    deaths: int = 0
    failing: set[str] = field(default_factory=set)
    """The prompts that have failed since the last success."""
    error: str = ""


@dataclass(frozen=True, eq=False)
class Visit:
    """One request's place at an endpoint."""

    endpoint: Endpoint
    trial: bool
    """Whether it tells if a dead endpoint is back."""


class Endpoints:
    """All of them. To be used within one event loop."""

    def __init__(self, urls: Sequence[str], *, rest_s: float, outage_s: float, kept: str) -> None:
        """`kept` says, in the error that stops a run, where the answers so far are."""
        self._all = [Endpoint(url) for url in urls]
        self._rest_s, self._outage_s, self._kept = rest_s, outage_s, kept
        self._dark_since = 0.0
        self._turn = 0
        self._changed = asyncio.Event()

    @property
    def dark(self) -> bool:
        """Whether all endpoints are dead."""
        return all(endpoint.dead for endpoint in self._all)

    async def take(self, limit: asyncio.Timeout) -> Visit:
        """A place at an endpoint, once there is one. `limit` stands still while all endpoints are dead.

        Raises:
            StepalignError: all of them have been dead for too long.
        """
        while True:
            now = asyncio.get_running_loop().time()
            ready = [one for one in self._all if one.not_before <= now and not one.on_trial]
            if ready:
                self._turn += 1
                turn = self._turn % len(ready)
                chosen = min(ready[turn:] + ready[:turn], key=lambda one: (not one.dead, one.in_flight))
                chosen.in_flight += 1
                chosen.on_trial = chosen.dead
                return Visit(chosen, chosen.dead)
            until = min((one.not_before for one in self._all if one.not_before > now), default=now + self._rest_s)
            if not self.dark:
                await self._wait(until - now)
                continue
            stop_at = self._dark_since + self._outage_s
            if now >= stop_at:
                self._stop(now)
            left = (limit.when() or now) - now
            limit.reschedule(None)
            await self._wait(min(until, stop_at) - now)
            limit.reschedule(asyncio.get_running_loop().time() + left)

    def answered(self, visit: Visit) -> None:
        """It has answered, if only to refuse."""
        if visit.endpoint.dead:
            log.warning("critic: %s answers again", visit.endpoint.url)
        visit.endpoint.dead, visit.endpoint.deaths, visit.endpoint.failing = False, 0, set()
        self.left(visit)

    def failed(self, visit: Visit, prompt: str, error: str, *, unreachable: bool) -> None:
        """It has not answered a prompt, or not with what was asked for."""
        endpoint = visit.endpoint
        endpoint.failing.add(prompt)
        endpoint.error = error
        if visit.trial or (not endpoint.dead and (unreachable or len(endpoint.failing) >= _DEATHS)):
            now = asyncio.get_running_loop().time()
            endpoint.not_before = now + self._rest_s * 2 ** min(endpoint.deaths, _MAX_DOUBLINGS)
            endpoint.deaths += 1
            if not visit.trial:
                endpoint.dead = True
                log.warning("critic: %s is left alone for a while: %s", endpoint.url, error)
                if self.dark:
                    self._dark_since = now
                    log.warning("critic: no endpoint answers; waiting up to %g s for one", self._outage_s)
        self.left(visit)

    def held(self, visit: Visit, seconds: float) -> None:
        """It asks for a pause."""
        endpoint = visit.endpoint
        endpoint.not_before = max(endpoint.not_before, asyncio.get_running_loop().time() + seconds)
        endpoint.dead, endpoint.failing = False, set()
        self.left(visit)

    def left(self, visit: Visit) -> None:
        """The request is over."""
        visit.endpoint.in_flight -= 1
        if visit.trial:
            visit.endpoint.on_trial = False
        self._changed.set()
        self._changed = asyncio.Event()

    async def _wait(self, seconds: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(max(seconds, 0.001)):
                await self._changed.wait()

    def _stop(self, now: float) -> NoReturn:
        errors = "; ".join(f"{one.url}: {one.error}" for one in self._all)
        raise StepalignError(
            f"no critic endpoint has answered for {now - self._dark_since:.0f} s ({errors}). {self._kept} "
            "When the server is back, the same command goes on from here."
        )
