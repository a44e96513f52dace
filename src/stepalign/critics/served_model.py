"""A served model for callers without an event loop: menders and locators."""

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

from stepalign import config
from stepalign.critics.chat_completions import ChatCompletions, ReplyCache
from stepalign.critics.llm import ModelReply
from stepalign.serving.client import UnansweredError, read_key
from stepalign.serving.endpoints import check_urls
from stepalign.serving.loop_thread import LoopThread


class ServedModel:
    """Endpoints, with a cache of their replies. Requests go out together, `max_concurrency` at once."""

    def __init__(
        self, settings: config.ServedModelConfig, table: str, request: Mapping[str, Any], folder: Path
    ) -> None:
        """Check URLs and key.

        Args:
            settings: the recipe's table.
            table: its name, for messages.
            request: what all requests share, `max_tokens` among it.
            folder: the run's, for the cache.
        """
        check_urls(f"{table}.base_url", settings.base_url)
        self._settings, self._table, self._request, self._folder = settings, table, dict(request), folder
        self._key = read_key(settings.api_key_env)
        self._open: tuple[LoopThread, ChatCompletions] | None = None

    @cached_property
    def _cache(self) -> ReplyCache | None:
        return ReplyCache.of(self._settings, self._folder)

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Keep one client for all requests inside a `with`."""
        if self._open is not None:
            yield
            return
        thread, server = LoopThread(self._table), self._client(self._cache)
        thread.run(server.__aenter__())
        self._open = thread, server
        try:
            yield
        finally:
            self._open = None
            thread.close(server.__aexit__())

    def ask(self, bodies: Sequence[Mapping[str, Any]]) -> Iterator[ModelReply | UnansweredError]:
        """Yield a reply to each request in order, or the error of one that is not answered."""
        with self.opened():
            assert self._open is not None
            thread, server = self._open
            room = asyncio.Semaphore(self._settings.max_concurrency)

            async def ask(body: Mapping[str, Any]) -> ModelReply | UnansweredError:
                async with room:
                    try:
                        return await server.ask({**self._request, **body})
                    except UnansweredError as error:
                        return error

            futures = [thread.start(ask(body)) for body in bodies]
            try:
                for future in futures:
                    yield future.result()
            finally:
                for future in futures:
                    future.cancel()

    def check(self, body: Mapping[str, Any] | None = None) -> None:
        """Ask every server for one token, with the messages of `body`.

        Raises:
            StepalignError: one refuses the key, the model, the URL or a key of the request, or none works.
        """
        server = self._client(None)

        async def check() -> None:
            async with server:
                await server.check({**self._request, **(body or {})})

        thread = LoopThread(self._table)
        try:
            thread.run(check())
        finally:
            thread.close()

    def _client(self, cache: ReplyCache | None) -> ChatCompletions:
        max_tokens = self._request["max_tokens"]
        return ChatCompletions(self._settings, self._key, cache, table=self._table, max_tokens=max_tokens)
