"""A critic behind OpenAI-compatible endpoints: vLLM, SGLang, llama.cpp, a hosted model (the paper's is QwQ-32B).

What is asked and what becomes of the answers is the `dialogue`'s business. It is done in a thread with its own event
loop, between the requests (`transport`), and answers that only computer algebra can compare in further threads, so
that neither a hanging comparison nor a busy caller keeps the servers waiting. What fails for good is a
`CritiqueFailure` whose reason is a check's name, `parse`, `truncated`, `timeout`, `server` or `refused`.
"""

import asyncio
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from time import perf_counter
from typing import Any

from stepalign import config
from stepalign.critics import splice
from stepalign.critics.cache import Cache
from stepalign.critics.llm import Dialogue, Opened
from stepalign.critics.validation import Refusal
from stepalign.errors import StepalignError
from stepalign.records import Critique, CritiqueFailure, Problem, Rollout
from stepalign.rewards.math import Grader
from stepalign.serving.client import Transport, UnansweredError

CACHE = "critic-cache.sqlite"
"""The cache's file in a run's folder."""

_Found = Critique | CritiqueFailure


class OpenAICritic:
    """Asks a model. Answers come in the order in which they are ready."""

    def __init__(self, settings: config.OpenAICriticConfig, grader: Grader, folder: Path) -> None:
        """Check the settings; nothing is sent yet.

        Raises:
            StepalignError: a base URL is none, or there is no such template.
        """
        for url in settings.base_url:
            if not url.startswith(("http://", "https://")):
                raise StepalignError(f"critic.base_url: a URL like http://localhost:8000/v1 is wanted, found {url!r}")
        self.name = settings.model
        self._settings = settings
        self._dialogue = Dialogue(settings.model, settings, grader)
        self._format = {"response_format": splice.response_format()} if settings.mode == "splice" else {}
        self._kept = {"run": folder / CACHE, "off": None}.get(settings.cache, Path(settings.cache))

    @classmethod
    def from_config(
        cls, settings: config.OpenAICriticConfig, *, grader: Grader, folder: Path, **_: object
    ) -> "OpenAICritic":
        """Build the critic of a recipe. Its cache goes into the run's folder."""
        return cls(settings, grader, folder)

    def critique(self, attempts: Iterable[tuple[Problem, Rollout]]) -> Iterator[Critique | CritiqueFailure]:
        """Yield one answer an attempt, at most `concurrency` of them asked for at a time.

        Attempts are taken one by one as there is room, a few ahead of it. Closing the iterator, or interrupting it,
        cancels what is under way.

        Raises:
            StepalignError: no endpoint answers any more, or all that were asked refuse everything.
        """
        opened = (Opened(problem, rollout) for problem, rollout in attempts)
        ahead = self._settings.max_concurrency + self._settings.max_concurrency // 8 + 1
        with self._answering() as (start, results):
            under_way = 0
            while True:
                # Answers that are ready go first: the next attempt may still have to be sampled.
                while under_way < ahead and results.empty() and (one := next(opened, None)) is not None:
                    start(one)
                    under_way += 1
                if not under_way:
                    return
                found = results.get()
                under_way -= 1
                if isinstance(found, BaseException):
                    raise found
                yield found

    def _request(self, opened: Opened) -> dict[str, Any]:
        settings = self._settings
        request = {
            "model": settings.model,
            "messages": [{"role": "user", "content": self._dialogue.message(opened)}],
            "temperature": settings.temperature,
            "top_p": settings.top_p,
            "max_tokens": settings.max_tokens,
        }
        return request | self._format

    async def _answer(self, opened: Opened, transport: Transport, room: asyncio.Semaphore) -> _Found:
        """Ask until an answer may teach, or may not be asked for again."""
        settled: _Found | None = None
        while settled is None:
            try:
                async with room:
                    if not opened.faults:
                        opened.start = perf_counter()
                    said = await transport.ask(self._request(opened))
            except UnansweredError as error:
                return self._dialogue.close(opened, Refusal(reason=error.reason, detail=error.detail))
            await asyncio.sleep(0)  # the next request goes out before this answer is looked at
            found = self._dialogue.read(opened, said)
            if self._dialogue.needs_algebra(opened, found):
                settled = await asyncio.to_thread(self._dialogue.judge, opened, found)
            else:
                settled = self._dialogue.judge(opened, found)
        return settled

    @contextmanager
    def _answering(self) -> Iterator[tuple[Callable[[Opened], object], "SimpleQueue[_Found | BaseException]"]]:
        """A function that has an attempt answered in the background, and the queue that its answer is put into."""
        results: SimpleQueue[_Found | BaseException] = SimpleQueue()
        key = os.environ.get(self._settings.api_key_env, "").strip() or None
        cache = Cache(self._kept) if self._kept else None
        transport = Transport(self._settings, key, cache)
        room = asyncio.Semaphore(self._settings.max_concurrency)
        loop = asyncio.new_event_loop()
        thread = Thread(target=loop.run_forever, name="critic", daemon=True)
        thread.start()
        asyncio.run_coroutine_threadsafe(transport.__aenter__(), loop).result()
        tasks: set[asyncio.Task[None]] = set()

        async def put(opened: Opened) -> None:
            try:
                results.put(await self._answer(opened, transport, room))
            except Exception as error:  # raised again in the caller's thread
                results.put(error)

        def start(opened: Opened) -> None:
            task = loop.create_task(put(opened))
            tasks.add(task)
            task.add_done_callback(tasks.discard)

        async def stop() -> None:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await transport.__aexit__(None, None, None)
            await loop.shutdown_default_executor()

        try:
            yield lambda opened: loop.call_soon_threadsafe(start, opened), results
        finally:
            asyncio.run_coroutine_threadsafe(stop(), loop).result()
            loop.call_soon_threadsafe(loop.stop)
            thread.join()
            loop.close()
            if cache:
                cache.close()
