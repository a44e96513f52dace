"""Panels of the pages' figures: the paper's Figure 2, the training's curves, the probe's credit."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from stepalign.evaluation.metrics import CreditMeasures, Evaluation, Metric
from stepalign.evaluation.stats import Interval
from stepalign.report import display

FIGURE_2: tuple[Metric, ...] = ("avg", "maj", "pass", "length")

Unit = Literal["share", "tokens", "nats a token"]

_TRAINING: tuple[tuple[str, Unit, dict[str, str]], ...] = (
    ("Loss", "nats a token", {"loss": "loss", "kl": "KL(teacher‖student)"}),
    ("Entropy", "nats a token", {"entropy_student": "student", "entropy_teacher": "teacher"}),
    ("Agreement of teacher and student", "share", {"agreement": "same likeliest token"}),
    ("Training rollouts", "share", {"correct": "correct", "formatted": "well formatted", "truncated": "truncated"}),
    ("Clipped tokens", "share", {"clipped": "clipped"}),
)

_PROBE: tuple[tuple[str, Unit, str], ...] = (
    ("Credit of correct rollouts", "nats a token", "correct"),
    ("Credit before the error", "nats a token", "before"),
    ("Credit at the error", "nats a token", "at"),
    ("First error found", "share", "first_error"),
)


@dataclass(frozen=True)
class Curve:
    """One line of a panel."""

    label: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    """NaN leaves a gap."""
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()
    """Ends of the intervals; empty for a line without."""

    @classmethod
    def of(cls, label: str, intervals: Sequence[tuple[float, Interval]]) -> "Curve":
        """Make a curve of intervals by their place on the x axis."""
        x, y, low, high = zip(*((at, i.value, i.low, i.high) for at, i in intervals), strict=True)
        return cls(label, x, y, low, high)


@dataclass(frozen=True)
class Panel:
    """One set of axes."""

    title: str
    unit: Unit
    curves: tuple[Curve, ...]
    x_label: str = "optimizer step"


def evaluation_panels(by_run: Mapping[str, Sequence[Evaluation]]) -> list[Panel]:
    """Make Figure 2: one panel a metric, one curve a run, all of one n. Runs without evaluations have no curve."""
    evaluated = {run: evaluations for run, evaluations in by_run.items() if evaluations}
    if not evaluated:
        return []
    n = next(iter(evaluated.values()))[0].n
    return [
        Panel(
            display.label(metric, n),
            "tokens" if metric == "length" else "share",
            tuple(
                Curve.of(run, [(evaluation.step, evaluation.measures[metric]) for evaluation in evaluations])
                for run, evaluations in evaluated.items()
            ),
        )
        for metric in FIGURE_2
    ]


def training_panels(steps: Sequence[Mapping[str, Any]]) -> list[Panel]:
    """Make the training's panels. A metric that the algorithm does not have has no curve."""
    x = tuple(int(step["step"]) for step in steps)
    panels = []
    for title, unit, labels in _TRAINING:
        curves = [Curve(label, x, tuple(_finite(step.get(key)) for step in steps)) for key, label in labels.items()]
        curves = [curve for curve in curves if not all(map(math.isnan, curve.y))]
        if curves:
            panels.append(Panel(title, unit, tuple(curves)))
    return panels


def probe_panels(probes: Sequence[tuple[int, CreditMeasures]]) -> list[Panel]:
    """Make the probe's panels: one a measure, one curve a context."""
    contexts = list(dict.fromkeys(context for _, measures in probes for context in measures.contexts))
    panels = []
    for title, unit, name in _PROBE:
        curves = []
        for context in contexts:
            measured = [(step, measures.contexts.get(context, {})) for step, measures in probes]
            if points := [(step, intervals[name]) for step, intervals in measured if name in intervals]:
                curves.append(Curve.of(context, points))
        if curves:
            panels.append(Panel(title, unit, tuple(curves)))
    return panels


def _finite(number: object) -> float:
    return float(number) if isinstance(number, int | float) and math.isfinite(number) else math.nan
