"""Spans of a rollout's first error and of its steps, in characters and in tokens."""

import re
from dataclasses import dataclass
from typing import Literal

from stepalign.critics.schema import departure
from stepalign.records import Critique, Mark, PlantedSlip, Rollout
from stepalign.trace import parse, token_span

_WORD = re.compile(
    r"\d{1,3}(?:(?:,|\{,\})\d{3})+(?!\d)(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+"  # a number
    r"|\\?[^\W\d_]+|\S"  # a LaTeX command, a word or a sign
)


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

    The span is the number or sign at which the wrong step departs from the corrected one. Where the correction is in
    other words it is the whole step, because nothing narrower can be derived.

    Returns:
        None where nothing is wrong, or something is only missing (case C).
    """
    trace = parse(rollout.text)
    if critique.first_error is None or critique.case == "C" or not trace.steps:
        return None
    try:
        section = trace.section(critique.first_error)
    except IndexError:
        return None
    start, end = section.start, section.end
    first_wrong = departure(trace.content(section), critique.corrected_step)
    if first_wrong is not None:
        first_wrong += section.start
        words = (match.span() for match in _WORD.finditer(rollout.text, start, end))
        start, end = next(
            (span for span in words if span[0] <= first_wrong < span[1]), (first_wrong, first_wrong + 1)
        )
    return Mark(
        rollout_id=rollout.id,
        step=critique.first_error,
        start=start,
        end=end,
        departure=first_wrong,
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
    sections = trace.steps if trace.answer is None else (*trace.steps, trace.answer)
    starts = [token_span(rollout, section.start, section.end)[0] for section in sections]
    departs = None if mark is None else mark.departure
    return TokenRegions(
        steps=tuple(zip(starts, [*starts[1:], len(rollout.completion_ids)], strict=False)),
        error=None if mark is None else token_span(rollout, mark.start, mark.end),
        departure=None if departs is None else token_span(rollout, departs, departs + 1)[0],
        wrong_step=None if mark is None else mark.step,
    )
