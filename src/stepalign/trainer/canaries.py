"""Canaries: measures of a run that have left the range of its first steps.

The mean of the last steps is compared with the mean of the first ones. A measure has left its range where the change is
larger than allowed and larger than noise. Noise is so many standard errors, estimated from differences of neighbouring
steps, which a slow drift does not widen. Evaluations are compared with the first one on the same problems, with paired
intervals. Steps on references or on a teacher's completions do not count.

Left out: stopping the run, because its best checkpoint is kept and only a person knows what a change means.
"""

from collections.abc import Iterator, Mapping, Sequence
from math import sqrt
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np

from stepalign import config
from stepalign.append_log import AppendLog
from stepalign.evaluation.metrics import Evaluation, compare
from stepalign.io import read_json

KEYS = ("step", "on_policy", "correct", "formatted", "completion_tokens", "rollouts", "truncated", "repeated",
        "entropy_student")  # fmt: skip
"""The metrics of a step that canaries read."""


class Canary(NamedTuple):
    """A measure that has left its range."""

    name: str
    first: float
    """The mean over the first steps."""
    last: float
    """The mean over the last steps."""

    @property
    def text(self) -> str:
        """The change in words."""
        spec = {"length": ".0f", "entropy": ".3f"}.get(self.name, ".0%")
        verb = "rose" if self.last > self.first else "fell"
        return f"{self.name} {verb} from {self.first:{spec}} to {self.last:{spec}}"


class Canaries:
    """The canaries of a run, in its main process."""

    def __init__(self, folder: Path, settings: config.CanariesConfig) -> None:
        """Read the steps and evaluations that a resumed run has already."""
        self._settings = settings
        path = folder / "metrics.jsonl"
        self._steps: list[Mapping[str, Any]] = list(AppendLog(path, dict[str, Any]).read())
        self._evaluations = [
            read_json(file, Evaluation) for file in sorted((folder / "evaluations").glob("step-*.json"))
        ]
        self._raised: set[str] = set()

    def after_step(self, values: Mapping[str, Any]) -> tuple[list[Canary], list[Canary]]:
        """Add a step, and return the measures out of range, and those of them that were not so before."""
        self._steps.append({key: values[key] for key in KEYS if key in values})
        found = of_steps(self._steps, self._settings)
        new = [canary for canary in found if canary.name not in self._raised]
        self._raised = {canary.name for canary in found}
        return found, new

    def after_evaluation(self, evaluation: Evaluation) -> list[Canary]:
        """Add an evaluation, and return the measures out of range."""
        self._evaluations.append(evaluation)
        return of_evaluations(self._steps, self._evaluations, self._settings)


def first_raised(
    steps: Sequence[Mapping[str, Any]], evaluations: Sequence[Evaluation], settings: config.CanariesConfig
) -> dict[int, list[Canary]]:
    """Return each measure of a run that ever left its range, by the step at which it first did.

    Args:
        steps: the lines of `metrics.jsonl`, in order.
        evaluations: in the order of their steps.
        settings: the ranges.
    """
    found: dict[str, tuple[int, Canary]] = {}
    for name, lines, values, fall, rise in _measures(steps, settings):
        for line, change in zip(lines[2 * settings.num_steps - 1 :], _changes(values, settings), strict=False):
            if change.exceeds(-1, fall) or change.exceeds(1, rise):
                found[name] = (int(line["step"]), Canary(name, change.first, change.last))
                break
    for count in range(2, len(evaluations) + 1):
        for canary in of_evaluations(steps, evaluations[:count], settings):
            found.setdefault(canary.name, (evaluations[count - 1].step, canary))
    by_step: dict[int, list[Canary]] = {}
    for step, canary in sorted(found.values(), key=lambda pair: pair[0]):
        by_step.setdefault(step, []).append(canary)
    return by_step


class _Change(NamedTuple):
    first: float
    last: float
    noise: float

    def exceeds(self, sign: int, allowed: float | None) -> bool:
        """Return whether the change in this direction is larger than noise and than allowed; None allows any."""
        return allowed is not None and sign * (self.last - self.first) > max(allowed, self.noise)


def _changes(values: Sequence[float], settings: config.CanariesConfig) -> list[_Change]:
    """Compare the last values with the first ones after each value from which on the two do not overlap."""
    size = settings.num_steps
    if len(values) < 2 * size:
        return []
    means = np.lib.stride_tricks.sliding_window_view(np.array(values), size).mean(axis=1)
    squares = np.cumsum(np.diff(values) ** 2)[2 * size - 2 :]
    scatter = squares / np.arange(2 * size - 1, len(values)) / 2
    noises = settings.num_standard_errors * np.sqrt(scatter * 2 / size)
    return [_Change(float(means[0]), float(last), float(n)) for last, n in zip(means[size:], noises, strict=True)]


class _Measure(NamedTuple):
    name: str
    lines: list[Mapping[str, Any]]
    """The steps that have a value."""
    values: list[float]
    fall: float | None
    """The largest allowed; None allows any."""
    rise: float | None


def _measures(steps: Sequence[Mapping[str, Any]], settings: config.CanariesConfig) -> Iterator[_Measure]:
    """Yield each measure of the rollouts with its values and its range."""
    steps = [line for line in steps if line.get("on_policy", 1) > 0.5]
    for name, key, fall, rise in (
        ("accuracy", "correct", settings.max_accuracy_drop, None),
        ("format", "formatted", settings.max_format_drop, None),
        ("truncation", "truncated", None, settings.max_truncation_rise),
        ("repetition", "repeated", None, settings.max_repetition_rise),
    ):
        lines = [line for line in steps if key in line]
        yield _Measure(name, lines, [line[key] for line in lines], fall, rise)
    lines = [line for line in steps if line.get("rollouts") and "completion_tokens" in line]
    lengths = [line["completion_tokens"] / line["rollouts"] for line in lines]
    yield _Measure("length", lines, lengths, *_around(lengths, settings.max_length_ratio, settings))
    lines = [line for line in steps if "entropy_student" in line]
    entropies = [line["entropy_student"] for line in lines]
    yield _Measure("entropy", lines, entropies, *_around(entropies, settings.max_entropy_ratio, settings))


def of_steps(steps: Sequence[Mapping[str, Any]], settings: config.CanariesConfig) -> list[Canary]:
    """Return the measures of the rollouts that are out of range after the last of these steps."""
    found = []
    for name, _, values, fall, rise in _measures(steps, settings):
        changes = _changes(values, settings)
        if changes and (changes[-1].exceeds(-1, fall) or changes[-1].exceeds(1, rise)):
            found.append(Canary(name, changes[-1].first, changes[-1].last))
    return found


def _around(values: Sequence[float], ratio: float, settings: config.CanariesConfig) -> tuple[float, float]:
    """Return the fall and the rise that a factor allows from the first values' mean."""
    first = fmean(values[: settings.num_steps]) if values else 0.0
    return first * (1 - 1 / ratio), first * (ratio - 1)


def of_evaluations(
    steps: Sequence[Mapping[str, Any]], evaluations: Sequence[Evaluation], settings: config.CanariesConfig
) -> list[Canary]:
    """Compare held-out accuracy with the first evaluation's, and its change with that on training problems."""
    if len(evaluations) < 2:
        return []
    first, last, found = evaluations[0], evaluations[-1], []
    change = compare(first, last, resamples=first.resamples, seed=first.seed)["avg"]
    before, after = first.measures["avg"].value, last.measures["avg"].value
    if -change.value > settings.max_accuracy_drop and change.high < 0:
        found.append(Canary("held-out accuracy", before, after))
    own = [line for line in steps if line.get("on_policy", 1) > 0.5 and line["step"] <= last.step]
    if changes := _changes([line["correct"] for line in own if "correct" in line], settings):
        training = changes[-1]
        gap = training.last - training.first - change.value
        noise = sqrt(training.noise**2 + (change.high - change.value) ** 2)
        if gap > max(settings.max_gap, noise):
            found.append(Canary("training beyond held-out accuracy", 0.0, gap))
    return found
