"""Avg@n, Maj@n, Pass@n, answer length, lines of programs, format accuracy and truncation rate, with intervals.

The four metrics of Table 1 and Figure 2 of "The Role of Feedback Alignment in Self-Distillation" (arXiv 2606.11173),
and three that explain them. Each is a mean over problems; shares are between 0 and 1. Pass@n is the unbiased estimator
of Chen et al. (arXiv 2107.03374, Eq. 1). Two adapters are compared on the same resampled problems, because an easy
problem is easy for both. With one seed a side, an interval tells nothing about seeds. Left out: choosing a checkpoint,
and a correction for many comparisons, because only the reader knows how many are looked at.
"""

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import numpy as np
from jaxtyping import Float
from pydantic import ConfigDict, Field, NonNegativeInt, PositiveInt
from pydantic.dataclasses import dataclass

from stepalign import trace as traces
from stepalign.arguments import checked
from stepalign.errors import StepalignError
from stepalign.evaluation.stats import Difference, Interval, bootstrap, paired_bootstrap
from stepalign.io import read_json, read_jsonl
from stepalign.notebook import html_table
from stepalign.records import Grade, Rollout, Text

Metric = Literal["avg", "maj", "pass", "length", "lines", "formatted", "truncated"]
METRICS: tuple[Metric, ...] = get_args(Metric)
OPTIONAL: tuple[Metric, ...] = ("lines",)
"""Metrics of some trace formats alone."""

_STRICT = ConfigDict(extra="forbid")


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class Evaluation:
    """Metrics of an adapter on a set of problems. One JSON file each."""

    step: Annotated[int, Field(ge=0)]
    """The optimizer step of the adapter; 0 is before training."""
    n: Annotated[int, Field(ge=1)]
    """The n of Avg@n, Maj@n and Pass@n."""
    problem_ids: Annotated[tuple[Text, ...], Field(min_length=1)]
    """Sorted."""
    measures: dict[Metric, Interval]
    """Every metric's mean over problems. `length` is in tokens; `lines`, of programs alone; all others are shares."""
    by_problem: dict[Metric, tuple[float, ...]]
    """Every metric's value for each problem, in the order of `problem_ids`."""
    ties: Annotated[int, Field(ge=0)]
    """Problems in which several answers have the most votes."""
    resamples: Annotated[int, Field(ge=1, le=1_000_000)]
    """Bootstrap resamples behind each interval."""
    seed: int = 0

    def __post_init__(self) -> None:
        present = self.measures.keys() & self.by_problem.keys()
        wanted = [metric for metric in METRICS if metric not in OPTIONAL or metric in self.measures | self.by_problem]
        if missing := [metric for metric in wanted if metric not in present]:
            raise ValueError(f"no measure of {', '.join(missing)}")
        for metric, values in self.by_problem.items():
            if len(values) != len(self.problem_ids):
                raise ValueError(f"{metric}: {len(values)} values for {len(self.problem_ids)} problems")

    @classmethod
    def of(
        cls, metrics: Sequence[Metric], values: Float[np.ndarray, "seeds problems metrics"], **fields: Any
    ) -> "Evaluation":
        """Average values over seeds and problems; the other fields are as given."""
        by_problem = values.mean(axis=0)
        intervals = bootstrap(values, resamples=fields["resamples"], seed=fields["seed"])
        return cls(
            measures=dict(zip(metrics, intervals, strict=True)),
            by_problem={metric: tuple(by_problem[:, k].tolist()) for k, metric in enumerate(metrics)},
            **fields,
        )

    def _repr_html_(self) -> str:
        """Return every metric with its interval for a notebook."""
        rows = [
            (f"{metric}@{self.n}" if metric in ("avg", "maj", "pass") else metric, f"{one:{spec}}")
            for metric, one in self.measures.items()
            for spec in (",.1f" if metric in ("length", "lines") else ".1%",)
        ]
        caption = f"step {self.step}: {len(self.problem_ids)} problems, {self.n} samples each"
        return html_table(["value and 95 % interval"], rows, caption)

    def values(self, metrics: Sequence[Metric]) -> Float[np.ndarray, "problems metrics"]:
        """Return each problem's values, problems sorted by id."""
        order = np.argsort(np.array(self.problem_ids, dtype=object))
        return np.array([self.by_problem[metric] for metric in metrics], dtype=np.float64).T[order]


def common_metrics(evaluations: Sequence[Evaluation]) -> list[Metric]:
    """Return the metrics that all of some evaluations have, in the order of `METRICS`."""
    return [metric for metric in METRICS if all(metric in evaluation.measures for evaluation in evaluations)]


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class CreditMeasures:
    """A probe's measures of credit (`docs/probe.md` defines each), with intervals over problems."""

    contexts: dict[str, dict[str, Interval]] = Field(default_factory=dict)
    """By the context's name, then the measure's. A measure that these rollouts do not allow is absent."""
    baselines: dict[str, dict[str, Interval]] = Field(default_factory=dict)
    """`chance` and `length`, for the measures of credit as a process reward."""
    resamples: int = 0
    """Bootstrap resamples behind each interval."""


def score(rollouts: Sequence[Rollout], *, n: int, resamples: int, seed: int, step: int) -> Evaluation:
    """Score graded rollouts, in any order, at least n of each problem.

    Of more than n samples, Maj@n takes the n with the lowest `sample` numbers; the other metrics use all.

    Raises:
        StepalignError: there are no rollouts, a rollout is not graded or occurs twice, or a problem has fewer than n
            samples; it names the rollout or problem.
    """
    by_problem = _by_problem(rollouts)
    parsed = {rollout.id: traces.parse_rollout(rollout) for rollout in rollouts}
    are_programs = all(trace.is_program for trace in parsed.values())
    metrics = [metric for metric in METRICS if metric != "lines" or are_programs]
    values, ties = np.empty((len(by_problem), len(metrics))), 0
    for row, (problem_id, samples) in enumerate(by_problem.items()):
        total = len(samples)
        if total < n:
            raise StepalignError(f"problem {problem_id!r}: {total} samples, but n = {n} needs at least {n} a problem")
        share, tied = majority([sample.grade for sample in samples[:n] if sample.grade])
        ties += tied
        correct = sum(sample.correct for sample in samples)
        problem: dict[Metric, float] = {
            "avg": correct / total,
            "maj": share,
            "pass": pass_at(n, samples=total, correct=correct),
            "length": sum(len(sample.completion_ids) for sample in samples) / total,
            "lines": sum(parsed[sample.id].num_lines for sample in samples) / total,
            "formatted": sum(parsed[sample.id].formatted for sample in samples) / total,
            "truncated": sum(sample.finish == "length" for sample in samples) / total,
        }
        values[row] = [problem[metric] for metric in metrics]
    return Evaluation.of(
        metrics, values[None], problem_ids=tuple(by_problem), n=n, ties=ties, resamples=resamples, seed=seed, step=step
    )


def majority(grades: Sequence[Grade]) -> tuple[float, bool]:
    """Return the expected share of right majority votes, and True for a tie.

    Votes are counted by `Grade.final_answer`. A missing answer does not vote; without any vote the majority is wrong.
    One of tied answers is taken at random, so the expected value is the share of them that are right. An answer is
    right if a sample with it was graded correct.
    """
    votes = Counter(grade.final_answer for grade in grades if grade.final_answer)
    right = {grade.final_answer for grade in grades if grade.correct}
    tied = [answer for answer, count in votes.items() if count == max(votes.values())]
    return (sum(answer in right for answer in tied) / len(tied) if tied else 0.0), len(tied) > 1


def pass_at(k: int, *, samples: int, correct: int) -> float:
    """Compute the chance of a correct one among k of m samples, c of them correct: 1 − C(m−c, k) / C(m, k)."""
    return 1 - math.comb(samples - correct, k) / math.comb(samples, k)


@checked
def compare(
    a: Evaluation | Sequence[Evaluation],
    b: Evaluation | Sequence[Evaluation],
    *,
    resamples: PositiveInt = 2000,
    seed: NonNegativeInt = 0,
    same_seeds: bool = False,
) -> dict[Metric, Difference]:
    """Estimate the differences b − a of two adapters or of several seeds of each, for every metric that all have.

    With `same_seeds`, the sides are the same runs, in the same order, at two steps.

    Raises:
        StepalignError: n or the problems differ.
    """
    sides = [[side] if isinstance(side, Evaluation) else list(side) for side in (a, b)]
    everyone = [*sides[0], *sides[1]]
    _assert_alike(everyone, "compared")
    metrics = common_metrics(everyone)
    first, second = (np.array([evaluation.values(metrics) for evaluation in side]) for side in sides)
    differences = paired_bootstrap(first, second, resamples=resamples, seed=seed, same_seeds=same_seeds)
    return dict(zip(metrics, differences, strict=True))


def pool(evaluations: Sequence[Evaluation], *, seed: int = 0) -> Evaluation:
    """Pool the seeds of one condition: means over seeds, intervals over seeds and problems.

    Raises:
        StepalignError: n or the problems differ.
    """
    _assert_alike(evaluations, "pooled")
    first, metrics = evaluations[0], common_metrics(evaluations)
    return Evaluation.of(
        metrics,
        np.array([evaluation.values(metrics) for evaluation in evaluations]),
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
        ids, other_ids = set(first.problem_ids), set(other.problem_ids)
        if ids != other_ids:
            sides = {"first": sorted(ids - other_ids), "second": sorted(other_ids - ids)}
            named = [
                f"{len(extra)} only in the {which}"
                + (f" ({', '.join(map(repr, extra[:3]))}{', …' if len(extra) > 3 else ''})" if extra else "")
                for which, extra in sides.items()
            ]
            raise StepalignError(f"evaluations on different problems cannot be {verb}: {'; '.join(named)}")


def read_evaluation(path: Path) -> Evaluation:
    """Read an evaluation (JSON), or score graded rollouts (JSONL) at their problems' least number of samples.

    Raises:
        StepalignError: the file is missing or malformed, or `score` refuses its rollouts.
    """
    if path.suffix != ".jsonl":
        return read_json(path, Evaluation)
    rollouts = read_jsonl(path, Rollout)
    n = min(Counter(rollout.problem_id for rollout in rollouts).values(), default=1)
    step = max((rollout.policy_step for rollout in rollouts), default=0)
    try:
        return score(rollouts, n=n, resamples=2000, seed=0, step=step)
    except StepalignError as error:
        raise StepalignError(f"{path}: {error}") from None


def _by_problem(rollouts: Sequence[Rollout]) -> dict[str, list[Rollout]]:
    """Group rollouts by problem, sorted by problem and sample."""
    if not rollouts:
        raise StepalignError("no rollouts to evaluate")
    by_problem: dict[str, list[Rollout]] = {}
    ids: set[str] = set()
    for rollout in sorted(rollouts, key=lambda rollout: (rollout.problem_id, rollout.sample, rollout.id)):
        if rollout.grade is None:
            raise StepalignError(f"rollout {rollout.id!r}: not graded")
        if rollout.id in ids:
            raise StepalignError(f"rollout {rollout.id!r}: occurs twice")
        ids.add(rollout.id)
        by_problem.setdefault(rollout.problem_id, []).append(rollout)
    return by_problem
