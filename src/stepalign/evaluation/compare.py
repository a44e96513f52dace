"""Comparison of evaluations: paired differences of two adapters, and several seeds pooled.

An easy problem is easy for both adapters. Resampling both on the same problems removes that common part from the
difference, so two adapters with overlapping intervals may still differ clearly. With several seeds a resample also
draws each side's seeds; with one seed a side, an interval tells nothing about seeds. Left out: a correction for many
comparisons, because only the reader knows how many are looked at.
"""

from collections.abc import Sequence

import numpy as np

from stepalign.errors import StepalignError
from stepalign.evaluation.metrics import METRICS, Evaluation, Metric
from stepalign.evaluation.stats import Difference, paired_bootstrap


def compare(
    a: Evaluation | Sequence[Evaluation], b: Evaluation | Sequence[Evaluation], *, resamples: int, seed: int
) -> dict[Metric, Difference]:
    """Estimate the differences b − a, metric by metric.

    Args:
        a: the first adapter's evaluation, or one for each of its seeds.
        b: the second's, on the same problems and with the same n.
        resamples: bootstrap resamples behind each interval.
        seed: the run's seed.

    Raises:
        StepalignError: n or the problems differ.
    """
    first, second = ([side] if isinstance(side, Evaluation) else list(side) for side in (a, b))
    _assert_alike([*first, *second], "compared")
    differences = paired_bootstrap(
        np.array([evaluation.values() for evaluation in first]),
        np.array([evaluation.values() for evaluation in second]),
        resamples=resamples,
        seed=seed,
    )
    return dict(zip(METRICS, differences, strict=True))


def pool(evaluations: Sequence[Evaluation], *, seed: int = 0) -> Evaluation:
    """Pool the seeds of one condition: means over seeds, intervals over seeds and problems.

    Raises:
        StepalignError: n or the problems differ.
    """
    _assert_alike(evaluations, "pooled")
    first = evaluations[0]
    return Evaluation.of(
        np.array([evaluation.values() for evaluation in evaluations]),
        problem_ids=tuple(sorted(first.problem_ids)),
        n=first.n,
        ties=sum(evaluation.ties for evaluation in evaluations),
        resamples=first.resamples,
        seed=seed,
        step=first.step,
    )


def _assert_alike(evaluations: Sequence[Evaluation], verb: str) -> None:
    first = evaluations[0]
    for other in evaluations[1:]:
        if first.n != other.n:
            raise StepalignError(f"evaluations with n = {first.n} and n = {other.n} cannot be {verb}")
        if set(first.problem_ids) != set(other.problem_ids):
            raise StepalignError(
                f"evaluations on different problems cannot be {verb}: {_only_in(first, other, 'first')}; "
                f"{_only_in(other, first, 'second')}"
            )


def _only_in(a: Evaluation, b: Evaluation, which: str) -> str:
    extra = sorted(set(a.problem_ids) - set(b.problem_ids))
    named = ", ".join(map(repr, extra[:3])) + (", …" if len(extra) > 3 else "")
    return f"{len(extra)} only in the {which}" + (f" ({named})" if extra else "")
