"""A critic behind OpenAI-compatible endpoints: vLLM, SGLang, llama.cpp, a hosted model (the paper's is QwQ-32B).

What is asked and what becomes of the answers is the `dialogue`'s business. Requests run in a thread with its own event
loop (`transport`); everything else, which needs the processor, is done in the caller's. What fails for good is a
`CritiqueFailure` whose reason is a check's name, `parse`, `truncated`, `timeout`, `server` or `refused`.
"""

import asyncio
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import Any

from stepalign import recipe
from stepalign.critics import splice
from stepalign.critics.cache import Cache
from stepalign.critics.dialogue import Answer, Dialogue, Opened
from stepalign.critics.policy import Refusal
from stepalign.critics.transport import Transport, UnansweredError
from stepalign.errors import StepalignError
from stepalign.grading import Grader
from stepalign.records import Critique, CritiqueFailure, Problem, Rollout

CACHE = "critic-cache.sqlite"
"""The cache's file in a run's folder."""


class OpenAICritic:
    """Asks a model. Answers come in the order in which they are ready."""

    def __init__(self, settings: recipe.OpenAICritic, grader: Grader, folder: Path) -> None:
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

    def critique(self, attempts: Iterable[tuple[Problem, Rollout]]) -> Iterator[Critique | CritiqueFailure]:
        """Yield one answer an attempt, at most `concurrency` of them asked for at a time.

        Attempts are taken one by one as there is room. Closing the iterator, or interrupting it, cancels what is
        under way.

        Raises:
            StepalignError: no endpoint answers any more, or all that were asked refuse everything.
        """
        results: SimpleQueue[tuple[Opened, Answer | BaseException]] = SimpleQueue()
        source, more, under_way = iter(attempts), True, 0
        with self._asking(results) as ask:
            while more or under_way:
                while more and under_way < self._settings.concurrency and results.empty():
                    if (attempt := next(source, None)) is None:
                        more = False
                    else:
                        opened = Opened(*attempt)
                        ask(opened, self._request(opened))
                        under_way += 1
                if under_way:
                    opened, outcome = results.get()
                    settled = self._settle(opened, outcome)
                    if settled is None:
                        ask(opened, self._request(opened))
                    else:
                        under_way -= 1
                        yield settled

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

    def _settle(self, opened: Opened, outcome: Answer | BaseException) -> Critique | CritiqueFailure | None:
        """What an answer comes to; None where the model is to be asked again."""
        if isinstance(outcome, UnansweredError):
            return self._dialogue.close(opened, Refusal(reason=outcome.reason, detail=outcome.detail))
        if isinstance(outcome, BaseException):
            raise outcome
        return self._dialogue.settle(opened, outcome)

    @contextmanager
    def _asking(self, results: "SimpleQueue[tuple[Opened, Answer | BaseException]]") -> Iterator[Any]:
        """A function that sends a request for an attempt; what comes of it is put into `results`."""
        key = os.environ.get(self._settings.api_key_env)
        cache = Cache(self._kept) if self._kept else None
        transport = Transport(self._settings, key, cache)
        loop = asyncio.new_event_loop()
        thread = Thread(target=loop.run_forever, name="critic", daemon=True)
        thread.start()
        asyncio.run_coroutine_threadsafe(transport.__aenter__(), loop).result()
        asked: set[asyncio.Task[None]] = set()

        async def answer(opened: Opened, request: Mapping[str, Any]) -> None:
            try:
                results.put((opened, await transport.ask(request)))
            except Exception as error:  # raised again in the caller's thread
                results.put((opened, error))

        def send(opened: Opened, request: Mapping[str, Any]) -> None:
            task = loop.create_task(answer(opened, request))
            asked.add(task)
            task.add_done_callback(asked.discard)

        async def stop() -> None:
            for task in asked:
                task.cancel()
            await asyncio.gather(*asked, return_exceptions=True)
            await transport.__aexit__(None, None, None)

        try:
            yield lambda opened, request: loop.call_soon_threadsafe(send, opened, request)
        finally:
            asyncio.run_coroutine_threadsafe(stop(), loop).result()
            loop.call_soon_threadsafe(loop.stop)
            thread.join()
            loop.close()
            if cache:
                cache.close()
