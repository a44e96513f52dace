"""Several runs side by side: the paper's Table 1 over conditions, and paired differences from the first."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stepalign.errors import StepalignError
from stepalign.evaluation.compare import compare
from stepalign.evaluation.metrics import Evaluation, Metric
from stepalign.evaluation.stats import Difference, Interval
from stepalign.report import display
from stepalign.report.panels import FIGURE_2
from stepalign.report.run import Run
from stepalign.report.summary import LOWER_IS_BETTER, Summary, Verdict, best_of, judge


@dataclass(frozen=True)
class Best:
    """A run's best value of a metric over its checkpoints."""

    measure: Interval
    step: int
    wins: bool
    """Whether no other run's best is better."""


@dataclass(frozen=True)
class Against:
    """A run's last evaluation against the first run's last one."""

    label: str
    verdict: Verdict
    differences: Mapping[Metric, Difference]
    """Empty where the two cannot be compared; the verdict says why."""


class Comparison:
    """Everything the page says about several runs."""

    def __init__(self, runs: Mapping[str, Run], *, seeds: Mapping[str, Sequence[Evaluation]] | None = None) -> None:
        """Take runs by label.

        Args:
            runs: the first is what the others are held against.
            seeds: where each run pools several seeds, their last evaluations: differences are then drawn over seeds
                too. The pooled values alone would hide how far apart seeds are.

        Raises:
            StepalignError: they were evaluated with different n.
        """
        self.summaries = {label: Summary(run) for label, run in runs.items()}
        self.baseline = next(iter(runs))
        self.seeds = seeds
        found = {summary.n: label for label, summary in self.summaries.items() if summary.n}
        if len(found) > 1:
            named = ", ".join(f"{label}: n = {n}" for n, label in found.items())
            raise StepalignError(f"runs evaluated with different n cannot be compared ({named})")
        self.n = next(iter(found), 0)

    @property
    def best(self) -> dict[str, dict[Metric, Best]]:
        """Table 1: by run and metric. Runs without an evaluation have no row."""
        reached = {
            label: {metric: best_of(metric, summary.run.evaluations) for metric in FIGURE_2}
            for label, summary in self.summaries.items()
            if summary.before
        }
        winning = {
            metric: (min if metric in LOWER_IS_BETTER else max)(row[metric][1].value for row in reached.values())
            for metric in FIGURE_2
            if reached
        }
        return {
            label: {
                metric: Best(measure, step, measure.value == winning[metric]) for metric, (step, measure) in row.items()
            }
            for label, row in reached.items()
        }

    @property
    def against(self) -> list[Against]:
        """Every other run against the first."""
        first = _last(self.summaries[self.baseline])
        return [
            _against(label, first, _last(summary), self.baseline, self.seeds)
            for label, summary in self.summaries.items()
            if label != self.baseline
        ]

    @property
    def settings(self) -> dict[str, list[str]]:
        """The recipes' keys in which the runs differ, with each run's value; the name aside."""
        flat = [dict(_flat(summary.run.recipe)) for summary in self.summaries.values()]
        keys = sorted({key for recipe in flat for key in recipe} - {"name"})
        values = {key: [recipe.get(key, "–") for recipe in flat] for key in keys}
        return {key: found for key, found in values.items() if len(set(found)) > 1}


def _last(summary: Summary) -> Evaluation | None:
    return summary.after or summary.before


def _against(
    label: str,
    a: Evaluation | None,
    b: Evaluation | None,
    baseline: str,
    seeds: Mapping[str, Sequence[Evaluation]] | None,
) -> Against:
    if a is None or b is None:
        missing = baseline if a is None else label
        return Against(label, Verdict("open", "Not compared.", f"{missing} has not been evaluated."), {})
    if set(a.problem_ids) != set(b.problem_ids):
        why = f"{label} and {baseline} were evaluated on different problems."
        return Against(label, Verdict("open", "Not compared.", why), {})
    if seeds is None:
        fewest, differences = 1, compare(a, b, resamples=b.resamples, seed=b.seed)
    else:
        fewest = min(len(seeds[baseline]), len(seeds[label]))
        differences = compare(seeds[baseline], seeds[label], resamples=a.resamples, seed=0)
    first, second = (display.value("avg", evaluation.measures["avg"].value) for evaluation in (a, b))
    headline = f"{label} reaches {display.label('avg', a.n)} {second}, {baseline} {first}"
    against = f"{baseline} (step {b.step} against step {a.step})"
    return Against(label, judge(differences["avg"], headline, against, len(a.problem_ids), fewest), differences)


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", str(value)
