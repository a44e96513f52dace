"""Measures of credit by context, each with its interval (`docs/probe.md` defines them).

Means are over tokens, pooled over rollouts. The bootstrap resamples whole problems, whose rollouts resemble each other.
As a process reward, a step scores the lowest credit of its tokens: an error is one number, and a mean over the step
would drown it. Left out: other step scores; a threshold below which a step counts as wrong.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float

from stepalign.evaluation import stats
from stepalign.evaluation.metrics import CreditMeasures
from stepalign.evaluation.stats import Interval
from stepalign.records import Credit, Mark, Rollout
from stepalign.seeding import derive_seed
from stepalign.trace import parse_rollout, step_spans, token_span

RESAMPLES = 2000

DISTANCES = tuple(range(-7, 8))
"""Bins of tokens by their distance from the error, before it negative. Bins grow in powers of two."""

Ratio = tuple[float, float]
"""Numerator and denominator that a rollout adds to a pooled mean or share."""


@dataclass(frozen=True)
class TokenRegions:
    """Half-open token ranges of a completion: its steps and its error."""

    steps: tuple[tuple[int, int], ...]
    """The steps and the final answer, as critiques count them. Tokens between two belong to the first."""
    is_program: bool = False
    """True if tokens in no step are prose around a program."""
    error: tuple[int, int] | None = None
    departure: int | None = None
    """The first wrong token, where it is known."""
    wrong_step: int | None = None
    """The step of `error`, counted from 1."""

    def step_of(self, position: int) -> int:
        """Return the step of a token; 0 in none."""
        return next((k for k, (start, stop) in enumerate(self.steps, start=1) if start <= position < stop), 0)

    def place_of(self, position: int) -> Literal["before", "at", "after", "prose", ""]:
        """Return a token's place relative to the error; empty without one. Text around a program is `prose`."""
        if self.is_program and not self.step_of(position):
            return "prose"
        start, stop = self.error or (0, 0)
        return "" if not self.error else "before" if position < start else "at" if position < stop else "after"


def token_regions(rollout: Rollout, mark: Mark | None) -> TokenRegions:
    """Divide a rollout's tokens. A token across a boundary belongs to the step that begins in it."""
    trace = parse_rollout(rollout)
    steps = step_spans(rollout, trace)
    if mark is None:
        return TokenRegions(steps, trace.is_program)
    departs = mark.departure
    departure = None if departs is None else token_span(rollout, departs, departs + 1)[0]
    error = token_span(rollout, mark.start, mark.end)
    return TokenRegions(steps, trace.is_program, error, departure, mark.step)


def regions_by_rollout(rollouts: Iterable[Rollout], marks: Iterable[Mark]) -> dict[str, TokenRegions]:
    """Divide the tokens of each rollout, by its id."""
    by_rollout = {mark.rollout_id: mark for mark in marks}
    return {rollout.id: token_regions(rollout, by_rollout.get(rollout.id)) for rollout in rollouts}


def measure(
    rollouts: Sequence[Rollout],
    marks: Iterable[Mark],
    credits: Iterable[Credit],
    *,
    seed: int,
    resamples: int = RESAMPLES,
) -> CreditMeasures:
    """Compute every measure of every context. A rollout neither correct nor marked counts for `first_token` only."""
    bootstrap = _Bootstrap(rollouts, derive_seed(seed, "bootstrap"), resamples)
    regions = regions_by_rollout(rollouts, marks)
    correct = {rollout.id for rollout in rollouts if rollout.correct}
    contexts = {}
    for context, values in _values_by_context(rollouts, credits).items():
        ratios: dict[str, dict[str, Ratio]] = defaultdict(dict)
        scores = {}
        for rollout_id, credit in values.items():
            for name, ratio in _ratios(rollout_id in correct, regions[rollout_id], credit).items():
                ratios[name][rollout_id] = ratio
            scores[rollout_id] = [min(credit[start:stop], default=0.0) for start, stop in regions[rollout_id].steps]
        contexts[context] = bootstrap.pooled(ratios) | bootstrap.step_rewards(scores, regions, correct)
    lengths = {name: [float(start - stop) for start, stop in region.steps] for name, region in regions.items()}
    chances = {
        name: (1 / len(region.steps), 1.0)
        for name, region in regions.items()
        if region.wrong_step is not None and len(region.steps) > 1
    }
    chance = bootstrap.pooled({"first_error": chances})
    if chances:
        chance["auroc"] = Interval(value=0.5, low=0.5, high=0.5, n=len(chances))
    length = bootstrap.step_rewards(lengths, regions, correct)
    return CreditMeasures(contexts=contexts, baselines={"chance": chance, "length": length}, resamples=resamples)


def rollout_means(rollout: Rollout, credit: Credit, mark: Mark | None) -> dict[str, float]:
    """Compute one rollout's own means and shares under one context. Those that it does not allow are absent."""
    ratios = _ratios(rollout.correct, token_regions(rollout, mark), credit.values)
    return {name: numerator / denominator for name, (numerator, denominator) in ratios.items()}


def credit_by_position(
    rollouts: Sequence[Rollout], marks: Iterable[Mark], credits: Iterable[Credit]
) -> dict[str, list[Interval | None]]:
    """Compute mean credit by distance from the error, as in the paper's Figure 4.

    Returns:
        For each context an interval for each of `DISTANCES`; None where no marked rollout has tokens there.
    """
    errors = {name: region.error for name, region in regions_by_rollout(rollouts, marks).items() if region.error}
    if not errors:
        return {}
    bootstrap = _Bootstrap([rollout for rollout in rollouts if rollout.id in errors], 0, RESAMPLES)
    contexts = {}
    for context, values in _values_by_context(rollouts, credits).items():
        ratios: dict[str, dict[str, Ratio]] = defaultdict(dict)
        for name, (start, stop) in errors.items():
            if name not in values:
                continue
            at = np.arange(len(values[name]))
            distance = np.maximum(start - at, at - stop + 1)
            bins = np.where(distance <= 0, 0, 1 + np.ceil(np.log2(np.maximum(distance, 1))).astype(int))
            bins[at < start] *= -1
            for place in np.unique(bins):
                there = np.asarray(values[name])[bins == place]
                ratios[str(place)][name] = (float(there.sum()), float(len(there)))
        if ratios:
            by_distance = bootstrap.pooled(ratios)
            contexts[context] = [by_distance.get(str(distance)) for distance in DISTANCES]
    return contexts


def distance_label(distance: int) -> str:
    """Return the distance in tokens: `error`, `1`, `33–64`, on either side."""
    last = 2 ** (abs(distance) - 1) if distance else 0
    return "error" if last == 0 else str(last) if last <= 2 else f"{last // 2 + 1}–{last}"


def _values_by_context(
    rollouts: Iterable[Rollout], credits: Iterable[Credit]
) -> dict[str, dict[str, tuple[float, ...]]]:
    """Return credit by context and rollout, in the order of the rollouts, and contrasts as contexts of their own."""
    contexts: dict[str, dict[str, tuple[float, ...]]] = defaultdict(dict)
    for credit in credits:
        contexts[credit.context][credit.rollout_id] = credit.values
        if credit.wrong:
            contexts[f"{credit.context} − wrong"][credit.rollout_id] = credit.contrast
    ids = [rollout.id for rollout in rollouts]
    return {context: {name: values[name] for name in ids if name in values} for context, values in contexts.items()}


def _ratios(correct: bool, region: TokenRegions, values: Sequence[float]) -> dict[str, Ratio]:
    parts: dict[str, Sequence[float]] = {}
    if region.error is not None and region.wrong_step is not None:
        start, stop = region.error
        parts = {"before": values[:start], "at": values[start:stop], "after": values[stop:]}
        if region.departure is not None:
            parts["departure"] = values[region.departure : region.departure + 1]
        parts["rest"] = (*parts["before"], *parts["after"])
    elif correct:
        parts["correct"] = values
    ratios = {"first_token": (values[0], 1.0)} if values else {}
    if region.is_program:
        ratios |= _by_place(region, values)
    for name, credit in parts.items():
        if credit:
            ratios[name] = (sum(credit), float(len(credit)))
            ratios[f"{name}_negative"] = (float(sum(value < 0 for value in credit)), float(len(credit)))
    if region.wrong_step is not None:
        wrong_from, wrong_to = region.steps[region.wrong_step - 1]
        blame = [-min(value, 0.0) for value in values[:wrong_to]]
        if wrong_from and (total := sum(blame)):
            ratios["diffuseness"] = (sum(blame[:wrong_from]), total)
    return ratios


def _by_place(region: TokenRegions, values: Sequence[float]) -> dict[str, Ratio]:
    """Divide a program's credit among wrong lines, right lines and prose: means, and shares of its magnitude."""
    places = {"wrong_lines": list[float](), "right_lines": list[float](), "prose": list[float]()}
    for position, value in enumerate(values):
        place = region.place_of(position)
        places[{"prose": "prose", "at": "wrong_lines"}.get(place, "right_lines")].append(value)
    names = places.keys() if region.error else {"prose"}
    total = sum(map(abs, values))
    ratios = {name: (sum(places[name]), float(len(places[name]))) for name in names if places[name]}
    return ratios | {f"{name}_share": (sum(map(abs, places[name])), total) for name in names if total}


class _Bootstrap:
    """Resamples of problems, with all their rollouts. Every measure sees the same ones."""

    def __init__(self, rollouts: Sequence[Rollout], seed: int, resamples: int) -> None:
        problems = {name: index for index, name in enumerate(sorted({rollout.problem_id for rollout in rollouts}))}
        self.problem = {rollout.id: problems[rollout.problem_id] for rollout in rollouts}
        # The first row has every problem once: its statistic is the value itself.
        resampled = stats.resample(len(problems), resamples=resamples, seed=seed)
        self.counts = np.vstack([np.ones((1, len(problems))), resampled])

    def pooled(self, ratios: Mapping[str, Mapping[str, Ratio]]) -> dict[str, Interval]:
        """Divide sums of numerators by sums of denominators; `contrast` is `rest` minus `at`."""
        statistics = {}
        for name, by_rollout in ratios.items():
            sums = np.zeros((self.counts.shape[1], 2))
            for rollout_id, ratio in by_rollout.items():
                sums[self.problem[rollout_id]] += ratio
            numerators, denominators = (self.counts @ sums).T
            with np.errstate(invalid="ignore"):  # NaN without any of these rollouts
                statistics[name] = numerators / denominators
        sizes = {name: len(by_rollout) for name, by_rollout in ratios.items()}
        if "at" in statistics and "rest" in statistics:
            statistics["contrast"], sizes["contrast"] = statistics["rest"] - statistics["at"], sizes["at"]
        return {name: _interval(values, sizes[name]) for name, values in statistics.items() if sizes[name]}

    def step_rewards(
        self, scores: Mapping[str, list[float]], regions: Mapping[str, TokenRegions], correct: set[str]
    ) -> dict[str, Interval]:
        """Measure step scores as a process reward: `first_error` in marked rollouts, `auroc` over steps.

        A step counts for the AUROC if it is the marked one, precedes it, or is in a correct rollout.
        """
        hits: dict[str, Ratio] = {}
        steps: list[tuple[float, bool, int]] = []
        counted = [name for name in scores if regions[name].wrong_step is not None or name in correct]
        for name in counted:
            own, wrong_step = scores[name], regions[name].wrong_step
            if wrong_step is not None and len(own) > 1:
                # Of several lowest steps, the wrong one has its share.
                hits[name] = ((own[wrong_step - 1] == min(own)) / own.count(min(own)), 1.0)
            steps += [(score, k == wrong_step, self.problem[name]) for k, score in enumerate(own[:wrong_step], start=1)]
        intervals = self.pooled({"first_error": hits})
        if len({is_wrong for _, is_wrong, _ in steps}) == 2:
            values, wrong, problems = map(np.array, zip(*steps, strict=True))
            intervals["auroc"] = _interval(_auroc(values, wrong, self.counts[:, problems]), len(counted))
        return intervals


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
    return stats.interval(float(statistics[0]), statistics[1:], n=n)
