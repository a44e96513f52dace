"""The context of each rollout of a step: the recipe's, the fallback's, or none and the reason."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from stepalign import config, contexts
from stepalign.config import registry
from stepalign.contexts import ContextInput, others
from stepalign.errors import StepalignError
from stepalign.records import CriticResult, Critique, CritiqueFailure, Problem, Rollout

NOTHING_TO_SHOW = "nothing to show"
"""The beginning of the reason for a masked rollout: its context shows nothing, or renders to an empty message."""


@dataclass(frozen=True, kw_only=True)
class ChosenContext:
    """Context of one rollout, with its source."""

    context: contexts.Context
    source: ContextInput
    critique: Critique | None
    """The rollout's own, also where another is shown."""
    is_fallback: bool = False


class TeacherContext:
    """The recipe's context and its fallback."""

    def __init__(
        self,
        settings: config.ContextConfig,
        critic: config.CriticConfig | None,
        *,
        num_generations: int,
        critique_for: str = "",
    ) -> None:
        """Load both templates and check that they fit the recipe.

        Args:
            settings: the recipe's `[context]`.
            critic: the recipe's critic, where it has one.
            num_generations: rollouts of each problem.
            critique_for: the key and value that need a critique beside the context, where there is one.

        Raises:
            StepalignError: the context shows what the recipe does not make.
        """
        self.context, self.shuffled, self.critic = registry.build(settings), settings.shuffled, critic
        self.needs_critique = self.context.needs_critique or bool(critique_for)
        if self.needs_critique and critic is None:
            reason = (
                f"{settings} shows a critique"
                if self.context.needs_critique
                else f"{critique_for} needs a critique with the first error"
            )
            raise StepalignError(f"{reason}, but the recipe has no [critic]")
        self.fallback: contexts.Context | None = None
        if self.needs_critique and critic is not None and "refsol" in critic.fallbacks:
            self.fallback = contexts.load(settings.fallback_template)
            if self.fallback.needs_critique:
                raise StepalignError(
                    f"context.fallback_template = {self.fallback.name!r} shows a critique, but replaces a missing one"
                )
        for context in self._both():
            if context.needs_siblings and num_generations == 1:
                raise StepalignError(
                    f"context {context.name!r} shows another rollout of the problem, but training.num_generations = 1: "
                    "set 2 or more"
                )
        self.one_by_one = not self.shuffled and not any(context.needs_siblings for context in self._both())
        """True where a rollout's context follows from it and its own critique alone."""

    @classmethod
    def of(cls, recipe: config.Recipe, *, critique_for: str = "") -> "TeacherContext":
        """Build the context of a recipe."""
        return cls(
            recipe.context,
            recipe.critic,
            num_generations=recipe.training.num_generations,
            critique_for=critique_for,
        )

    def _both(self) -> list[contexts.Context]:
        return [context for context in (self.context, self.fallback) if context]

    def check_problems(self, problems: Sequence[Problem]) -> None:
        """Raise a StepalignError where a context shows a reference solution and problems have none."""
        contexts.check_solutions(self.context, problems)
        if self.fallback and self.critic:
            keys = ", ".join(f"{key} = 'refsol'" for key in self.critic.keys_of("refsol"))
            reason = f": {keys} shows it in place of a critique; 'drop' is allowed"
            contexts.check_solutions(self.fallback, problems, reason=reason)

    def choose(
        self, rollouts: Sequence[Rollout], problems: Mapping[str, Problem], critiques: Mapping[str, CriticResult]
    ) -> Iterator[tuple[Rollout, ChosenContext | str]]:
        """Yield each rollout with its context, or with the reason why it has none.

        The reason is empty where the critic's failure names it.

        Args:
            rollouts: graded, of one step; whole groups unless `one_by_one`.
            problems: the step's, by id.
            critiques: by rollout id; empty where no critique is needed.
        """
        others_critiques = _critiques_of_other_problems(rollouts, critiques) if self.shuffled else {}
        groups, demonstrations = others.groups(rollouts), others.demonstrations(list(problems.values()))
        for rollout in rollouts:
            result = critiques.get(rollout.id)
            critique = result if isinstance(result, Critique) else None
            context, is_fallback = self.context, critique is None and self.needs_critique
            if is_fallback:
                if self.fallback is None or self._fallback_of(result) == "drop":
                    yield rollout, ""
                    continue
                context = self.fallback
            elif self.shuffled and rollout.id not in others_critiques:
                yield rollout, "no other problem's critique"
                continue
            source = ContextInput(
                problem=problems[rollout.problem_id],
                rollout=rollout,
                critique=others_critiques.get(rollout.id, critique),
                sibling=others.successful_sibling(rollout, groups[rollout.problem_id]),
                demonstration=demonstrations.get(rollout.problem_id),
            )
            chosen = ChosenContext(context=context, source=source, critique=critique, is_fallback=is_fallback)
            missing = context.missing(source)
            yield rollout, f"{NOTHING_TO_SHOW}: {missing}" if missing else chosen

    def _fallback_of(self, result: CriticResult | None) -> config.Fallback:
        """Return the failure's own fallback, else the critic's `on_failure`."""
        assert self.critic is not None
        own = result.fallback if isinstance(result, CritiqueFailure) else None
        return own or self.critic.on_failure


def count_critiques(results: Sequence[CriticResult | None]) -> tuple[Counter[str], Counter[str]]:
    """Count the cases of critiques and the reasons of failures."""
    cases = Counter[str](result.case for result in results if isinstance(result, Critique))
    return cases, Counter(result.reason for result in results if isinstance(result, CritiqueFailure))


def _critiques_of_other_problems(
    rollouts: Sequence[Rollout], critiques: Mapping[str, CriticResult]
) -> dict[str, Critique]:
    """Map each rollout to the next critique, cyclically, of another problem."""
    results = [(rollout.problem_id, critiques.get(rollout.id)) for rollout in rollouts]
    others = {}
    for place, rollout in enumerate(rollouts):
        for problem_id, result in (*results[place + 1 :], *results[:place]):
            if problem_id != rollout.problem_id and isinstance(result, Critique):
                others[rollout.id] = result
                break
    return others
