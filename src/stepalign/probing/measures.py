"""What credit says of a context design, each measure with its interval (`docs/probe.md` defines them).

Means are over tokens, pooled over rollouts: sums and counts are kept by problem, so that the bootstrap draws whole
problems, whose rollouts resemble each other. As a process reward, a step is worth the lowest credit of its tokens: an
error is one number, and a mean over the step would drown it in the words around it. Left out: other step scores, and a
threshold at which a rollout counts as free of errors.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Float

from stepalign.evaluation.credit_measures import CreditMeasures
from stepalign.evaluation.stats import Interval, interval, resample
from stepalign.probing.error_spans import Parts, parts
from stepalign.records import Credit, Mark, Rollout
from stepalign.seeding import derive_seed

RESAMPLES = 2000

Ratio = tuple[float, float]
"""A numerator and a denominator: what a rollout adds to a pooled mean or share."""


def measure(
    rollouts: Sequence[Rollout],
    marks: Iterable[Mark],
    credits: Iterable[Credit],
    *,
    seed: int,
    resamples: int = RESAMPLES,
) -> CreditMeasures:
    """Every measure of every context. Rollouts that are neither right nor marked count for `first_token` only."""
    marked = {mark.rollout_id: mark for mark in marks}
    split = {rollout.id: parts(rollout, marked.get(rollout.id)) for rollout in rollouts}
    of_context: dict[str, dict[str, Credit]] = defaultdict(dict)
    for credit in credits:
        of_context[credit.context][credit.rollout_id] = credit
    bootstrap = _Bootstrap(rollouts, split, derive_seed(seed, "bootstrap"), resamples)
    contexts = {}
    for context, found in of_context.items():
        ratios: dict[str, dict[str, Ratio]] = defaultdict(dict)
        for rollout in rollouts:
            if rollout.id in found:
                for name, ratio in _ratios(rollout, split[rollout.id], found[rollout.id].values).items():
                    ratios[name][rollout.id] = ratio
        contexts[context] = bootstrap.pooled(ratios) | bootstrap.rewards(
            {name: _step_scores(split[name], credit.values) for name, credit in found.items()}
        )
    baselines = {
        "chance": bootstrap.chance(),
        "length": bootstrap.rewards(
            {name: [float(start - stop) for start, stop in part.steps] for name, part in split.items()}
        ),
    }
    return CreditMeasures(contexts=contexts, baselines=baselines, resamples=resamples)


def of_rollout(rollout: Rollout, credit: Credit, mark: Mark | None) -> dict[str, float]:
    """One rollout's own measures under one context; what cannot be measured on it is not there."""
    part = parts(rollout, mark)
    ratios = _ratios(rollout, part, credit.values)
    found = {name: over / under for name, (over, under) in ratios.items() if under}
    if "at" in found and "rest" in found:
        found["contrast"] = found["rest"] - found["at"]
    scores = _step_scores(part, credit.values)
    if part.wrong_step is not None and len(scores) > 1:
        found["first_error"] = _hit(scores, part.wrong_step)
    return found


def _ratios(rollout: Rollout, part: Parts, values: Sequence[float]) -> dict[str, Ratio]:
    """What a rollout adds to each pooled measure."""
    found: dict[str, Ratio] = {}

    def add(name: str, chosen: Sequence[float]) -> None:
        if chosen:
            count = float(len(chosen))
            found[name] = (sum(chosen), count)
            found[f"{name}_negative"] = (float(sum(value < 0 for value in chosen)), count)

    if values:
        found["first_token"] = (values[0], 1.0)
    if part.error is None or part.wrong_step is None:
        if rollout.correct:
            add("correct", values)
        return found
    start, stop = part.error
    add("before", values[:start])
    add("at", values[start:stop])
    if part.departure is not None:
        add("departure", values[part.departure : part.departure + 1])
    add("after", values[stop:])
    add("rest", (*values[:start], *values[stop:]))
    wrong_from, wrong_to = part.steps[part.wrong_step - 1]
    blame = [-min(value, 0.0) for value in values[:wrong_to]]
    total = sum(blame)
    if wrong_from and total:
        found["diffuseness"] = (sum(blame[:wrong_from]), total)
    return found


def _step_scores(part: Parts, values: Sequence[float]) -> list[float]:
    return [min(values[start:stop], default=0.0) for start, stop in part.steps]


def _hit(scores: Sequence[float], wrong_step: int) -> float:
    """Whether the lowest score is the wrong step's; of several lowest, the share that it has."""
    lowest = [k for k, score in enumerate(scores, start=1) if score == min(scores)]
    return (wrong_step in lowest) / len(lowest)


class _Bootstrap:
    """Values and intervals over problems: all rollouts of a problem are drawn together, by every measure the same."""

    def __init__(self, rollouts: Sequence[Rollout], split: Mapping[str, Parts], seed: int, resamples: int) -> None:
        problems = {name: place for place, name in enumerate(sorted({rollout.problem_id for rollout in rollouts}))}
        self.problem = {rollout.id: problems[rollout.problem_id] for rollout in rollouts}
        self.right = {rollout.id for rollout in rollouts if rollout.correct}
        self.split = split
        # The first draw is every problem once: the value itself.
        self.counts = np.vstack([np.ones((1, len(problems))), resample(len(problems), resamples=resamples, seed=seed)])

    def pooled(self, ratios: Mapping[str, Mapping[str, Ratio]]) -> dict[str, Interval]:
        """Each measure as Σ numerators / Σ denominators, and how far `rest` is above `at`."""
        drawn = {name: self._drawn(of) for name, of in ratios.items()}
        found = {name: _estimate(values, len(ratios[name])) for name, values in drawn.items()}
        if "at" in drawn and "rest" in drawn:
            found["contrast"] = _estimate(drawn["rest"] - drawn["at"], len(ratios["at"]))
        return found

    def rewards(self, scores: Mapping[str, Sequence[float]]) -> dict[str, Interval]:
        """How well step scores find errors: `first_error` in marked rollouts, `auroc` over steps.

        A step counts for the AUROC if it is the marked one, before it, or in a correct rollout. What comes after an
        error is neither right nor wrong by itself.
        """
        hits: dict[str, Ratio] = {}
        values, wrong, problems, counted = [], [], [], set()
        for name, of_steps in scores.items():
            k = self.split[name].wrong_step
            if k is not None and len(of_steps) > 1:
                hits[name] = (_hit(of_steps, k), 1.0)
            if k is not None or name in self.right:
                counted.add(name)
                for step, score in enumerate(of_steps[:k], start=1):
                    values.append(score)
                    wrong.append(step == k)
                    problems.append(self.problem[name])
        found = {}
        if hits:
            found["first_error"] = _estimate(self._drawn(hits), len(hits))
        if any(wrong) and not all(wrong):
            area = _auroc(np.array(values), np.array(wrong), self.counts[:, problems])
            found["auroc"] = _estimate(area, len(counted))
        return found

    def chance(self) -> dict[str, Interval]:
        """What a guess would reach: one step of each marked rollout at random."""
        steps = {
            name: (1 / len(part.steps), 1.0)
            for name, part in self.split.items()
            if part.wrong_step is not None and len(part.steps) > 1
        }
        if not steps:
            return {}
        half = Interval(value=0.5, low=0.5, high=0.5, n=len(steps))
        return {"first_error": _estimate(self._drawn(steps), len(steps)), "auroc": half}

    def _drawn(self, ratios: Mapping[str, Ratio]) -> Float[np.ndarray, " draws"]:
        sums = np.zeros((self.counts.shape[1], 2))
        for name, ratio in ratios.items():
            sums[self.problem[name]] += ratio
        over, under = (self.counts @ sums).T
        with np.errstate(invalid="ignore"):
            quotient: Float[np.ndarray, " draws"] = over / under  # NaN where a draw has none of these rollouts
        return quotient


def _auroc(
    scores: Float[np.ndarray, " steps"], wrong: Bool[np.ndarray, " steps"], weights: Float[np.ndarray, "draws steps"]
) -> Float[np.ndarray, " draws"]:
    """The chance that a wrong step scores below a right one, ties half; a step counts as often as it is drawn."""
    order = np.argsort(scores, kind="stable")
    _, groups = np.unique(scores[order], return_index=True)
    bad = np.add.reduceat(weights[:, order] * wrong[order], groups, axis=1)
    good = np.add.reduceat(weights[:, order] * ~wrong[order], groups, axis=1)
    above = good.sum(axis=1, keepdims=True) - good.cumsum(axis=1)
    with np.errstate(invalid="ignore"):
        area: Float[np.ndarray, " draws"] = (bad * (above + good / 2)).sum(1) / (bad.sum(1) * good.sum(1))
    return area


def _estimate(drawn: Float[np.ndarray, " draws"], n: int) -> Interval:
    """The first draw as the value, the others' interval around it."""
    return interval(float(drawn[0]), drawn[1:], n=n)
