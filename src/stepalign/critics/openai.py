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
from threading import Thread
from time import perf_counter

import openai
from openai.types.chat import ChatCompletion

from stepalign import prompts, recipe
from stepalign.critics import equations, schema
from stepalign.errors import StepalignError
from stepalign.records import Critique, CritiqueFailure, Problem, Rollout
from stepalign.traces import Trace, boxed, parse

VARIABLES = frozenset({"problem", "solution", "answer", "attempt", "truncated"})
"""What a critic's template may use."""

_NO_KEY = "none"
"""Many local servers want no key, but the SDK wants one."""


class OpenAICritic:
    """Asks a model. Answers come in the order in which they are ready."""

    def __init__(self, settings: recipe.OpenAICritic) -> None:
        """Check the settings; nothing is sent yet.

        Raises:
            StepalignError: the base URL is none, or there is no such template.
        """
        if not settings.base_url.startswith(("http://", "https://")):
            raise StepalignError(
                f"critic.base_url: a URL like http://localhost:8000/v1 is wanted, found {settings.base_url!r}"
            )
        self.name = settings.model
        self._settings = settings
        self._template, _ = prompts.load(settings.prompt, VARIABLES)

    def critique(self, attempts: Iterable[tuple[Problem, Rollout]]) -> Iterator[Critique | CritiqueFailure]:
        """Yield one answer an attempt, at most `concurrency` of them asked for at a time.

        Attempts are taken one by one as there is room, in the caller's thread; requests run in another one
        meanwhile. Closing the iterator, or interrupting it, cancels what is under way.
        """
        key = os.environ.get(self._settings.api_key_env) or _NO_KEY
        client = openai.AsyncOpenAI(
            base_url=self._settings.base_url,
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
        _agree_with_grade(found, rollout)
        if found.case != "A":
            _agree_with_reference(found, problem)
        fidelity = _faithful(found, trace, self._settings.min_fidelity)
        return Critique(
            rollout_id=rollout.id,
            critic=self.name,
            case=found.case,
            verdicts=found.verdicts,
            correct_part=found.correct_part,
            corrected_step=found.corrected_step,
            continuation=found.continuation,
            text=schema.compose(
                found.case, found.verdicts, found.correct_part, found.corrected_step, found.continuation
            ),
            fidelity=fidelity,
            prompt_tokens=completion.usage.prompt_tokens if completion.usage else 0,
            completion_tokens=completion.usage.completion_tokens if completion.usage else 0,
            seconds=seconds,
        )


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


def _agree_with_grade(found: schema.ParsedCritique, rollout: Rollout) -> None:
    allowed = "AB" if rollout.correct else "CD" if rollout.finish == "length" else "D"
    if found.case not in allowed:
        graded = "correct" if rollout.correct else "not correct"
        raise _Rejected("inconsistent", f"case {found.case} for a final answer that was graded {graded}")


def _agree_with_reference(found: schema.ParsedCritique, problem: Problem) -> None:
    """The correction must end in the reference answer, as far as plain comparison can tell."""
    boxes = boxed(f"{found.corrected_step}\n{found.continuation}")
    if not boxes:
        raise _Rejected("inconsistent", "the correction has no \\boxed final answer")
    wanted, stated = equations.value(problem.answer), equations.value(boxes[-1])
    if wanted is None:
        return
    if stated is not None:
        same = stated == wanted
    else:
        same = wanted in {number.value for number in equations.numbers(boxes[-1])}
    if not same:
        raise _Rejected("inconsistent", f"the correction ends in {boxes[-1]!r}, the reference in {problem.answer!r}")


def _faithful(found: schema.ParsedCritique, trace: Trace, least: float) -> float:
    """The fidelity of the copy, if it is high enough and the wrong step is not quoted."""
    k = found.first_error
    original = trace.text if k is None else schema.prefix(trace, k)
    fidelity = schema.fidelity(found.correct_part, original)
    if fidelity < least:
        raise _Rejected("unfaithful", f"{fidelity:.1%} of the correct part is verbatim, {least:.1%} is wanted")
    if found.case == "D" and k is not None and k <= len(trace.steps):
        wrong = trace.content(trace.section(k)).strip()
        if schema.trim(wrong) in f"{found.corrected_step}\n{found.continuation}":
            raise _Rejected("not silent", f"the wrong step {k} is quoted")
    return fidelity


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
