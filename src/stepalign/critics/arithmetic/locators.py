"""Step locators without a model: by the truth of equations alone, and by the reference solution's derivation.

stepalign critic-bench process-bench/gsm8k gsm8k.jsonl locator.kind=derivation --out found/derivation
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Self

from stepalign import config
from stepalign.critics.arithmetic.departure import first_departure
from stepalign.critics.arithmetic.equations import false_links
from stepalign.critics.location import Location, is_truncated, section_texts
from stepalign.records import Problem, Rollout


class EquationsLocator:
    """Locator that is told nothing: the first section with an equation that does not hold."""

    name = "false equations"
    told = ()

    @classmethod
    def from_config(cls, settings: config.EquationsLocatorConfig, **_: object) -> Self:
        """Build the locator of a recipe."""
        return cls()

    def locate(self, attempts: Sequence[tuple[Problem, Rollout]]) -> Iterator[Location]:
        """Yield one location an attempt, in order."""
        return (false_equation(rollout) for _, rollout in attempts)


class OriginsLocator:
    """Locator that is told nothing: the first section with a false equation or a number from nowhere."""

    name = "false equations, numbers of unknown origin"
    told = ()

    @classmethod
    def from_config(cls, settings: config.OriginsLocatorConfig, **_: object) -> Self:
        """Build the locator of a recipe."""
        return cls()

    def locate(self, attempts: Sequence[tuple[Problem, Rollout]]) -> Iterator[Location]:
        """Yield one location an attempt, in order."""
        for problem, rollout in attempts:
            texts = section_texts(rollout)
            departure = first_departure(replace(problem, solution=""), texts, is_whole=False) if texts else None
            if departure is None:
                yield Location(rollout_id=rollout.id, step=None)
            else:
                yield Location(rollout_id=rollout.id, step=departure.step, reason=departure.reason)


class DerivationLocator:
    """Locator that knows grade, answer and solution: the first departure from the solution's derivation."""

    name = "derivation"
    told = ("grade", "answer", "solution")

    @classmethod
    def from_config(cls, settings: config.DerivationLocatorConfig, **_: object) -> Self:
        """Build the locator of a recipe."""
        return cls()

    def locate(self, attempts: Sequence[tuple[Problem, Rollout]]) -> Iterator[Location]:
        """Yield one location an attempt, in order."""
        return (by_derivation(problem, rollout) for problem, rollout in attempts)


def false_equation(rollout: Rollout) -> Location:
    """Locate the first section with an equation that does not hold."""
    false = (k for k, text in enumerate(section_texts(rollout), start=1) if false_links(text))
    if (step := next(false, None)) is None:
        return Location(rollout_id=rollout.id, step=None)
    return Location(rollout_id=rollout.id, step=step, reason="an equation in it does not hold.")


def by_derivation(problem: Problem, rollout: Rollout) -> Location:
    """Locate the first departure from the reference's derivation; of a right answer the first false equation.

    A wrong or truncated rollout always has a wrong section: at last the one that is missing or unfinished.
    """
    if rollout.correct:
        return false_equation(rollout)
    texts, is_cut = section_texts(rollout), is_truncated(rollout)
    departure = first_departure(problem, texts, is_whole=not is_cut) if texts else None
    if departure is None:
        return Location(rollout_id=rollout.id, step=len(texts) + 1, reason="the solution is not finished.")
    return Location(rollout_id=rollout.id, step=departure.step, reason=departure.reason, is_guess=departure.is_guess)
