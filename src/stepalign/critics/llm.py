"""Critiques by a model: the message, the reading of its reply, validation and retries, for any transport.

One user message: what is the same for every attempt first, then the problem with its reference solution, then the
rollout, so that a server's prefix cache shares as much as possible. The reply, without its thinking, is read by the
mode (`schema` for copy, `splice` for splice), checked (`checks`) and validated (`validation`). After a rejection the
model is asked again, with what was wrong at the message's end.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from jinja2 import Template

from stepalign import config, prompts
from stepalign.critics import sample, schema, splice
from stepalign.critics.checks import max_length
from stepalign.critics.fidelity import fidelity
from stepalign.critics.pending import Fault, Pending
from stepalign.critics.quoting import quote, unquote
from stepalign.critics.right_answers import critique_right
from stepalign.critics.validation import Validator
from stepalign.records import Critique, CritiqueFailure, Problem, Rollout
from stepalign.rewards import Grader
from stepalign.trace import parse_rollout
from stepalign.trace.thoughts import THOUGHT_MARKS

VARIABLES = frozenset(
    {"problem", "solution", "answer", "attempt", "truncated", "feedback", "steps", "num_judged", "cases"}
)
"""Variables of a critic's template."""

MAX_CHARS_PER_TOKEN = 16
"""More characters than a token has on average, in any text."""
_TEMPLATES = {"copy": "critic", "splice": "critic-splice"}


@dataclass(frozen=True, kw_only=True)
class ModelReply:
    """Text that a model wrote, without the thinking before it."""

    text: str
    truncated: bool = False
    """True if it reached `max_tokens`, or is longer than they can be."""
    finish: str = "stop"
    """The server's reason for the end. A reply is whole at `stop` alone."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    top_logprobs: Mapping[str, float] = field(default_factory=dict)
    """Log-probabilities of the likeliest first tokens; empty unless requested."""


_THINK, _THINK_END = (
    re.compile("|".join(re.escape(pair[side]) for pair in THOUGHT_MARKS), re.IGNORECASE) for side in (0, 1)
)
_JSON = re.compile(r"\s{0,40}(?:```[a-z]{0,8}\s{0,8})?\{")


def without_thinking(reply: str) -> str:
    """Return a reply without the critic's own thinking, which ends before the critique's last opening heading.

    A thinking solver's copy stands behind that heading and keeps its own tags. JSON begins behind the thinking.
    """
    ends = [match.end() for match in _THINK_END.finditer(reply)]
    if not ends:
        return reply
    opening = schema.last_opening(reply)
    before = [end for end in ends if opening is None or end <= opening]
    if opening is None:
        before = [end for end in ends if _JSON.match(reply, end)][:1] or ends
    return reply[before[-1] :] if before else reply


def _is_thinking(reply: str, mode: str) -> bool:
    """Tell whether thinking begins before the critique does, without an end."""
    begin = schema.last_opening(reply) if mode == "copy" else reply.find("{")
    return _THINK.search(reply, 0, len(reply) if begin is None or begin < 0 else begin) is not None


@dataclass(eq=False)
class PendingCritique(Pending):
    """An attempt that a model critiques."""

    problem: Problem
    rollout: Rollout


class CritiqueWriter:
    """Messages to a model, and critiques from its replies."""

    def __init__(self, critic: str, settings: config.LLMCriticConfig, grader: Grader) -> None:
        """Load the templates. `critic` is the critic's name in the records."""
        self._critic, self._settings = critic, settings
        self._validator = Validator(settings, grader)
        self._template = load_template(settings)
        self._again, _ = prompts.load("critic-again", frozenset({"faults"}))

    def composes(self, rollout: Rollout) -> bool:
        """Return whether the recipe leaves a rollout to the program."""
        return rollout.correct and self._settings.right_answers == "program"

    def compose(self, pending: PendingCritique) -> Critique | None:
        """Compose a right answer's critique without the model; None where the program cannot, so the model is asked."""
        result = critique_right(pending.problem, pending.rollout, self._critic, self._validator)
        return result if isinstance(result, Critique) else None

    def message(self, pending: PendingCritique) -> str:
        """Render the user message of the next request."""
        message = first_message(self._template, pending.problem, pending.rollout)
        if pending.faults:
            faults = [quote(fault.detail) for fault in pending.faults]
            message += "\n\n" + prompts.render(self._again, {"faults": faults})
        return message

    def read(self, pending: PendingCritique, reply: ModelReply) -> Critique | CritiqueFailure:
        """Read a reply, and count its tokens. The critique is not checked yet."""
        pending.prompt_tokens += reply.prompt_tokens
        pending.completion_tokens += reply.completion_tokens
        text, rollout = unquote(reply.text), pending.rollout
        most = max_length(self._settings.checks, pending.problem, rollout)
        for is_fault, reason, detail in (
            (reply.truncated, "truncated", "the answer reached max_tokens"),
            (reply.finish != "stop", "unfinished", f"the server ended the answer with {reply.finish[:80]!r}"),
            (len(text) > most, "length", f"the answer has {len(text):,} characters, at most {most:,.0f} are allowed"),
            (not text.strip(), "parse", "an empty answer"),
            (_is_thinking(text, self._settings.mode), "parse", "its thinking never ends"),
        ):
            if is_fault:
                return self._reject(pending, reason, detail)
        trace = parse_rollout(rollout)
        try:
            parsed = (schema.parse if self._settings.mode == "copy" else splice.parse)(text, trace)
        except schema.CritiqueFormatError as error:
            return self._reject(pending, "parse", f"the answer {error}")
        original = schema.original(trace, parsed.first_error)
        return Critique(
            **vars(parsed),
            rollout_id=rollout.id,
            critic=self._critic,
            text=schema.text_of(parsed),
            fidelity=fidelity(parsed.correct_part, original),
        )

    def needs_algebra(self, pending: PendingCritique, read: Critique | CritiqueFailure) -> bool:
        """Return whether validation waits for the grader's processes."""
        checker = self._validator.checker
        return isinstance(read, Critique) and checker.needs_algebra(read, pending.problem, pending.rollout)

    def validate(self, pending: PendingCritique, read: Critique | CritiqueFailure) -> Critique | CritiqueFailure | None:
        """Validate what was read; None where the model is to be asked again."""
        if isinstance(read, Critique):
            read = self._validator.validate(read, pending.problem, pending.rollout)
        is_last = len(pending.faults) + 1 >= self._settings.max_attempts
        if isinstance(read, CritiqueFailure) and self._validator.may_retry(read) and not is_last:
            pending.faults.append(Fault(read.reason, read.detail))
            return None
        return pending.finish(read)

    def judge(self, pending: PendingCritique, reply: ModelReply) -> Critique | CritiqueFailure | None:
        """Read and validate a reply; None where the model is to be asked again."""
        return self.validate(pending, self.read(pending, reply))

    def fail(self, pending: PendingCritique, reason: str, detail: str) -> Critique | CritiqueFailure:
        """Return the failure of an attempt that gets no further reply."""
        return pending.finish(self._reject(pending, reason, detail))

    def _reject(self, pending: PendingCritique, reason: str, detail: str) -> CritiqueFailure:
        return self._validator.reject(pending.rollout, self._critic, reason, detail)


def load_template(settings: config.LLMCriticConfig) -> Template:
    """Load a critic's template, and render it once."""
    template, _ = prompts.load(settings.prompt or _TEMPLATES[settings.mode], VARIABLES)
    for finish in ("stop", "length"):
        prompts.render(template, _values(sample.PROBLEM, replace(sample.ROLLOUT, finish=finish)))
    return template


def first_message(template: Template, problem: Problem, rollout: Rollout) -> str:
    """Render the user message of the first request on a rollout."""
    return prompts.render(template, _values(problem, rollout))


def _values(problem: Problem, rollout: Rollout) -> dict[str, object]:
    """Return a template's values. What others wrote is quoted, so that it ends no section."""
    texts = {
        "problem": problem.statement, "solution": problem.solution, "answer": problem.answer, "attempt": rollout.text,
        "feedback": rollout.grade.feedback if rollout.grade else "",
    }  # fmt: skip
    trace = parse_rollout(rollout)
    steps = [
        {"label": schema.label_of(trace, k), "text": quote(trace.content(step).rstrip())}
        for k, step in enumerate(trace.steps, start=1)
    ]
    return {
        **{name: quote(text) for name, text in texts.items()},
        "truncated": rollout.finish == "length",
        "cases": schema.allowed_cases(rollout),
        "steps": steps,
        "num_judged": splice.num_judged(rollout, trace),
    }
