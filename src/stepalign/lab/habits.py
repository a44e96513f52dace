"""What attempts at the lab's sums do: whether they take the right numbers, how often they slip, and whether they mend.

Avg alone does not say what a condition taught. An attempt is right if it takes the numbers of a derivation and leaves
no slip unmended, so its failures are of two kinds.
"""

from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np

from stepalign.evaluation.stats import Interval, interval, resample
from stepalign.lab.solving import Reading, read
from stepalign.records import Problem, Rollout

HABITS = {
    "on the way": "takes a derivation's numbers",
    "slipped": "results slipped",
    "left": "results left wrong",
}
"""Shares: of attempts, of an attempt's results, of its results."""


def habits(
    rollouts: Sequence[Rollout], problems: Mapping[str, Problem], *, resamples: int, seed: int
) -> dict[str, Interval]:
    """The habits of some attempts, with 95 % intervals over problems.

    Args:
        rollouts: as many of each problem.
        problems: by id; sums, with their terms in `meta`.
        resamples: behind each interval.
        seed: of the resampling.
    """
    by_problem: dict[str, list[Reading]] = {}
    for one in rollouts:
        terms = cast(list[int], problems[one.problem_id].meta["terms"])
        by_problem.setdefault(one.problem_id, []).append(read(one.text, terms))

    counts = resample(len(by_problem), resamples=resamples, seed=seed)

    def share(of: Any) -> Interval:
        values = np.array([np.mean([of(reading) for reading in readings]) for readings in by_problem.values()])
        return interval(float(values.mean()), counts @ values / len(values), n=len(rollouts))

    return {
        "on the way": share(lambda reading: float(reading.on_the_way)),
        "slipped": share(lambda reading: reading.slips / max(reading.equations, 1)),
        "left": share(lambda reading: reading.unmended / max(reading.equations, 1)),
    }


def shown(share: Interval) -> str:
    """A share as a table's cell."""
    return f"{share.value:.0%} [{share.low:.0%}, {share.high:.0%}]"
