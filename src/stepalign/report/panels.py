"""What is drawn: the four curves of the paper's Figure 2, and the training's own."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from stepalign.evaluation.credit_measures import CreditMeasures
from stepalign.evaluation.metrics import Evaluation, Metric
from stepalign.report import display

FIGURE_2: tuple[Metric, ...] = ("avg", "maj", "pass", "length")

_TRAINING: tuple[tuple[str, "Unit", dict[str, str]], ...] = (
    ("Loss", "nats a token", {"loss": "loss", "kl": "KL(teacher‖student)"}),
    ("Entropy", "nats a token", {"entropy_student": "student", "entropy_teacher": "teacher"}),
    ("Agreement of teacher and student", "share", {"agreement": "same likeliest token"}),
    (
        "Training rollouts",
        "share",
        {"correct": "correct", "formatted": "well formatted", "truncated": "truncated"},
    ),
    ("Tokens that the clip holds", "share", {"clipped": "clipped"}),
)

_PROBE: tuple[tuple[str, "Unit", str], ...] = (
    ("Credit of correct rollouts", "nats a token", "correct"),
    ("Credit before the error", "nats a token", "before"),
    ("Credit at the error", "nats a token", "at"),
    ("First error found", "share", "first_error"),
)

Unit = Literal["share", "tokens", "nats a token"]


@dataclass(frozen=True)
class Curve:
    """One line of a panel."""

    label: str
    steps: tuple[float, ...]
    """Or what was spent by then, where the panel is over a cost."""
    values: tuple[float, ...]
    """NaN where a step has no value."""
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()
    """The interval's ends; empty for a line without one."""


@dataclass(frozen=True)
class Panel:
    """One set of axes."""

    title: str
    unit: Unit
    curves: tuple[Curve, ...]
    over: str = "optimizer step"


def of_evaluations(by_run: Mapping[str, Sequence[Evaluation]]) -> list[Panel]:
    """Figure 2: one panel a metric, one curve a run, all of one n. No panels where nothing was evaluated."""
    evaluated = {run: evaluations for run, evaluations in by_run.items() if evaluations}
    if not evaluated:
        return []
    n = next(iter(evaluated.values()))[0].n
    return [
        Panel(
            display.label(metric, n),
            "tokens" if metric == "length" else "share",
            tuple(_curve(run, metric, evaluations) for run, evaluations in evaluated.items()),
        )
        for metric in FIGURE_2
    ]


def of_training(steps: Sequence[Mapping[str, Any]]) -> list[Panel]:
    """The training's curves. What a condition does not measure (a teacher, a divergence) has none."""
    panels = []
    at = tuple(int(step["step"]) for step in steps)
    for title, unit, names in _TRAINING:
        curves = []
        for key, name in names.items():
            values = tuple(_number(step.get(key)) for step in steps)
            if not all(map(math.isnan, values)):
                curves.append(Curve(name, at, values))
        if curves:
            panels.append(Panel(title, unit, tuple(curves)))
    return panels


def of_probes(probes: Sequence[tuple[int, CreditMeasures]]) -> list[Panel]:
    """How the signal changes: one panel a measure, one curve a context. What was never measured has none."""
    panels = []
    for title, unit, name in _PROBE:
        curves = []
        for context in dict.fromkeys(context for _, measures in probes for context in measures.contexts):
            found = [(step, measures.contexts.get(context, {}).get(name)) for step, measures in probes]
            there = [(step, estimate) for step, estimate in found if estimate is not None]
            if there:
                curves.append(
                    Curve(
                        context,
                        steps=tuple(step for step, _ in there),
                        values=tuple(estimate.value for _, estimate in there),
                        low=tuple(estimate.low for _, estimate in there),
                        high=tuple(estimate.high for _, estimate in there),
                    )
                )
        if curves:
            panels.append(Panel(title, unit, tuple(curves)))
    return panels


def _curve(run: str, metric: Metric, evaluations: Sequence[Evaluation]) -> Curve:
    measures = [evaluation.measures[metric] for evaluation in evaluations]
    return Curve(
        run,
        steps=tuple(evaluation.step for evaluation in evaluations),
        values=tuple(measure.value for measure in measures),
        low=tuple(measure.low for measure in measures),
        high=tuple(measure.high for measure in measures),
    )


def _number(found: object) -> float:
    """A metric as a number that can be drawn; NaN, which leaves a gap, for what is missing or infinite."""
    return float(found) if isinstance(found, int | float) and math.isfinite(found) else math.nan
