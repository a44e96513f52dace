"""Spans of a rollout's first error and of its steps, in characters and in tokens."""

from dataclasses import dataclass
from typing import Literal

from stepalign.critics.first_error import first_error_span
from stepalign.records import Critique, Mark, PlantedSlip, Rollout
from stepalign.trace import parse, token_span


def mark_from_slip(slip: PlantedSlip) -> Mark:
    """Mark a planted slip, whose place is known exactly."""
    return Mark(
        rollout_id=slip.rollout_id,
        step=slip.step,
        start=slip.start,
        end=slip.end,
        departure=slip.departure,
        source="planted",
    )


def mark_from_critique(rollout: Rollout, critique: Critique) -> Mark | None:
    """Mark the first error that a critique reports.

    Returns:
        None where nothing is wrong, or something is only missing (case C).
    """
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
class TokenRegions:
    """Half-open token ranges of a completion: its steps and its error."""

    steps: tuple[tuple[int, int], ...]
    """The steps and the final answer, as critiques count them. Tokens between two belong to the first."""
    error: tuple[int, int] | None
    departure: int | None
    """The first wrong token, where it is known."""
    wrong_step: int | None
    """The step of `error`, counted from 1."""

    def step_of(self, position: int) -> int:
        """Return the step of a token; 0 before the first."""
        return sum(start <= position for start, _ in self.steps)

    def place_of(self, position: int) -> Literal["before", "at", "after", ""]:
        """Return a token's place relative to the error; empty without one."""
        if self.error is None:
            return ""
        start, stop = self.error
        return "before" if position < start else "at" if position < stop else "after"


def token_regions(rollout: Rollout, mark: Mark | None) -> TokenRegions:
    """Divide a rollout's tokens. A token across a boundary belongs to the step that begins in it."""
    trace = parse(rollout.text)
    sections = trace.steps if trace.answer_section is None else (*trace.steps, trace.answer_section)
    starts = [token_span(rollout, section.start, section.end)[0] for section in sections]
    departs = None if mark is None else mark.departure
    return TokenRegions(
        steps=tuple(zip(starts, [*starts[1:], len(rollout.completion_ids)], strict=False)),
        error=None if mark is None else token_span(rollout, mark.start, mark.end),
        departure=None if departs is None else token_span(rollout, departs, departs + 1)[0],
        wrong_step=None if mark is None else mark.step,
    )
