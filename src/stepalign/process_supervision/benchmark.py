"""ProcessBench's measures of a locator (arXiv 2412.06559, Section 3), with intervals over problems.

`wrong` is the share of erroneous traces whose first wrong step is found, `right` the share of correct ones in which no
error is found, `F1` their harmonic mean. `first error` is the share of erroneous traces whose worst step is the first
wrong one, where the locator is told that there is one. A missing answer is a miss.

A threshold is chosen without a trace's own label: problems fall into two halves, and each half is decided with the
threshold of the highest F1 on the other. Intervals do not include the choice's own scatter.
"""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from itertools import accumulate

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from stepalign.evaluation.critic_benchmark import Trial, accuracies
from stepalign.evaluation.stats import Interval, pooled_mean
from stepalign.process_supervision.locators import Finding, Located, Rule
from stepalign.process_supervision.traces import LabelledTrace, LabelledTraces
from stepalign.seeding import derive_seed


@dataclass(frozen=True, kw_only=True)
class LocatorScore:
    """One locator's accuracy under one rule."""

    name: str
    rule: str
    """The rule that turned scores into a step; empty where the locator decides itself."""
    told: tuple[str, ...]
    """Facts that locator and rule were told: `grade`, `answer`, `solution`, `critique`; empty for none."""
    accuracies: dict[str, Interval]
    """`wrong`, `right`, `F1`, and for scores `first error`."""
    missing: int = 0
    """Traces without an answer of the locator, each a miss."""
    thresholds: tuple[float, ...] = ()
    """The threshold of each half of the problems."""


@dataclass(frozen=True, kw_only=True)
class ProcessBenchmark:
    """Accuracy of locators on human labels."""

    traces: int
    wrong: int
    """Traces with a wrong step."""
    answer_known: int
    """Traces whose problem has a known answer; locators that need one are asked for these only."""
    dropped: dict[str, int] = Field(default_factory=dict)
    """Solutions left out, by reason."""
    chance: Interval | None
    """`first error` of a step drawn at random; None without a wrong step."""
    scores: tuple[LocatorScore, ...]
    tokens: int
    seconds: float | None
    """Wall time of the locator; None where a second start went on with the results of a first."""


def score(traces: LabelledTraces, located: Located, *, seed: int) -> ProcessBenchmark:
    """Score a locator's findings."""
    scores = []
    for finding in located.findings:
        for rule in finding.rules or (None,):
            scores.append(_score(finding, rule, seed))
    by_chance = [
        (trace.problem.id, 1 / len(trace.spans))
        for trace in located.findings[0].traces
        if trace.first_error is not None
    ]
    return ProcessBenchmark(
        traces=len(traces.traces),
        wrong=sum(trace.first_error is not None for trace in traces.traces),
        answer_known=len(traces.with_answer),
        dropped=dict(traces.dropped),
        chance=pooled_mean(by_chance) if by_chance else None,
        scores=tuple(scores),
        tokens=located.tokens,
        seconds=None if located.seconds is None else round(located.seconds, 1),
    )


def table(benchmark: ProcessBenchmark) -> str:
    """Format a benchmark as lines of text."""
    cost = "" if benchmark.seconds is None else f", {benchmark.seconds:,.1f} s"
    chance = "" if benchmark.chance is None else f"; first error by chance {benchmark.chance:.1%}"
    lines = [
        f"{benchmark.traces} traces, {benchmark.wrong} with a wrong step; answer known of {benchmark.answer_known}"
        + "".join(f"; left out {count}: {reason}" for reason, count in benchmark.dropped.items()),
        f"{benchmark.tokens:,} tokens{cost}{chance}",
    ]
    for one in benchmark.scores:
        thresholds = ", ".join(f"{threshold:.3g}" for threshold in one.thresholds)
        lines += [
            "",
            one.name + (f"; {one.rule}" if one.rule else "") + (f" ({thresholds})" if thresholds else ""),
            f"  told: {', '.join(one.told) or 'nothing'}" + (f"; no answer: {one.missing}" if one.missing else ""),
            *(f"  {name:<12}{value:.1%}   n {value.n}" for name, value in one.accuracies.items()),
        ]
    return "\n".join(lines)


def decide(scores: Sequence[float], rule: Rule, *, correct: bool, threshold: float = 0.0) -> int | None:
    """Turn the scores of a trace's steps into its first wrong step; None for no error.

    Args:
        scores: of the steps in their order; the lower the worse.
        rule: the first of equally low steps counts as the lowest.
        correct: the grade, for the rule that knows it.
        threshold: steps below it are wrong, for the rules that have one.
    """
    order = range(len(scores))
    lowest = min(order, key=scores.__getitem__)
    if rule.wrong == "both":
        return None if correct else next((k for k in order if scores[k] < threshold), lowest) + 1
    for k in [lowest] if rule.step == "lowest" else order:
        if {"grade": not correct, "zero": scores[k] <= 0, "threshold": scores[k] < threshold}[rule.wrong]:
            return k + 1
    return None


def _score(finding: Finding, rule: Rule | None, seed: int) -> LocatorScore:
    steps: Mapping[str, int | None] = finding.steps
    thresholds: tuple[float, ...] = ()
    scored = [trace for trace in finding.traces if trace.rollout.id in finding.scores]
    if rule is not None:
        halves = [[t for t in scored if derive_seed(seed, "half", t.problem.id) % 2 == half] for half in (0, 1)]
        if rule.has_threshold:
            thresholds = tuple(best_threshold(finding, rule, halves[1 - half]) for half in (0, 1))
        steps = {
            trace.rollout.id: decide(
                finding.scores[trace.rollout.id],
                rule,
                correct=trace.rollout.correct,
                threshold=thresholds[half] if thresholds else 0.0,
            )
            for half in (0, 1)
            for trace in halves[half]
        }
    found = accuracies(
        [Trial(trace.problem.id, trace.first_error is not None, _is_hit(trace, steps)) for trace in finding.traces]
    )
    erroneous = [
        (trace.problem.id, float(np.argmin(finding.scores[trace.rollout.id]) + 1 == trace.first_error))
        for trace in scored
        if trace.first_error is not None
    ]
    if rule is not None and erroneous:
        found["first error"] = pooled_mean(erroneous)
    told = dict.fromkeys((*(("grade",) if rule and rule.knows_grade else ()), *finding.told))
    return LocatorScore(
        name=finding.name,
        rule=str(rule or ""),
        told=tuple(told),
        accuracies=found,
        missing=sum(trace.rollout.id not in steps for trace in finding.traces),
        thresholds=thresholds,
    )


def best_threshold(finding: Finding, rule: Rule, traces: Sequence[LabelledTrace]) -> float:
    """Return the threshold with the highest F1 on some traces, the lowest of equals; 0 without traces."""
    values = sorted({value for trace in traces for value in finding.scores[trace.rollout.id]})
    candidates = [*values, values[-1] + 1.0] if values else [0.0]
    changes, totals = np.zeros((len(candidates), 2)), np.zeros(2)
    for trace in traces:
        scores, label = finding.scores[trace.rollout.id], trace.first_error
        # The decision is another one only behind a new lowest score.
        places = [0, *sorted({bisect_right(candidates, lowest) for lowest in accumulate(scores, min)})]
        hits = [
            decide(scores, rule, correct=trace.rollout.correct, threshold=candidates[place]) == label
            for place in places
        ]
        changes[places, int(label is None)] += np.diff([0, *hits])
        totals[int(label is None)] += 1
    wrong, right = (changes.cumsum(axis=0) / np.maximum(totals, 1)).T
    f1 = 2 * wrong * right / np.where(wrong + right, wrong + right, 1)
    return candidates[int(np.argmax(f1))]


def _is_hit(trace: LabelledTrace, steps: Mapping[str, int | None]) -> bool:
    return trace.rollout.id in steps and steps[trace.rollout.id] == trace.first_error
