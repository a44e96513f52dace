"""The first wrong section of a solution, and the protocol of its locators.

`config.registry.build(table, own=…, folder=…)` builds the step locator of a table whose `is_stage` is true. The
benchmark on human labels (`process_supervision`) measures the same locators.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

from stepalign.records import Problem, Rollout
from stepalign.trace import Section, Trace, boxed, parse_rollout


@dataclass(frozen=True, kw_only=True)
class Location:
    """The first wrong section of a rollout."""

    rollout_id: str
    step: int | None
    """Counted as critiques count; None where no error was found."""
    reason: str = ""
    """The fault in a few words that do not quote it; of no answer, the detail."""
    unanswered: str = ""
    """`timeout`, `server` or `refused` where a server gave no answer, so that nothing is said about the sections."""
    is_guess: bool = False
    """Nothing points to this section more than to others."""
    scores: tuple[float, ...] = ()
    """Of each complete section, the lower the worse; empty where the locator gives none."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0


@runtime_checkable
class StepLocator(Protocol):
    """Finder of the first wrong section."""

    name: str
    told: tuple[str, ...]
    """Facts that it uses: `grade`, `answer`, `solution`; empty for none."""

    def locate(self, attempts: Sequence[tuple[Problem, Rollout]]) -> Iterator[Location]:
        """Yield one location an attempt, in any order. Rollouts are graded."""
        ...


@runtime_checkable
class ServedLocator(StepLocator, Protocol):
    """Locator behind servers."""

    def check_servers(self) -> None:
        """Raise a StepalignError where no server works, or one refuses key, model or URL."""
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


class SectionScores(NamedTuple):
    """Scores of a rollout's complete sections, and the tokens that they took."""

    scores: tuple[float, ...]
    """The lower the worse; empty where there are none, with the reason in `fault`."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    fault: str = ""
    unanswered: str = ""
    """`timeout`, `server` or `refused` where the fault is a server's."""


class ScoredLocator(ABC):
    """Base of the locators that score each section. Which one is wrong follows from the grade and a threshold."""

    name: str
    facts: tuple[str, ...]
    """Facts that the scores know, beside the grade that the decision knows."""
    threshold: float | None

    @property
    def told(self) -> tuple[str, ...]:
        """Facts that scores and decision know."""
        return tuple(dict.fromkeys(("grade", *self.facts)))

    @abstractmethod
    def score(self, attempts: Sequence[tuple[Problem, Rollout]]) -> Iterator[SectionScores]:
        """Yield the scores of each attempt, in order."""

    def locate(self, attempts: Sequence[tuple[Problem, Rollout]]) -> Iterator[Location]:
        """Yield one location an attempt, in order. A right solution has no wrong section."""
        if not attempts:
            return  # a model that scores would be loaded
        for (_, rollout), scored in zip(attempts, self.score(attempts), strict=True):
            step, is_guess, reason = None, False, scored.fault
            if not rollout.correct and not scored.fault:
                step, is_guess = first_wrong(rollout, scored.scores, self.threshold)
                is_there = step <= len(scored.scores)
                reason = "it does not lead to the answer." if is_there else "the solution is not finished."
            yield Location(
                rollout_id=rollout.id,
                step=step,
                reason=reason,
                unanswered=scored.unanswered,
                is_guess=is_guess,
                scores=scored.scores,
                prompt_tokens=scored.prompt_tokens,
                completion_tokens=scored.completion_tokens,
            )


def first_wrong(rollout: Rollout, scores: Sequence[float], threshold: float | None) -> tuple[int, bool]:
    """Return the first wrong section of a wrong or truncated rollout, and whether it is a guess.

    It is the first one below the threshold. Without one it is the unfinished section of a truncated rollout, else the
    lowest step: a guess, unless there is no threshold. A final answer is not among the lowest, because it is wrong in
    every wrong solution.
    """
    below = (k for k, score in enumerate(scores, start=1) if threshold is not None and score < threshold)
    if (first := next(below, None)) is not None:
        return first, False
    if is_truncated(rollout) or not scores:
        return len(scores) + 1, False
    steps = scores[: len(parse_rollout(rollout).steps)] or scores
    return steps.index(min(steps)) + 1, threshold is not None
