"""Several locators in order: where the first ones find nothing or only guess, the next are asked; or they vote.

    [critic.locator]
    kind = "combined"
    locators = [{ kind = "derivation" }, { kind = "verdicts", threshold = -1.5 }]

The grade decides whether more than one is asked. A part whose server gives no answer leaves the whole without one: a
guess of another part would pass for the recipe's. Left out: weights of the voters, because the order decides between
equals.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Literal, Self

from stepalign import config
from stepalign.config.registry import build
from stepalign.critics.location import Location, ServedLocator, StepLocator
from stepalign.records import Problem, Rollout


class CombinedLocator:
    """Locators of which the earlier ones count more."""

    def __init__(self, locators: Sequence[StepLocator], rule: Literal["first", "vote"]) -> None:
        self._locators, self._rule = locators, rule
        self.name = f"{rule} of {', '.join(locator.name for locator in locators)}"
        self.told = tuple(dict.fromkeys(["grade", *(fact for locator in locators for fact in locator.told)]))

    @classmethod
    def from_config(cls, settings: config.CombinedLocatorConfig, **parts: object) -> Self:
        """Build the locator of a recipe."""
        return cls([build(one, **parts) for one in settings.locators], settings.rule)

    def check_servers(self) -> None:
        """Raise a StepalignError where no server of a served one works."""
        for locator in self._locators:
            if isinstance(locator, ServedLocator):
                locator.check_servers()

    def locate(self, attempts: Sequence[tuple[Problem, Rollout]]) -> Iterator[Location]:
        """Yield one location an attempt, in order. Of a right solution the first locator's."""
        found: dict[str, list[Location]] = {rollout.id: [] for _, rollout in attempts}
        for locator in self._locators:
            asked = [one for one in attempts if self._is_open(one[1], found[one[1].id])]
            for location in locator.locate(asked):
                found[location.rollout_id].append(location)
        for locations in found.values():
            yield replace(
                self._chosen(locations),
                scores=(),
                prompt_tokens=sum(one.prompt_tokens for one in locations),
                completion_tokens=sum(one.completion_tokens for one in locations),
            )

    def _is_open(self, rollout: Rollout, earlier: Sequence[Location]) -> bool:
        """Tell whether another locator is asked."""
        if not earlier:
            return True
        if earlier[-1].unanswered:
            return False
        return not rollout.correct and (self._rule == "vote" or all(map(_is_vague, earlier)))

    def _chosen(self, locations: Sequence[Location]) -> Location:
        """Choose among an attempt's locations; of equals the first. One without an answer is the last."""
        if locations[-1].unanswered:
            return locations[-1]
        named = [one for one in locations if one.step is not None]
        if self._rule == "vote":
            votes = Counter(one.step for one in named)
            return max(named, key=lambda one: votes[one.step], default=locations[0])
        return next((one for one in named if not one.is_guess), next(iter(named), locations[0]))


def _is_vague(location: Location) -> bool:
    return location.step is None or location.is_guess
