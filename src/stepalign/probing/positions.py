"""Mean credit by distance from the error, with intervals: Figure 4 of the paper for a whole set of rollouts.

Distances are counted in tokens and binned in powers of two, so that the tokens next to the error stand alone. As
the measures are, a bin's mean is pooled over tokens, and its interval over problems.
"""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from stepalign.evaluation.stats import Interval, interval, resample
from stepalign.probing.error_spans import parts
from stepalign.probing.folder import Probe

EDGES = (1, 2, 3, 5, 9, 17, 33, 65)
"""Where bins begin, in tokens from the error: 1, 2, 3–4, 5–8, … 33–64."""

RESAMPLES = 1000


@dataclass(frozen=True)
class Bin:
    """Some distances from the error: before it below zero, at it zero, after it above."""

    first: int
    last: int

    @property
    def label(self) -> str:
        """`33–64`, `1`, `error`: how far away, on whichever side."""
        near, far = sorted((abs(self.first), abs(self.last)))
        return "error" if far == 0 else str(near) if near == far else f"{near}–{far}"


_AFTER = tuple(Bin(start, stop - 1) for start, stop in pairwise(EDGES))
BINS = (*(Bin(-one.last, -one.first) for one in reversed(_AFTER)), Bin(0, 0), *_AFTER)


def by_position(probe: Probe, *, seed: int = 0) -> dict[str, list[Interval | None]]:
    """For each context an estimate for each of `BINS`; None where no marked rollout has tokens there."""
    marks = {mark.rollout_id: mark for mark in probe.marks}
    marked = {rollout.id: rollout for rollout in probe.rollouts if rollout.id in marks}
    problems = {name: place for place, name in enumerate(sorted({one.problem_id for one in marked.values()}))}
    if not problems:
        return {}
    bin_of = {
        name: _bins(parts(rollout, marks[name]).error, len(rollout.completion_ids)) for name, rollout in marked.items()
    }
    counts = np.vstack([np.ones((1, len(problems))), resample(len(problems), resamples=RESAMPLES, seed=seed)])
    found = {}
    for context in probe.contexts:
        sums, rollouts = np.zeros((2, len(problems), len(BINS))), np.zeros(len(BINS), dtype=int)
        for credit in probe.credits:
            if credit.context != context or credit.rollout_id not in marked:
                continue
            place, bins = problems[marked[credit.rollout_id].problem_id], bin_of[credit.rollout_id]
            inside = bins >= 0
            np.add.at(sums[0, place], bins[inside], np.asarray(credit.values)[inside])
            np.add.at(sums[1, place], bins[inside], 1.0)
            rollouts[np.unique(bins[inside])] += 1
        with np.errstate(invalid="ignore"):
            means = (counts @ sums[0]) / (counts @ sums[1])
        found[context] = [_estimate(means[:, k], int(rollouts[k])) for k in range(len(BINS))]
    return found


def _bins(error: tuple[int, int] | None, tokens: int) -> np.ndarray:
    """Each token's bin; −1 for what is further away than any."""
    start, stop = error or (0, 0)
    at = np.arange(tokens)
    distance = np.where(at < start, at - start, np.where(at < stop, 0, at - stop + 1))
    bins = np.full(tokens, -1)
    for k, one in enumerate(BINS):
        bins[(one.first <= distance) & (distance <= one.last)] = k
    return bins


def _estimate(means: np.ndarray, n: int) -> Interval | None:
    return interval(float(means[0]), means[1:], n=n) if n else None
