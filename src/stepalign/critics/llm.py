"""Critiques by a model: the message, the reading of its reply, validation and retries, for any transport.

One user message: what is the same for every attempt first, then the problem with its reference solution, then the
rollout, so that a server's prefix cache shares as much as possible. The reply, without its thinking, is read by the
mode (`schema` for copy, `splice` for splice), checked (`checks`) and validated (`validation`). After a rejection the
model is asked again, with what was wrong at the message's end.
"""

from dataclasses import dataclass, field, replace
from time import perf_counter

from jinja2 import Template

from stepalign import config, prompts
from stepalign.critics import sample, schema, splice
from stepalign.critics.validation import Validator
from stepalign.records import Critique, CritiqueFailure, Problem, Rollout
from stepalign.rewards import Grader
from stepalign.trace import parse

VARIABLES = frozenset({"problem", "solution", "answer", "attempt", "truncated"})
"""Variables of a critic's template."""

_TEMPLATES = {"copy": "critic", "splice": "critic-splice"}


@dataclass(frozen=True, kw_only=True)
class ModelReply:
    """Text that a model wrote, without the thinking before it."""

    text: str
    truncated: bool = False
    """True if it reached `max_tokens`, or is longer than they can be."""
    prompt_tokens: int = 0
    completion_tokens: int = 0


@dataclass(eq=False)
class PendingCritique:
    """An attempt without a result yet."""

    problem: Problem
    rollout: Rollout
    start: float = field(default_factory=perf_counter)
    rejections: list[CritiqueFailure] = field(default_factory=list)
    prompt_tokens: int = 0
    completion_tokens: int = 0


class CritiqueWriter:
    """Messages to a model, and critiques from its replies."""

    def __init__(self, critic: str, settings: config.LLMCriticConfig, grader: Grader) -> None:
        """Load the templates. `critic` is the critic's name in the records."""
        self._critic, self._settings = critic, settings
        self._validator = Validator(settings, grader)
        self._template = load_template(settings)
        self._again, _ = prompts.load("critic-again", frozenset({"faults"}))

    def message(self, pending: PendingCritique) -> str:
        """Render the user message of the next request."""
        message = prompts.render(self._template, _values(pending.problem, pending.rollout))
        if pending.rejections:
            faults = [rejection.detail for rejection in pending.rejections]
            message += "\n\n" + prompts.render(self._again, {"faults": faults})
        return message

    def read(self, pending: PendingCritique, reply: ModelReply) -> Critique | CritiqueFailure:
        """Read a reply, and count its tokens. The critique is not checked yet."""
        pending.prompt_tokens += reply.prompt_tokens
        pending.completion_tokens += reply.completion_tokens
        if reply.truncated:
            return self._reject(pending, "truncated", "the answer reached max_tokens")
        if not reply.text.strip() or reply.text.lstrip().startswith("<think>"):
            return self._reject(
                pending, "parse", "its thinking never ends" if reply.text.strip() else "an empty answer"
            )
        trace = parse(pending.rollout.text, pending.rollout.response_start)
        try:
            parsed = (schema.parse if self._settings.mode == "copy" else splice.parse)(reply.text, trace)
        except schema.CritiqueFormatError as error:
            return self._reject(pending, "parse", f"the answer {error}")
        original = schema.original(trace, parsed.first_error)
        return Critique(
            **vars(parsed),
            rollout_id=pending.rollout.id,
            critic=self._critic,
            text=schema.text_of(parsed),
            fidelity=schema.fidelity(parsed.correct_part, original),
        )

    def needs_algebra(self, pending: PendingCritique, read: Critique | CritiqueFailure) -> bool:
        """Return whether validation waits for the grader's processes."""
        checker = self._validator.checker
        return isinstance(read, Critique) and checker.needs_algebra(read, pending.problem, pending.rollout)

    def validate(self, pending: PendingCritique, read: Critique | CritiqueFailure) -> Critique | CritiqueFailure | None:
        """Validate what was read; None where the model is to be asked again."""
        if isinstance(read, Critique):
            read = self._validator.validate(read, pending.problem, pending.rollout)
        is_last = len(pending.rejections) + 1 >= self._settings.max_attempts
        if isinstance(read, CritiqueFailure) and self._validator.may_retry(read) and not is_last:
            pending.rejections.append(read)
            return None
        return self._finish(pending, read)

    def fail(self, pending: PendingCritique, reason: str, detail: str) -> Critique | CritiqueFailure:
        """Return the failure of an attempt that gets no further reply."""
        return self._finish(pending, self._reject(pending, reason, detail))

    def _reject(self, pending: PendingCritique, reason: str, detail: str) -> CritiqueFailure:
        return self._validator.reject(pending.rollout, self._critic, reason, detail)

    def _finish(self, pending: PendingCritique, result: Critique | CritiqueFailure) -> Critique | CritiqueFailure:
        """Add what the result cost."""
        return replace(
            result,
            retried=tuple(rejection.reason for rejection in pending.rejections),
            prompt_tokens=pending.prompt_tokens,
            completion_tokens=pending.completion_tokens,
            seconds=perf_counter() - pending.start,
        )


def load_template(settings: config.LLMCriticConfig) -> Template:
    """Load a critic's template, and render it once."""
    template, _ = prompts.load(settings.prompt or _TEMPLATES[settings.mode], VARIABLES)
    for finish in ("stop", "length"):
        prompts.render(template, _values(sample.PROBLEM, replace(sample.ROLLOUT, finish=finish)))
    return template


def _values(problem: Problem, rollout: Rollout) -> dict[str, object]:
    return {
        "problem": problem.statement, "solution": problem.solution, "answer": problem.answer,
        "attempt": rollout.text, "truncated": rollout.finish == "length",
    }  # fmt: skip
