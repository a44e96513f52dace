"""A critic behind an OpenAI-compatible endpoint: vLLM, llama.cpp, a hosted model (the paper's is QwQ-32B).

One user message an attempt (`prompts/critic.txt`). What comes back is stripped of its thinking, read
against the schema and checked before it may teach: its case against the grade, its copy against the
rollout, its final answer against the reference, and that it does not quote the wrong step. What fails is a
`CritiqueFailure` with the reason `timeout`, `server`, `truncated`, `parse`, `inconsistent`, `unfaithful` or
`not silent`. The text that teaches is composed anew from the parts that were read, in the paper's layout.

Retries (connection errors, 408, 409, 429, 5xx, with exponential back-off and Retry-After) are the OpenAI
SDK's. Left out: structured output and splicing, repairs, a cache of answers, and deciding by computer
algebra whether two final answers are equal.
"""

import asyncio
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from time import perf_counter

import openai
from openai.types.chat import ChatCompletion

from stepalign import prompts, recipe
from stepalign.critics import schema
from stepalign.critics.policy import Refusal, Rules
from stepalign.errors import StepalignError
from stepalign.grading import Grader
from stepalign.records import Critique, CritiqueFailure, Problem, Rollout
from stepalign.traces import parse

VARIABLES = frozenset({"problem", "solution", "answer", "attempt", "truncated"})
"""What a critic's template may use."""

_NO_KEY = "none"
"""Many local servers want no key, but the SDK wants one."""


class OpenAICritic:
    """Asks a model. Answers come in the order in which they are ready."""

    def __init__(self, settings: recipe.OpenAICritic, grader: Grader, folder: Path) -> None:
        """Check the settings; nothing is sent yet.

        Raises:
            StepalignError: the base URL is none, or there is no such template.
        """
        for url in settings.base_url:
            if not url.startswith(("http://", "https://")):
                raise StepalignError(f"critic.base_url: a URL like http://localhost:8000/v1 is wanted, found {url!r}")
        self.name = settings.model
        self._settings = settings
        self._rules = Rules(settings, grader)
        self._template, _ = prompts.load(settings.prompt or "critic", VARIABLES)

    def critique(self, attempts: Iterable[tuple[Problem, Rollout]]) -> Iterator[Critique | CritiqueFailure]:
        """Yield one answer an attempt, at most `concurrency` of them asked for at a time.

        Attempts are taken one by one as there is room, in the caller's thread; requests run in another one
        meanwhile. Closing the iterator, or interrupting it, cancels what is under way.
        """
        key = os.environ.get(self._settings.api_key_env) or _NO_KEY
        client = openai.AsyncOpenAI(
            base_url=self._settings.base_url[0],
            api_key=key,
            max_retries=self._settings.retries,
            timeout=self._settings.timeout_s,
        )
        with _running(client) as loop:
            waiting: set[Future[Critique | CritiqueFailure]] = set()
            for problem, rollout in attempts:
                answer = self._answer(client, key, problem, rollout)
                waiting.add(asyncio.run_coroutine_threadsafe(answer, loop))
                full = len(waiting) >= self._settings.concurrency
                done, waiting = wait(waiting, None if full else 0, FIRST_COMPLETED)
                yield from (future.result() for future in done)
            while waiting:
                done, waiting = wait(waiting, None, FIRST_COMPLETED)
                yield from (future.result() for future in done)

    async def _answer(
        self, client: openai.AsyncOpenAI, key: str, problem: Problem, rollout: Rollout
    ) -> Critique | CritiqueFailure:
        start = perf_counter()
        try:
            # The SDK's own time-out is for one silence; this one is for the answer, its retries included.
            async with asyncio.timeout(self._settings.timeout_s):
                completion = await self._ask(client, problem, rollout)
            return self._checked(completion, problem, rollout, perf_counter() - start)
        except (TimeoutError, openai.APITimeoutError):
            failure = _Rejected("timeout", f"no answer within {self._settings.timeout_s:g} s")
        except (openai.OpenAIError, ValueError) as error:
            detail = f"{type(error).__name__}: {error}"  # a server may repeat the key that it refuses
            failure = _Rejected("server", detail if key == _NO_KEY else detail.replace(key, "***"))
        except _Rejected as rejected:
            failure = rejected
        return CritiqueFailure(rollout_id=rollout.id, critic=self.name, reason=failure.reason, detail=failure.detail)

    async def _ask(self, client: openai.AsyncOpenAI, problem: Problem, rollout: Rollout) -> ChatCompletion:
        values = {
            "problem": problem.statement,
            "solution": problem.solution,
            "answer": problem.answer,
            "attempt": rollout.text,
            "truncated": rollout.finish == "length",
        }
        message = prompts.render(self._template, values)
        return await client.chat.completions.create(
            model=self._settings.model,
            messages=[{"role": "user", "content": message}],
            temperature=self._settings.temperature,
            top_p=self._settings.top_p,
            max_tokens=self._settings.max_tokens,
        )

    def _checked(self, completion: ChatCompletion, problem: Problem, rollout: Rollout, seconds: float) -> Critique:
        text = _said(completion)
        trace = parse(rollout.text)
        try:
            found = schema.parse(text, trace)
        except schema.CritiqueFormatError as error:
            raise _Rejected("parse", str(error)) from None
        critique = Critique(
            rollout_id=rollout.id,
            critic=self.name,
            case=found.case,
            verdicts=found.verdicts,
            correct_part=found.correct_part,
            corrected_step=found.corrected_step,
            continuation=found.continuation,
            text=schema.text_of(found),
            fidelity=schema.fidelity(found.correct_part, schema.original(trace, found.first_error)),
            prompt_tokens=completion.usage.prompt_tokens if completion.usage else 0,
            completion_tokens=completion.usage.completion_tokens if completion.usage else 0,
            seconds=seconds,
        )
        settled = self._rules.settle(critique, problem, rollout)
        if isinstance(settled, Refusal):
            raise _Rejected(settled.reason, settled.detail)
        return settled


class _Rejected(Exception):
    """An answer that may not teach."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason, self.detail = reason, detail


def _said(completion: ChatCompletion) -> str:
    """What the model said after its thinking."""
    if not isinstance(completion, ChatCompletion) or not completion.choices:
        raise _Rejected("server", "the response is not a chat completion")
    choice = completion.choices[0]
    if choice.finish_reason == "length":
        raise _Rejected("truncated", "the answer reached max_tokens")
    thinking, end, answer = (choice.message.content or "").rpartition("</think>")
    if not end and "<think>" in answer:
        raise _Rejected("parse", "its thinking never ends")
    if not answer.strip():
        raise _Rejected("parse", "nothing after its thinking" if end or thinking else "an empty answer")
    return answer


@contextmanager
def _running(client: openai.AsyncOpenAI) -> Iterator[asyncio.AbstractEventLoop]:
    """An event loop in its own thread; at the end what is under way is cancelled and the client closed."""
    loop = asyncio.new_event_loop()
    thread = Thread(target=loop.run_forever, name="critic", daemon=True)
    thread.start()
    try:
        yield loop
    finally:
        asyncio.run_coroutine_threadsafe(_stop(client), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


async def _stop(client: openai.AsyncOpenAI) -> None:
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await client.close()
