"""A critic of two stages: one finds the first wrong step, the other writes the solution on from there.

    [critic]
    kind = "locate-mend"
    locator = { kind = "derivation" }
    mender = { kind = "self", num_samples = 4 }

A right answer needs no model (`right_answers`). Of a wrong one, the mender continues the solver's own correct steps,
with the reference solution in view. The first sample whose critique passes the checks is kept (`mending`). The program
composes the critique, so copy and case are right by construction. Without such a sample the program corrects: it
recomputes the solver's text, or goes on with the reference's steps. Each critique names its author (`mended_by`). Where
no sample of a model passed, the step's line and the head of the report say so (`records.SHORTFALLS`).
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from time import perf_counter
from typing import Protocol, Self, runtime_checkable

from stepalign import config
from stepalign.config.registry import build
from stepalign.critics.arithmetic.critic import Attempt, Correction, correct_from, other_format, to_critique
from stepalign.critics.llm import ModelReply
from stepalign.critics.location import Location, ServedLocator, StepLocator
from stepalign.critics.own_model import OwnModel
from stepalign.critics.pending import Fault, Pending
from stepalign.critics.right_answers import critique_right
from stepalign.critics.validation import Validator
from stepalign.prompts.conversation import Turn
from stepalign.records import PROGRAM, Critique, CritiqueFailure, Problem, Rollout
from stepalign.rewards import Grader
from stepalign.trace import parse

NAME = "locate-mend"


@dataclass(eq=False)
class Draft(Pending):
    """A located rollout without a critique yet."""

    attempt: Attempt
    location: Location

    @property
    def step(self) -> int:
        """The first wrong section."""
        assert self.location.step is not None
        return self.location.step

    @property
    def heading(self) -> str:
        """The heading of the step to be written."""
        return f"### Step {self.attempt.number_after(min(self.step - 1, len(self.attempt.steps)))}:"

    @property
    def before(self) -> str:
        """The solver's own text before that step, verbatim; empty where it has no usable steps."""
        trace = self.attempt.trace
        if not self.attempt.is_usable:
            return ""
        return trace.text if self.step > len(self.attempt.sections) else trace.before(self.step)


class Mender(Protocol):
    """Writer of continuations."""

    name: str
    num_samples: int
    """The most samples for one rollout."""
    max_num_seqs: int
    """Rollouts that are mended together."""

    def opened(self) -> AbstractContextManager[None]:
        """Hold what all samples share, inside a `with`."""
        ...

    def sample(self, drafts: Sequence[Draft], number: int) -> Iterator[tuple[Draft, ModelReply]]:
        """Yield sample `number` of each draft, in any order: the text behind the heading.

        A draft without a sample gets a fault.
        """
        ...


@runtime_checkable
class ServedMender(Mender, Protocol):
    """Mender behind servers."""

    def check_servers(self) -> None:
        """Raise a StepalignError where no server works, or one refuses key, model or URL."""
        ...


class LocateMendCritic:
    """A locator and a mender. Results come a batch at a time."""

    name = NAME

    def __init__(
        self, settings: config.LocateMendCriticConfig, locator: StepLocator, mender: Mender, grader: Grader
    ) -> None:
        self._locator, self._mender = locator, mender
        self._validator = Validator(settings, grader)

    @classmethod
    def from_config(
        cls,
        settings: config.LocateMendCriticConfig,
        *,
        grader: Grader,
        folder: Path,
        own: Callable[[], OwnModel] | None,
        before: Sequence[Turn] = (),
    ) -> Self:
        """Build the critic of a recipe."""
        parts = {"folder": folder, "own": own, "before": before}
        return cls(settings, build(settings.locator, **parts), build(settings.mender, **parts), grader)

    def critique(self, attempts: Iterable[tuple[Problem, Rollout]]) -> Iterator[Critique | CritiqueFailure]:
        """Yield one result an attempt, a batch at a time.

        A failure's reason is that of the program's own critique: a check, `not located` where the locator finds no
        error in a wrong solution, `locator: timeout`, `locator: server` or `locator: refused` where its server gives no
        answer, `no way to the answer` where nothing mends it, or `no steps` for a wrong solution in another trace
        format.
        """
        source = iter(attempts)
        with self._mender.opened():
            while batch := list(islice(source, self._mender.max_num_seqs)):
                yield from (critique_right(*one, NAME, self._validator) for one in batch if one[1].correct)
                yield from self._critique([one for one in batch if not one[1].correct])

    def check_servers(self) -> None:
        """Raise a StepalignError where no server of locator or mender works."""
        if isinstance(self._locator, ServedLocator):
            self._locator.check_servers()
        if isinstance(self._mender, ServedMender):
            self._mender.check_servers()

    def _critique(self, batch: Sequence[tuple[Problem, Rollout]]) -> Iterator[Critique | CritiqueFailure]:
        start = perf_counter()
        by_id, drafts = {}, []
        for problem, rollout in batch:
            if detail := other_format(rollout):
                yield self._validator.reject(rollout, NAME, "no steps", detail)
            else:
                by_id[rollout.id] = problem, rollout
        for location in self._locator.locate(list(by_id.values())):
            draft = Draft(
                Attempt(*by_id[location.rollout_id]),
                location,
                start=start,
                prompt_tokens=location.prompt_tokens,
                completion_tokens=location.completion_tokens,
            )
            if location.unanswered:
                yield draft.finish(self._failure(draft, f"locator: {location.unanswered}", location.reason))
            elif location.step is None:
                detail = location.reason or "the locator finds no error in a wrong solution"
                yield draft.finish(self._failure(draft, "not located", detail))
            else:
                drafts.append(draft)
        yield from self._mend(drafts)

    def _mend(self, drafts: list[Draft]) -> Iterator[Critique | CritiqueFailure]:
        """Sample for the drafts that are left, until each has a critique or its last sample."""
        for number in range(self._mender.num_samples):
            kept = set()
            for draft, sample in self._mender.sample(drafts, number):
                draft.prompt_tokens += sample.prompt_tokens
                draft.completion_tokens += sample.completion_tokens
                result = self._read(draft, sample)
                if isinstance(result, Critique):
                    kept.add(draft)
                    yield draft.finish(result)
                else:
                    draft.faults.append(result)
            drafts = [draft for draft in drafts if draft not in kept]
        for draft in drafts:
            yield draft.finish(self._by_program(draft))

    def _read(self, draft: Draft, sample: ModelReply) -> Critique | Fault:
        """Return the critique that a sample makes, or its fault."""
        if sample.truncated:
            return Fault("truncated")
        if sample.finish != "stop":
            return Fault("unfinished", sample.finish)
        text = f"{draft.heading}{sample.text}"
        trace = parse(text)
        ends = [*(section.start for section in trace.sections[1:]), len(text)]
        starts = [0, *ends[:-1]]
        pieces = tuple(text[start:end].strip() for start, end in zip(starts, ends, strict=True))
        result = self._composed(draft, Correction(draft.step, draft.location.reason, pieces), self._mender.name)
        return Fault(result.reason, result.detail) if isinstance(result, CritiqueFailure) else result

    def _by_program(self, draft: Draft) -> Critique | CritiqueFailure:
        correction = correct_from(draft.attempt, draft.step, draft.location.reason)
        if correction is None:
            return self._failure(draft, "no way to the answer", "no sample passes, and there is no reference solution")
        return self._composed(draft, correction, PROGRAM)

    def _composed(self, draft: Draft, correction: Correction, mended_by: str) -> Critique | CritiqueFailure:
        attempt = draft.attempt
        critique = to_critique(attempt, "C" if attempt.is_truncated else "D", correction, critic=NAME)
        result = self._validator.validate(critique, attempt.problem, attempt.rollout)
        return replace(result, mended_by=mended_by) if isinstance(result, Critique) else result

    def _failure(self, draft: Draft, reason: str, detail: str) -> CritiqueFailure:
        return self._validator.reject(draft.attempt.rollout, NAME, reason, detail)
