"""Measures of credit by context, each with its interval (`docs/probe.md` defines them).

Means are over tokens, pooled over rollouts. Sums and counts are kept by problem, because the bootstrap resamples whole
problems, whose rollouts resemble each other. As a process reward, a step scores the lowest credit of its tokens: an
error is one number, and a mean over the step would drown it in the words around it. Left out: other step scores; a
threshold below which a step counts as wrong.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Float, Int

from stepalign.evaluation.metrics import CreditMeasures
from stepalign.evaluation.stats import Interval, interval, resample
from stepalign.probing.error_spans import TokenRegions, token_regions
from stepalign.records import Credit, Mark, Rollout
from stepalign.seeding import derive_seed

RESAMPLES = 2000

DISTANCES = tuple(range(-7, 8))
"""Bins of tokens by their distance from the error, before it negative. Bins grow in powers of two."""

Ratio = tuple[float, float]
"""Numerator and denominator that a rollout adds to a pooled mean or share."""


def measure(
    rollouts: Sequence[Rollout],
    marks: Iterable[Mark],
    credits: Iterable[Credit],
    *,
    seed: int,
    resamples: int = RESAMPLES,
) -> CreditMeasures:
    """Compute every measure of every context.

    Rollouts that are neither correct nor marked count for `first_token` only.
    """
    bootstrap = _Bootstrap(rollouts, derive_seed(seed, "bootstrap"), resamples)
    regions = _regions(rollouts, marks)
    correct = {rollout.id for rollout in rollouts if rollout.correct}
    contexts = {}
    for context, by_rollout in _by_context(credits).items():
        ratios: dict[str, dict[str, Ratio]] = defaultdict(dict)
        for rollout in rollouts:
            if rollout.id in by_rollout:
                for name, ratio in _ratios(rollout, regions[rollout.id], by_rollout[rollout.id].values).items():
                    ratios[name][rollout.id] = ratio
        scores = {name: _step_scores(regions[name], credit.values) for name, credit in by_rollout.items()}
        contexts[context] = bootstrap.pooled(ratios) | bootstrap.step_rewards(scores, regions, correct)
    lengths = {name: [float(start - stop) for start, stop in region.steps] for name, region in regions.items()}
    chances = {
        name: (1 / len(region.steps), 1.0)
        for name, region in regions.items()
        if region.wrong_step is not None and len(region.steps) > 1
    }
    chance = bootstrap.pooled({"first_error": chances} if chances else {})
    if chances:
        chance["auroc"] = Interval(value=0.5, low=0.5, high=0.5, n=len(chances))
    return CreditMeasures(
        contexts=contexts,
        baselines={"chance": chance, "length": bootstrap.step_rewards(lengths, regions, correct)},
        resamples=resamples,
    )


def rollout_means(rollout: Rollout, credit: Credit, mark: Mark | None) -> dict[str, float]:
    """Compute one rollout's own means and shares under one context. Those that it does not allow are absent."""
    ratios = _ratios(rollout, token_regions(rollout, mark), credit.values)
    return {name: numerator / denominator for name, (numerator, denominator) in ratios.items()}


def credit_by_position(
    rollouts: Sequence[Rollout], marks: Iterable[Mark], credits: Iterable[Credit]
) -> dict[str, list[Interval | None]]:
    """Compute mean credit by distance from the error, as in the paper's Figure 4.

    Returns:
        For each context an interval for each of `DISTANCES`; None where no marked rollout has tokens there.
    """
    regions = _regions(rollouts, marks)
    bins = {
        rollout.id: _distances(error, len(rollout.completion_ids))
        for rollout in rollouts
        if (error := regions[rollout.id].error)
    }
    if not bins:
        return {}
    bootstrap = _Bootstrap([rollout for rollout in rollouts if rollout.id in bins], 0, RESAMPLES)
    contexts = {}
    for context, by_rollout in _by_context(credits).items():
        ratios: dict[str, dict[str, Ratio]] = defaultdict(dict)
        for name in bins.keys() & by_rollout.keys():
            values = np.asarray(by_rollout[name].values)
            for distance in np.unique(bins[name]):
                there = values[bins[name] == distance]
                ratios[str(distance)][name] = (float(there.sum()), float(len(there)))
        if ratios:
            by_distance = bootstrap.pooled(ratios)
            contexts[context] = [by_distance.get(str(distance)) for distance in DISTANCES]
    return contexts


def distance_label(distance: int) -> str:
    """Return the distance in tokens: `error`, `1`, `33–64`, on either side."""
    last = 2 ** (abs(distance) - 1) if distance else 0
    return "error" if last == 0 else str(last) if last <= 2 else f"{last // 2 + 1}–{last}"


def _by_context(credits: Iterable[Credit]) -> dict[str, dict[str, Credit]]:
    contexts: dict[str, dict[str, Credit]] = defaultdict(dict)
    for credit in credits:
        contexts[credit.context][credit.rollout_id] = credit
    return contexts


def _regions(rollouts: Sequence[Rollout], marks: Iterable[Mark]) -> dict[str, TokenRegions]:
    by_rollout = {mark.rollout_id: mark for mark in marks}
    return {rollout.id: token_regions(rollout, by_rollout.get(rollout.id)) for rollout in rollouts}


def _distances(error: tuple[int, int], tokens: int) -> Int[np.ndarray, " tokens"]:
    at = np.arange(tokens)
    distance = np.maximum(error[0] - at, at - error[1] + 1)
    bins = 1 + np.ceil(np.log2(np.maximum(distance, 1))).astype(int)
    return np.where(distance <= 0, 0, np.where(at < error[0], -bins, bins))


def _ratios(rollout: Rollout, region: TokenRegions, values: Sequence[float]) -> dict[str, Ratio]:
    ratios: dict[str, Ratio] = {}

    def add(name: str, credits: Sequence[float]) -> None:
        if credits:
            count = float(len(credits))
            ratios[name] = (sum(credits), count)
            ratios[f"{name}_negative"] = (float(sum(value < 0 for value in credits)), count)

    if values:
        ratios["first_token"] = (values[0], 1.0)
    if region.error is None or region.wrong_step is None:
        if rollout.correct:
            add("correct", values)
        return ratios
    start, stop = region.error
    add("before", values[:start])
    add("at", values[start:stop])
    if region.departure is not None:
        add("departure", values[region.departure : region.departure + 1])
    add("after", values[stop:])
    add("rest", (*values[:start], *values[stop:]))
    wrong_from, wrong_to = region.steps[region.wrong_step - 1]
    blame = [-min(value, 0.0) for value in values[:wrong_to]]
    if wrong_from and (total := sum(blame)):
        ratios["diffuseness"] = (sum(blame[:wrong_from]), total)
    return ratios


def _step_scores(region: TokenRegions, values: Sequence[float]) -> list[float]:
    return [min(values[start:stop], default=0.0) for start, stop in region.steps]


class _Bootstrap:
    """Resamples of problems, with all their rollouts. Every measure sees the same ones."""

    def __init__(self, rollouts: Sequence[Rollout], seed: int, resamples: int) -> None:
        problems = {name: index for index, name in enumerate(sorted({rollout.problem_id for rollout in rollouts}))}
        self.problem = {rollout.id: problems[rollout.problem_id] for rollout in rollouts}
        # The first row has every problem once: its statistic is the value itself.
        self.counts = np.vstack([np.ones((1, len(problems))), resample(len(problems), resamples=resamples, seed=seed)])

    def pooled(self, ratios: Mapping[str, Mapping[str, Ratio]]) -> dict[str, Interval]:
        """Divide sums of numerators by sums of denominators; `contrast` is `rest` minus `at`."""
        statistics = {name: self._quotients(by_rollout) for name, by_rollout in ratios.items()}
        intervals = {name: _interval(values, len(ratios[name])) for name, values in statistics.items()}
        if "at" in statistics and "rest" in statistics:
            intervals["contrast"] = _interval(statistics["rest"] - statistics["at"], len(ratios["at"]))
        return intervals

    def step_rewards(
        self, scores: Mapping[str, Sequence[float]], regions: Mapping[str, TokenRegions], correct: set[str]
    ) -> dict[str, Interval]:
        """Measure step scores as a process reward: `first_error` in marked rollouts, `auroc` over steps.

        A step counts for the AUROC if it is the marked one, precedes it, or is in a correct rollout. Steps after an
        error are neither right nor wrong by themselves.
        """
        hits: dict[str, Ratio] = {}
        values, wrong, problems, counted = [], [], [], set()
        for name, steps in scores.items():
            wrong_step = regions[name].wrong_step
            if wrong_step is not None and len(steps) > 1:
                # Of several lowest steps, the wrong one has its share.
                lowest = [step for step, score in enumerate(steps, start=1) if score == min(steps)]
                hits[name] = ((wrong_step in lowest) / len(lowest), 1.0)
            if wrong_step is not None or name in correct:
                counted.add(name)
                for step, score in enumerate(steps[:wrong_step], start=1):
                    values.append(score)
                    wrong.append(step == wrong_step)
                    problems.append(self.problem[name])
        intervals = self.pooled({"first_error": hits} if hits else {})
        if any(wrong) and not all(wrong):
            area = _auroc(np.array(values), np.array(wrong), self.counts[:, problems])
            intervals["auroc"] = _interval(area, len(counted))
        return intervals

    def _quotients(self, ratios: Mapping[str, Ratio]) -> Float[np.ndarray, " rows"]:
        sums = np.zeros((self.counts.shape[1], 2))
        for name, ratio in ratios.items():
            sums[self.problem[name]] += ratio
        numerators, denominators = (self.counts @ sums).T
        with np.errstate(invalid="ignore"):
            quotients: Float[np.ndarray, " rows"] = numerators / denominators  # NaN without any of these rollouts
        return quotients


def _auroc(
    scores: Float[np.ndarray, " steps"], wrong: Bool[np.ndarray, " steps"], weights: Float[np.ndarray, "rows steps"]
) -> Float[np.ndarray, " rows"]:
    """Compute the chance that a wrong step scores below a right one; ties count half."""
    order = np.argsort(scores, kind="stable")
    _, groups = np.unique(scores[order], return_index=True)
    bad = np.add.reduceat(weights[:, order] * wrong[order], groups, axis=1)
    good = np.add.reduceat(weights[:, order] * ~wrong[order], groups, axis=1)
    above = good.sum(axis=1, keepdims=True) - good.cumsum(axis=1)
    with np.errstate(invalid="ignore"):
        area: Float[np.ndarray, " rows"] = (bad * (above + good / 2)).sum(1) / (bad.sum(1) * good.sum(1))
    return area


def _interval(statistics: Float[np.ndarray, " rows"], n: int) -> Interval:
    return interval(float(statistics[0]), statistics[1:], n=n)
