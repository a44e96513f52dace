"""Where rollouts first go wrong, in characters and in tokens."""

from dataclasses import dataclass
from typing import Literal

from stepalign.critics.first_error import first_error_span
from stepalign.records import Critique, Mark, PlantedSlip, Rollout
from stepalign.trace import parse, token_span


def of_slip(slip: PlantedSlip) -> Mark:
    """A planted slip's place: the first wrong number or sign, known exactly."""
    return Mark(
        rollout_id=slip.rollout_id,
        step=slip.step,
        start=slip.start,
        end=slip.end,
        departure=slip.departure,
        source="planted",
    )


def of_critique(rollout: Rollout, critique: Critique) -> Mark | None:
    """Mark the place of a critique's first error; None where it finds none, or only that something is missing."""
    error = None if critique.case == "C" else first_error_span(rollout.text, critique)
    if error is None or not parse(rollout.text).steps:
        return None
    return Mark(
        rollout_id=rollout.id,
        step=error.step,
        start=error.start,
        end=error.end,
        departure=error.departure,
        source="critique",
    )


@dataclass(frozen=True)
class Parts:
    """A rollout's completion tokens as half-open ranges: its steps, and what is before, at and after its error."""

    steps: tuple[tuple[int, int], ...]
    """As critiques count them: the steps and the final answer. Tokens between two belong to the first."""
    error: tuple[int, int] | None
    departure: int | None
    """The first wrong token, where it is known."""
    wrong_step: int | None
    """Counted from 1; the place of `error`."""
    end: int
    """Completion tokens, the EOS included."""

    def step_of(self, position: int) -> int:
        """Which step a token is in; 0 before the first."""
        return sum(start <= position for start, _ in self.steps)

    def place_of(self, position: int) -> Literal["before", "at", "after", ""]:
        """Where a token is in relation to the error; empty without one."""
        if self.error is None:
            return ""
        start, stop = self.error
        return "before" if position < start else "at" if position < stop else "after"


def parts(rollout: Rollout, mark: Mark | None) -> Parts:
    """A rollout in parts. A token that reaches over a boundary counts for the step that begins in it."""
    trace = parse(rollout.text)
    sections = trace.steps if trace.answer_section is None else (*trace.steps, trace.answer_section)
    starts = [token_span(rollout, section.start, section.end)[0] for section in sections]
    end = len(rollout.completion_ids)
    return Parts(
        steps=tuple(zip(starts, [*starts[1:], end], strict=False)),
        error=None if mark is None else token_span(rollout, mark.start, mark.end),
        departure=None
        if mark is None or mark.departure is None
        else token_span(rollout, mark.departure, mark.departure + 1)[0],
        wrong_step=None if mark is None else mark.step,
        end=end,
    )
