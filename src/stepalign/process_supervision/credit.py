"""Locator by credit (Eq. 4 of arXiv 2606.11173): the step whose tokens a context pushes down.

    [critic]
    kind = "locate-mend"
    locator = { kind = "credit", contexts = ["refsol"], threshold = -0.5 }

Student and teacher are the solver's own base, so the locator stays the same while the solver learns. A token's credit
is `probing.credit`'s. Left out: contexts that show a critique, or another rollout, because a critic has neither.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from statistics import fmean
from typing import Self

from stepalign import config
from stepalign.algorithms.teacher_prompt import limit_to_context
from stepalign.contexts import Context, load
from stepalign.critics.location import ScoredLocator, SectionScores, section_texts
from stepalign.critics.own_model import OwnModel
from stepalign.errors import StepalignError
from stepalign.probing.credit import CreditScorer
from stepalign.probing.folder import Probe
from stepalign.records import Credit, Problem, Rollout
from stepalign.trace import parse_rollout, step_spans

REDUCTIONS: dict[str, Callable[[Sequence[float]], float]] = {"lowest": min, "mean": fmean}
"""A step's score from its tokens' credit."""


class CreditLocator(ScoredLocator):
    """The solver's own base, as student and as teacher."""

    def __init__(self, settings: config.CreditLocatorConfig, own: Callable[[], OwnModel]) -> None:
        """Load the context. The model is loaded with the first attempt."""
        self._context, self._own = context_of(settings), own
        self.name, self.facts = f"{settings.reduction} credit, {self._context.name}", told(self._context)
        self.threshold, self._reduce = settings.threshold, REDUCTIONS[settings.reduction]

    @classmethod
    def from_config(
        cls, settings: config.CreditLocatorConfig, *, own: Callable[[], OwnModel] | None, **_: object
    ) -> Self:
        """Build the locator of a recipe."""
        if own is None:
            raise StepalignError("locator.kind = 'credit': no solver is loaded here that could score")
        return cls(settings, own)

    def score(self, attempts: Sequence[tuple[Problem, Rollout]]) -> Iterator[SectionScores]:
        """Yield the scores of each attempt, in order. Those whose teacher's prompt cannot be made have none."""
        own, credits = self._own(), dict[str, Credit]()
        size = len(own.chat.tokenizer)
        rollouts = [
            replace(rollout, prompt_ids=rollout.prompt_ids or own.chat.prompt_ids(own.prompt.turns(problem)))
            for problem, rollout in attempts
            if rollout.completion_ids and max(rollout.completion_ids) < size
        ]
        with own.base() as base:
            limits = limit_to_context(config.TeacherConfig(), own.context_limit)
            scorer = CreditScorer(base, own.chat, own.prompt.before, [self._context], base, limits)
            problems = {problem.id: problem for problem, _ in attempts}
            for batch in scorer.run(Probe(problems=tuple(problems.values()), rollouts=tuple(rollouts)), {}):
                credits |= {credit.rollout_id: credit for credit in batch}
        tokens = round(scorer.tokens / max(len(credits), 1))  # each rollout's share
        for _, rollout in attempts:
            if rollout.id in credits:
                yield SectionScores(self._scores(rollout, credits[rollout.id].values), tokens)
            else:
                reason = scorer.reasons.get((rollout.id, self._context.name), "no tokens of this model")
                yield SectionScores((), fault=f"no credit: {reason}.")

    def _scores(self, rollout: Rollout, credit: Sequence[float]) -> tuple[float, ...]:
        """Reduce the credit of each complete section's tokens to one score."""
        spans = step_spans(rollout, parse_rollout(rollout))[: len(section_texts(rollout))]
        return tuple(self._reduce(credit[first : max(stop, first + 1)]) for first, stop in spans)


def context_of(settings: config.CreditLocatorConfig) -> Context:
    """Load a critic's context.

    Raises:
        StepalignError: there are several, or one that shows what a critic does not have.
    """
    if len(settings.contexts) > 1:
        raise StepalignError("locator.contexts: a critic locates by one context, not by several")
    context = load(settings.contexts[0] if settings.contexts else "refsol")
    if context.needs_critique or context.needs_siblings:
        shown = "a critique" if context.needs_critique else "another rollout"
        raise StepalignError(f"locator.contexts: {context.name!r} shows {shown}, and a critic has none")
    return context


def told(context: Context) -> tuple[str, ...]:
    """Name what the teacher's text shows that a grader of steps would have to find out."""
    shown = {
        "grade": context.variables & {"correct", "feedback", "sibling"},
        "answer": context.variables & {"answer"},
        "solution": context.needs_solution,
        "critique": context.needs_critique,
    }
    return tuple(name for name, is_shown in shown.items() if is_shown)
