"""A critic behind OpenAI-compatible endpoints: vLLM, SGLang, llama.cpp, a hosted model (the paper's is QwQ-32B).

One user message an attempt: what is the same for every attempt first, then the problem with its reference solution,
then the rollout, so that a server's prefix cache shares as much as there is. What comes back is stripped of its
thinking, read by the mode (`schema` for copy, `splice` for splice), checked (`checks`), and settled by the recipe's
policy (`policy`). An answer that may not teach is asked for again with what was wrong with it, at the message's end.

Requests and checks run in a thread with its own event loop (`transport`), answers that only computer algebra can
compare in further ones, so that neither a hanging comparison nor a busy caller keeps the servers waiting. What fails
for good is a `CritiqueFailure` whose reason is a check's name, `parse`, `truncated`, `timeout`, `server` or `refused`.
"""

import asyncio
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from time import perf_counter
from typing import Any

from stepalign import prompts, recipe
from stepalign.critics import schema, splice
from stepalign.critics.cache import Cache
from stepalign.critics.policy import Refusal, Rules
from stepalign.critics.transport import Answer, Transport, UnansweredError
from stepalign.errors import StepalignError
from stepalign.grading import Grader
from stepalign.records import Critique, CritiqueFailure, Problem, Rollout
from stepalign.traces import parse

VARIABLES = frozenset({"problem", "solution", "answer", "attempt", "truncated"})
"""What a critic's template may use."""

CACHE = "critic-cache.sqlite"
"""The cache's file in a run's folder."""

_PROMPTS = {"copy": "critic", "splice": "critic-splice"}

_Found = Critique | CritiqueFailure


@dataclass(eq=False)
class _Open:
    """An attempt that has no answer yet."""

    problem: Problem
    rollout: Rollout
    start: float = 0.0
    faults: list[Refusal] = field(default_factory=list)
    prompt_tokens: int = 0
    completion_tokens: int = 0


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
        self._rules = Rules(settings, grader)
        self._template, _ = prompts.load(settings.prompt or _PROMPTS[settings.mode], VARIABLES)
        self._again, _ = prompts.load("critic-again", frozenset({"faults"}))
        self._format = {"response_format": splice.response_format()} if settings.mode == "splice" else {}
        self._kept = {"run": folder / CACHE, "off": None}.get(settings.cache, Path(settings.cache))

    def critique(self, attempts: Iterable[tuple[Problem, Rollout]]) -> Iterator[Critique | CritiqueFailure]:
        """Yield one answer an attempt, at most `concurrency` of them asked for at a time.

        Attempts are taken one by one as there is room, a few ahead of it. Closing the iterator, or interrupting it,
        cancels what is under way.

        Raises:
            StepalignError: no endpoint answers any more, or all that were asked refuse everything.
        """
        opened = (_Open(problem, rollout) for problem, rollout in attempts)
        ahead = self._settings.concurrency + self._settings.concurrency // 8 + 1
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

    def _request(self, opened: _Open) -> dict[str, Any]:
        problem, rollout, settings = opened.problem, opened.rollout, self._settings
        values = {
            "problem": problem.statement,
            "solution": problem.solution,
            "answer": problem.answer,
            "attempt": rollout.text,
            "truncated": rollout.finish == "length",
        }
        message = prompts.render(self._template, values)
        if opened.faults:
            message += "\n\n" + prompts.render(self._again, {"faults": [fault.detail for fault in opened.faults]})
        request = {
            "model": settings.model,
            "messages": [{"role": "user", "content": message}],
            "temperature": settings.temperature,
            "top_p": settings.top_p,
            "max_tokens": settings.max_tokens,
        }
        return request | self._format

    async def _answer(self, opened: _Open, transport: Transport, room: asyncio.Semaphore) -> _Found:
        """Ask until an answer may teach, or may not be asked for again."""
        while True:
            try:
                async with room:
                    opened.start = opened.start or perf_counter()
                    said = await transport.ask(self._request(opened))
                await asyncio.sleep(0)  # the next request goes out before this answer is looked at
                opened.prompt_tokens += said.prompt_tokens
                opened.completion_tokens += said.completion_tokens
                found = await self._settled(said, opened)
            except UnansweredError as error:
                found = Refusal(reason=error.reason, detail=error.detail)
            if not isinstance(found, Refusal):
                last: _Found = found
                break
            if not found.again or len(opened.faults) + 1 >= self._settings.asks:
                last = found.failure(opened.rollout, self.name)
                break
            opened.faults.append(found)
        return replace(
            last,
            retried=tuple(fault.reason for fault in opened.faults),
            prompt_tokens=opened.prompt_tokens,
            completion_tokens=opened.completion_tokens,
            seconds=perf_counter() - opened.start,
        )

    async def _settled(self, said: Answer, opened: _Open) -> Critique | Refusal:
        found = self._read(said, opened)
        if isinstance(found, Refusal):
            return found
        given = (found, opened.problem, opened.rollout)
        if self._rules.checker.needs_algebra(*given):
            return await asyncio.to_thread(self._rules.settle, *given)
        return self._rules.settle(*given)

    def _read(self, answer: Answer, opened: _Open) -> Critique | Refusal:
        """What an answer says, not checked yet."""
        if answer.truncated:
            return self._rules.refuse("truncated", "the answer reached max_tokens")
        if answer.text.lstrip().startswith("<think>"):
            return self._rules.refuse("parse", "its thinking never ends")
        if not answer.text.strip():
            return self._rules.refuse("parse", "an empty answer")
        trace = parse(opened.rollout.text)
        try:
            read = schema.parse if self._settings.mode == "copy" else splice.parse
            found = read(answer.text, trace)
        except schema.CritiqueFormatError as error:
            return self._rules.refuse("parse", f"the answer {error}")
        return Critique(
            rollout_id=opened.rollout.id,
            critic=self.name,
            case=found.case,
            verdicts=found.verdicts,
            correct_part=found.correct_part,
            corrected_step=found.corrected_step,
            continuation=found.continuation,
            text=schema.text_of(found),
            fidelity=schema.fidelity(found.correct_part, schema.original(trace, found.first_error)),
        )

    @contextmanager
    def _answering(self) -> Iterator[tuple[Callable[[_Open], object], "SimpleQueue[_Found | BaseException]"]]:
        """A function that has an attempt answered in the background, and the queue that its answer is put into."""
        results: SimpleQueue[_Found | BaseException] = SimpleQueue()
        key = os.environ.get(self._settings.api_key_env, "").strip() or None
        cache = Cache(self._kept) if self._kept else None
        transport = Transport(self._settings, key, cache)
        room = asyncio.Semaphore(self._settings.concurrency)
        loop = asyncio.new_event_loop()
        thread = Thread(target=loop.run_forever, name="critic", daemon=True)
        thread.start()
        asyncio.run_coroutine_threadsafe(transport.__aenter__(), loop).result()
        tasks: set[asyncio.Task[None]] = set()

        async def put(opened: _Open) -> None:
            try:
                results.put(await self._answer(opened, transport, room))
            except Exception as error:  # raised again in the caller's thread
                results.put(error)

        def start(opened: _Open) -> None:
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
