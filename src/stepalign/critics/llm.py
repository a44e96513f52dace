"""What a model is asked about an attempt, and what becomes of what it says, whoever carries the words.

One user message: what is the same for every attempt first, then the problem with its reference solution, then the
rollout, so that a server's prefix cache shares as much as there is. What comes back, without its thinking, is read by
the mode (`schema` for copy, `splice` for splice), checked (`checks`), and settled by the recipe's policy (`policy`).
An answer that may not teach is asked for again with what was wrong with it, at the message's end.
"""

from dataclasses import dataclass, field, replace
from time import perf_counter

from stepalign import config, prompts
from stepalign.critics import schema, splice
from stepalign.critics.validation import Refusal, Rules
from stepalign.records import Critique, CritiqueFailure, Problem, Rollout
from stepalign.rewards import Grader
from stepalign.trace import parse

VARIABLES = frozenset({"problem", "solution", "answer", "attempt", "truncated"})
"""What a critic's template may use."""

_PROMPTS = {"copy": "critic", "splice": "critic-splice"}


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a model said, without the thinking that it ended."""

    text: str
    truncated: bool = False
    """It reached `max_tokens`, or is longer than they can be."""
    prompt_tokens: int = 0
    completion_tokens: int = 0


@dataclass(eq=False)
class Opened:
    """An attempt that has no answer yet."""

    problem: Problem
    rollout: Rollout
    start: float = field(default_factory=perf_counter)
    faults: list[Refusal] = field(default_factory=list)
    prompt_tokens: int = 0
    completion_tokens: int = 0


class Dialogue:
    """A recipe's way of asking a model."""

    def __init__(self, critic: str, settings: config.LLMCriticConfig, grader: Grader) -> None:
        """
        Args:
            critic: the critic's name, for the records.
            settings: mode, template, checks, policy, and how often to ask.
            grader: compares final answers that only computer algebra can.

        Raises:
            StepalignError: there is no such template.
        """
        self._critic, self._settings = critic, settings
        self._rules = Rules(settings, grader)
        self._template, _ = prompts.load(settings.prompt or _PROMPTS[settings.mode], VARIABLES)
        self._again, _ = prompts.load("critic-again", frozenset({"faults"}))

    def message(self, opened: Opened) -> str:
        """The user message of the next request."""
        values = {
            "problem": opened.problem.statement,
            "solution": opened.problem.solution,
            "answer": opened.problem.answer,
            "attempt": opened.rollout.text,
            "truncated": opened.rollout.finish == "length",
        }
        message = prompts.render(self._template, values)
        if opened.faults:
            message += "\n\n" + prompts.render(self._again, {"faults": [fault.detail for fault in opened.faults]})
        return message

    def settle(self, opened: Opened, answer: Answer) -> Critique | CritiqueFailure | None:
        """What a model's words come to; None where it is to be asked again."""
        return self.judge(opened, self.read(opened, answer))

    def read(self, opened: Opened, answer: Answer) -> Critique | Refusal:
        """What a model's words say, not checked yet."""
        opened.prompt_tokens += answer.prompt_tokens
        opened.completion_tokens += answer.completion_tokens
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
            critic=self._critic,
            case=found.case,
            verdicts=found.verdicts,
            correct_part=found.correct_part,
            corrected_step=found.corrected_step,
            continuation=found.continuation,
            text=schema.text_of(found),
            fidelity=schema.fidelity(found.correct_part, schema.original(trace, found.first_error)),
        )

    def needs_algebra(self, opened: Opened, found: Critique | Refusal) -> bool:
        """Whether judging what was read waits for the grader's processes."""
        return isinstance(found, Critique) and self._rules.checker.needs_algebra(found, opened.problem, opened.rollout)

    def judge(self, opened: Opened, found: Critique | Refusal) -> Critique | CritiqueFailure | None:
        """What was read, checked and settled by the policy; None where the model is to be asked again."""
        if isinstance(found, Critique):
            found = self._rules.settle(found, opened.problem, opened.rollout)
        if isinstance(found, Refusal) and found.again and len(opened.faults) + 1 < self._settings.max_attempts:
            opened.faults.append(found)
            return None
        return self.close(opened, found)

    def close(self, opened: Opened, found: Critique | Refusal) -> Critique | CritiqueFailure:
        """The last word on an attempt, with what it cost."""
        last = found.failure(opened.rollout, self._critic) if isinstance(found, Refusal) else found
        return replace(
            last,
            retried=tuple(fault.reason for fault in opened.faults),
            prompt_tokens=opened.prompt_tokens,
            completion_tokens=opened.completion_tokens,
            seconds=perf_counter() - opened.start,
        )
