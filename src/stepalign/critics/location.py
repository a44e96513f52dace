"""The first wrong section of a solution, and the protocol of its locators.

`config.registry.build(table, own=…, folder=…)` builds the step locator of a table whose `is_stage` is true. The
benchmark on human labels (`process_supervision`) measures the same locators.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from stepalign.records import Problem, Rollout
from stepalign.trace import Section, Trace, boxed, parse_rollout


@dataclass(frozen=True, kw_only=True)
class Location:
    """The first wrong section of a rollout."""

    rollout_id: str
    step: int | None
    """Counted as critiques count; None where no error was found."""
    reason: str = ""
    """The fault in a few words that do not quote it."""
    prompt_tokens: int = 0
    completion_tokens: int = 0


@runtime_checkable
class StepLocator(Protocol):
    """Finder of the first wrong section."""

    name: str
    told: tuple[str, ...]
    """Facts that it uses: `grade`, `answer`, `solution`; empty for none."""

    def locate(self, attempts: Sequence[tuple[Problem, Rollout]]) -> Iterator[Location]:
        """Yield one location an attempt, in any order. Rollouts are graded."""
        ...


def counted_sections(trace: Trace) -> tuple[Section, ...]:
    """Return the sections that a critique judges: the steps, and a final answer."""
    return trace.steps if trace.answer_section is None else (*trace.steps, trace.answer_section)


def is_truncated(rollout: Rollout) -> bool:
    """Return whether a rollout ran out of tokens before an answer."""
    return rollout.finish == "length" and not boxed(rollout.text)


def section_texts(rollout: Rollout) -> list[str]:
    """Return the texts of a rollout's complete sections. The last one of a truncated rollout is not complete."""
    trace = parse_rollout(rollout)
    sections = counted_sections(trace)
    is_cut = is_truncated(rollout) and bool(sections) and sections[-1].end == len(rollout.text)
    return [trace.content(section) for section in sections[: len(sections) - is_cut]]
