"""A critic behind OpenAI-compatible endpoints: vLLM, SGLang, llama.cpp, a hosted model (the paper's is QwQ-32B).

Messages and validation are those of `llm`. They run in a thread with an event loop of its own, between the requests.
Answers that only computer algebra can compare go to further threads, so that neither a hanging comparison nor a busy
caller keeps the servers waiting. The reason of a `CritiqueFailure` is a check's name, `parse`, `truncated`, `timeout`,
`server` or `refused`.
"""

import asyncio
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue
from time import perf_counter
from typing import Self

from stepalign import config
from stepalign.critics import splice
from stepalign.critics.chat_completions import ChatCompletions, ReplyCache
from stepalign.critics.llm import CritiqueWriter, PendingCritique
from stepalign.critics.served_model import ServedModel
from stepalign.records import Critique, CritiqueFailure, Problem, Rollout
from stepalign.rewards import Grader
from stepalign.serving.client import UnansweredError, read_key
from stepalign.serving.endpoints import check_urls
from stepalign.serving.loop_thread import LoopThread

_MAX_ON_LOOP = 16_000
"""Characters of reply and rollout that are checked between the requests: about 20 ms. Longer ones go to a thread."""


class OpenAICritic:
    """A served model. Results come in the order in which they are ready."""

    def __init__(self, settings: config.OpenAICriticConfig, grader: Grader, folder: Path) -> None:
        check_urls("critic.base_url", settings.base_url)
        read_key(settings.api_key_env)
        self.name = settings.model
        self._settings = settings
        self._writer = CritiqueWriter(settings.model, settings, grader)
        self._request = settings.model_dump(include={"model", "temperature", "top_p", "max_tokens"})
        self._folder = folder

    @classmethod
    def from_config(cls, settings: config.OpenAICriticConfig, *, grader: Grader, folder: Path, **_: object) -> Self:
        """Build the critic of a recipe, with its cache in the run's folder."""
        return cls(settings, grader, folder)

    def critique(self, attempts: Iterable[tuple[Problem, Rollout]]) -> Iterator[Critique | CritiqueFailure]:
        """Yield one result an attempt, with at most `max_concurrency` requests under way.

        Attempts are taken one by one as there is room, a few ahead of it. Closing the iterator, or interrupting it,
        cancels the requests under way.
        """
        pending = (PendingCritique(problem, rollout) for problem, rollout in attempts)
        ahead = self._settings.max_concurrency + self._settings.max_concurrency // 8 + 1
        # Results come by a queue, because a future for each costs 0.1 ms.
        results: SimpleQueue[Critique | CritiqueFailure | BaseException] = SimpleQueue()
        with self._background(results) as start:
            under_way = 0
            while True:
                # Results that are ready go first, because the next attempt may still have to be sampled.
                while under_way < ahead and results.empty() and (attempt := next(pending, None)) is not None:
                    start(attempt)
                    under_way += 1
                if not under_way:
                    return
                result = results.get()
                under_way -= 1
                if isinstance(result, BaseException):
                    raise result
                yield result

    def check_servers(self) -> None:
        """Ask every server for one token.

        Raises:
            StepalignError: one refuses the key, the model or the URL, or none works.
        """
        ServedModel(self._settings, "critic", self._request, self._folder).check()

    async def _critique(
        self, pending: PendingCritique, server: ChatCompletions, room: asyncio.Semaphore
    ) -> Critique | CritiqueFailure:
        """Ask until a reply is accepted, or no further one may be asked for."""
        if self._writer.composes(pending.rollout):
            composed = await asyncio.to_thread(self._writer.compose, pending)
            if composed is not None:
                return composed
        is_spliced = self._settings.mode == "splice"
        response_format = {"response_format": splice.response_format(pending.rollout)} if is_spliced else {}
        while True:
            try:
                async with room:
                    if not pending.faults:
                        pending.start = perf_counter()
                    messages = [{"role": "user", "content": self._writer.message(pending)}]
                    reply = await server.ask(self._request | response_format | {"messages": messages})
            except UnansweredError as error:
                return self._writer.fail(pending, error.reason, error.detail)
            await asyncio.sleep(0)  # the next request is sent before this reply is read
            if len(reply.text) + len(pending.rollout.text) > _MAX_ON_LOOP:
                result = await asyncio.to_thread(self._writer.judge, pending, reply)
            elif self._writer.needs_algebra(pending, critique := self._writer.read(pending, reply)):
                result = await asyncio.to_thread(self._writer.validate, pending, critique)
            else:
                result = self._writer.validate(pending, critique)
            if result is not None:
                return result

    @contextmanager
    def _background(
        self, results: "SimpleQueue[Critique | CritiqueFailure | BaseException]"
    ) -> Iterator[Callable[[PendingCritique], object]]:
        """Yield a function that starts a critique in a background thread's event loop."""
        key = read_key(self._settings.api_key_env)
        cache = ReplyCache.of(self._settings, self._folder)
        server = ChatCompletions(self._settings, key, cache, table="critic", max_tokens=self._settings.max_tokens)
        room = asyncio.Semaphore(self._settings.max_concurrency)
        tasks: set[asyncio.Task[None]] = set()

        async def put(pending: PendingCritique) -> None:
            try:
                results.put(await self._critique(pending, server, room))
            except Exception as error:  # raised again in the caller's thread
                results.put(error)

        def start(pending: PendingCritique) -> None:
            task = thread.loop.create_task(put(pending))
            tasks.add(task)
            task.add_done_callback(tasks.discard)

        thread = LoopThread("critic")
        thread.run(server.__aenter__())
        try:
            yield lambda pending: thread.loop.call_soon_threadsafe(start, pending)
        finally:
            thread.close(server.__aexit__())
