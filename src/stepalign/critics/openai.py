"""A critic behind OpenAI-compatible endpoints: vLLM, SGLang, llama.cpp, a hosted model (the paper's is QwQ-32B).

One user message an attempt: what is the same for every attempt first, then the problem with its reference solution,
then the rollout, so that a server's prefix cache shares as much as there is. What comes back is stripped of its
thinking, read by the mode (`schema` for copy, `splice` for splice), checked (`checks`), and settled by the recipe's
policy (`policy`). An answer that may not teach is asked for again with what was wrong with it, at the message's end.

Requests run in a thread with its own event loop (`transport`); everything else, which needs the processor, is done in
the caller's. What fails for good is a `CritiqueFailure` whose reason is a check's name, `parse`, `truncated`,
`timeout`, `server` or `refused`.
"""

import asyncio
import os
import sys
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
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

_SWITCH_S = 0.0005
"""How long the checks may keep the requests' thread from running. Python's own 5 ms, a tenth of what a quick server
takes to answer, lets answers pile up and leaves the server idle."""

_PROMPTS = {"copy": "critic", "splice": "critic-splice"}


@dataclass(eq=False)
class _Open:
    """An attempt that has no answer yet."""

    problem: Problem
    rollout: Rollout
    start: float
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

        Attempts are taken one by one as there is room. Closing the iterator, or interrupting it, cancels what is
        under way.

        Raises:
            StepalignError: no endpoint answers any more, or all that were asked refuse everything.
        """
        results: SimpleQueue[tuple[_Open, Answer | BaseException]] = SimpleQueue()
        fresh = (_Open(problem, rollout, perf_counter()) for problem, rollout in attempts)
        again: deque[_Open] = deque()
        under_way = 0
        with self._asking(results) as ask:

            def fill() -> None:
                nonlocal under_way
                while under_way < self._settings.concurrency:
                    opened = again.popleft() if again else next(fresh, None)
                    if opened is None:
                        break
                    ask(opened, self._request(opened))
                    under_way += 1

            fill()
            while under_way:
                opened, outcome = results.get()
                under_way -= 1
                fill()  # the servers must not wait for the checks
                settled = self._settle(opened, outcome)
                if settled is not None:
                    yield settled
                else:
                    again.append(opened)
                    fill()

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

    def _settle(self, opened: _Open, outcome: Answer | BaseException) -> Critique | CritiqueFailure | None:
        """What an answer comes to; None where the model is to be asked again."""
        found: Critique | Refusal
        if isinstance(outcome, UnansweredError):
            found = Refusal(reason=outcome.reason, detail=outcome.detail)
        elif isinstance(outcome, BaseException):
            raise outcome
        else:
            opened.prompt_tokens += outcome.prompt_tokens
            opened.completion_tokens += outcome.completion_tokens
            found = self._judged(outcome, opened)
        if isinstance(found, Refusal):
            if found.again and len(opened.faults) + 1 < self._settings.asks:
                opened.faults.append(found)
                return None
            answer: Critique | CritiqueFailure = found.failure(opened.rollout, self.name)
        else:
            answer = found
        return replace(
            answer,
            retried=tuple(fault.reason for fault in opened.faults),
            prompt_tokens=opened.prompt_tokens,
            completion_tokens=opened.completion_tokens,
            seconds=perf_counter() - opened.start,
        )

    def _judged(self, answer: Answer, opened: _Open) -> Critique | Refusal:
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
        critique = Critique(
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
        return self._rules.settle(critique, opened.problem, opened.rollout)

    @contextmanager
    def _asking(self, results: "SimpleQueue[tuple[_Open, Answer | BaseException]]") -> Iterator[Any]:
        """A function that sends a request for an attempt; what comes of it is put into `results`."""
        key = os.environ.get(self._settings.api_key_env, "").strip() or None
        cache = Cache(self._kept) if self._kept else None
        transport = Transport(self._settings, key, cache)
        interval = sys.getswitchinterval()
        sys.setswitchinterval(min(interval, _SWITCH_S))
        loop = asyncio.new_event_loop()
        thread = Thread(target=loop.run_forever, name="critic", daemon=True)
        thread.start()
        asyncio.run_coroutine_threadsafe(transport.__aenter__(), loop).result()
        asked: set[asyncio.Task[None]] = set()

        async def answer(opened: _Open, request: Mapping[str, Any]) -> None:
            try:
                results.put((opened, await transport.ask(request)))
            except Exception as error:  # raised again in the caller's thread
                results.put((opened, error))

        def send(opened: _Open, request: Mapping[str, Any]) -> None:
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
            sys.setswitchinterval(interval)
            if cache:
                cache.close()
