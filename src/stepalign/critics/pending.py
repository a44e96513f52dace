"""An attempt on its way to a critique: the faults of earlier replies, tokens and time."""

from dataclasses import dataclass, field, replace
from time import perf_counter
from typing import NamedTuple

from stepalign.records import Critique, CritiqueFailure


class Fault(NamedTuple):
    """Fault of a reply that was not kept."""

    reason: str
    """A short name that is counted: a check's, or `parse`, `truncated`, `no room` …"""
    detail: str = ""


@dataclass(eq=False, kw_only=True)
class Pending:
    """Base of an attempt without a result yet."""

    start: float = field(default_factory=perf_counter)
    faults: list[Fault] = field(default_factory=list)
    """Of each reply that was not kept, in order."""
    prompt_tokens: int = 0
    completion_tokens: int = 0

    def finish(self, result: Critique | CritiqueFailure) -> Critique | CritiqueFailure:
        """Add what the result cost."""
        return replace(
            result,
            retried=tuple(fault.reason for fault in self.faults),
            prompt_tokens=self.prompt_tokens,
            completion_tokens=self.completion_tokens,
            seconds=perf_counter() - self.start,
        )
