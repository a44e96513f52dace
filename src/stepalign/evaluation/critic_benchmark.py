"""Benchmark of a critic: how often it finds the first wrong step (ProcessBench, arXiv 2412.06559, Section 3).

On a trace with an error the critic is right if it names the very first wrong step, on a trace without one if it finds
none. `F1` is the harmonic mean of the two accuracies, so that a critic that always complains, or never does, scores
badly. A failure is a miss. Of natural traces only the final answer's label is known: any error found in a wrong one is
a hit. Intervals are percentile bootstraps over problems, whose traces stay together. Unlike in ProcessBench, critics
are given the reference answer, so that they differ in the first error rather than on correct traces.

    stepalign critic-bench quickstart planted
"""

from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from stepalign.critics import stats
from stepalign.critics.stats import CriticReport, Prices
from stepalign.errors import StepalignError
from stepalign.evaluation.stats import Interval, interval, resample
from stepalign.io import read_jsonl
from stepalign.records import Critique, CritiqueFailure, PlantedSlip, Problem, Rollout

T = TypeVar("T")


@dataclass(frozen=True)
class PlantedTraces:
    """Traces of a folder that `stepalign plant` wrote."""

    problems: dict[str, Problem]
    pairs: list[tuple[PlantedSlip, Rollout, Rollout]]
    """Each slip, the trace that has it, and the correct trace that it came from."""
    natural: list[Rollout]

    @classmethod
    def read(cls, folder: Path, limit: int | None = None) -> "PlantedTraces":
        """Read at most `limit` slips, their correct traces, and as many natural solutions, evenly spaced.

        Raises:
            StepalignError: a file is missing or malformed, or a record names one that is not there.
        """
        rollouts = read_jsonl(folder / "rollouts.jsonl", Rollout)
        by_id = {rollout.id: rollout for rollout in rollouts}
        by_text = {(rollout.problem_id, rollout.text): rollout for rollout in rollouts}
        problems = {problem.id: problem for problem in read_jsonl(folder / "problems.jsonl", Problem)}
        slips = evenly_spaced(read_jsonl(folder / "slips.jsonl", PlantedSlip), limit)
        natural = evenly_spaced(read_jsonl(folder / "natural.jsonl", Rollout), limit)
        for slip in slips:
            if slip.rollout_id not in by_id or (slip.problem_id, slip.correct_text) not in by_text:
                where = f"{folder / 'slips.jsonl'}: rollout {slip.rollout_id!r}"
                raise StepalignError(f"{where}: it, or its correct solution, is not in {folder / 'rollouts.jsonl'}")
        for rollout in (*rollouts, *natural):
            if rollout.problem_id not in problems:
                name = "natural" if rollout in natural else "rollouts"
                where = f"{folder / name}.jsonl: rollout {rollout.id!r}"
                raise StepalignError(f"{where}: no problem {rollout.problem_id!r} in {folder / 'problems.jsonl'}")
        return cls(
            problems=problems,
            pairs=[(slip, by_id[slip.rollout_id], by_text[slip.problem_id, slip.correct_text]) for slip in slips],
            natural=natural,
        )

    @property
    def attempts(self) -> list[tuple[Problem, Rollout]]:
        """The traces to critique. A correct trace that is a natural solution as well comes once."""
        traces = [*(trace for _, *two in self.pairs for trace in two), *self.natural]
        return [(self.problems[trace.problem_id], trace) for trace in {trace.id: trace for trace in traces}.values()]


@dataclass(frozen=True, kw_only=True)
class CriticBenchmark:
    """Accuracy of a critic on traces whose first error is known, and on natural ones."""

    critic: str
    planted: dict[str, Interval]
    """`wrong`: first-error accuracy; `right`: accuracy on the correct traces; `F1`: their harmonic mean."""
    kinds: dict[str, Interval]
    """First-error accuracy by kind of slip."""
    natural: dict[str, Interval] = Field(default_factory=dict)
    """The same with labels by final answer only: a hit is any error in a wrong one."""
    answers: CriticReport
    seconds: float | None
    """Wall time of the critic; None where a second start went on with the results of a first."""


class Trial(NamedTuple):
    """One trace with or without an error (`wrong`), judged rightly (`hit`) or not."""

    problem_id: str
    wrong: bool
    hit: bool


def score(
    traces: PlantedTraces,
    results: Mapping[str, Critique | CritiqueFailure],
    *,
    critic: str,
    seconds: float | None,
    prices: Prices | None = None,
) -> CriticBenchmark:
    """Score a critic's results, given by rollout id."""
    kinds: dict[str, list[Trial]] = {}
    right, natural = [], []
    for slip, wrong_trace, right_trace in traces.pairs:
        hit = judged_step(results[wrong_trace.id], slip.step)
        kinds.setdefault(slip.kind, []).append(Trial(slip.problem_id, True, hit))
        right.append(Trial(slip.problem_id, False, judged_step(results[right_trace.id], None)))
    for trace in traces.natural:
        hit = judged_outcome(results[trace.id], wrong=not trace.correct)
        natural.append(Trial(trace.problem_id, not trace.correct, hit))
    return CriticBenchmark(
        critic=critic,
        planted=accuracies([*chain(*kinds.values()), *right]),
        kinds={kind: accuracies(trials)["wrong"] for kind, trials in sorted(kinds.items())},
        natural=accuracies(natural),
        answers=stats.summarize([results[trace.id] for _, trace in traces.attempts], prices),
        seconds=seconds,
    )


def table(benchmark: CriticBenchmark) -> str:
    """Format a benchmark as lines of text."""
    rows = [(f"planted, {name}", accuracy) for name, accuracy in benchmark.planted.items()]
    rows += [(f"planted, wrong: {kind}", accuracy) for kind, accuracy in benchmark.kinds.items()]
    rows += [(f"natural, {name}", accuracy) for name, accuracy in benchmark.natural.items()]
    lines = [f"{name:<32}{a.value:>7.1%}   [{a.low:.1%}, {a.high:.1%}]   n {a.n}" for name, a in rows]
    if benchmark.seconds is not None:
        lines.append(f"{'seconds':<32}{benchmark.seconds:>7.1f}")
    return "\n".join([*lines, "", stats.table(benchmark.answers)])


def judged_step(result: Critique | CritiqueFailure, first_error: int | None) -> bool:
    """Return whether a critic found exactly this first wrong step; None: no error."""
    return isinstance(result, Critique) and result.first_error == first_error


def judged_outcome(result: Critique | CritiqueFailure, *, wrong: bool) -> bool:
    """Return whether a critic found an error exactly where the final answer is wrong."""
    return isinstance(result, Critique) and (result.first_error is not None) == wrong


def accuracies(trials: Sequence[Trial], *, resamples: int = 2000, seed: int = 0) -> dict[str, Interval]:
    """Estimate `wrong`, `right` and `F1`, those of them that have traces."""
    if not trials:
        return {}
    rows = {name: row for row, name in enumerate(dict.fromkeys(trial.problem_id for trial in trials))}
    counts = np.zeros((len(rows), 4))  # hits and traces, of wrong and of right ones
    for trial in trials:
        column = 0 if trial.wrong else 2
        counts[rows[trial.problem_id], column : column + 2] += (trial.hit, 1)
    resampled = resample(len(counts), resamples=resamples, seed=seed) @ counts / len(counts)
    resampled = resampled[(resampled[:, [1, 3]] > 0).sum(axis=1) == (counts.sum(axis=0)[[1, 3]] > 0).sum()]
    means = np.concatenate([counts.mean(axis=0, keepdims=True), resampled])
    with np.errstate(invalid="ignore", divide="ignore"):
        wrong, right = means[:, 0] / means[:, 1], means[:, 2] / means[:, 3]
        f1 = np.where(wrong + right > 0, 2 * wrong * right / (wrong + right), 0.0)
    n_wrong, n_right = int(counts[:, 1].sum()), int(counts[:, 3].sum())
    n_f1 = n_wrong + n_right if n_wrong and n_right else 0
    return {
        name: interval(float(values[0]), values[1:], n=n)
        for name, values, n in (("wrong", wrong, n_wrong), ("right", right, n_right), ("F1", f1, n_f1))
        if n
    }


def evenly_spaced(records: Sequence[T], limit: int | None) -> list[T]:
    """Take at most `limit` records, evenly spaced; None takes all."""
    count = len(records) if limit is None else min(limit, len(records))
    return [records[place * len(records) // count] for place in range(count)]
