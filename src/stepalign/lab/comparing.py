"""The lab's comparison: the paper's Figure 2 and Table 1 over conditions, credit by region, and what each one cost.

A condition's seeds are pooled (`evaluation.pooling`); its curves can be drawn against any of `training.cost.COSTS`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from stepalign.errors import StepalignError
from stepalign.evaluation.compare import compare, pool
from stepalign.evaluation.metrics import Metric
from stepalign.evaluation.stats import Difference, Interval
from stepalign.io import read_jsonl, write_atomically
from stepalign.lab.behaviour import BEHAVIOURS, behaviours
from stepalign.records import Problem, Rollout
from stepalign.report import display, figures, page, panels
from stepalign.report.comparison import Comparison
from stepalign.report.run import Run, read
from stepalign.trainer.step_metrics import COSTS

AXES = ("step", *COSTS)
_REGIONS = {"correct": "correct traces", "before": "before the error", "at": "at it", "after": "after it"}


class Conditions:
    """Conditions with their seeds' runs."""

    def __init__(self, folders: Mapping[str, Sequence[Path]]) -> None:
        """
        Raises:
            StepalignError: a folder holds no run, or seeds were not evaluated alike.
        """
        self.seeds: dict[str, list[Run]] = {
            condition: [read(folder) for folder in some] for condition, some in folders.items()
        }
        self.pooled = {condition: _pooled(condition, runs) for condition, runs in self.seeds.items()}

    def cost(self, condition: str, step: int, axis: str) -> float:
        """What a condition had spent when a step was done, the mean over its seeds."""
        if axis == "step":
            return step
        runs = self.seeds[condition]
        done = [one for run in runs for one in run.steps if one["step"] <= step]
        spent = sum(sum(one["seconds"].values()) if axis == "seconds" else one["cost"][axis] for one in done)
        return float(spent) / len(runs)

    @property
    def comparison(self) -> Comparison:
        """The conditions held against the first, over seeds and problems."""
        last = {condition: [run.evaluations[-1] for run in runs] for condition, runs in self.seeds.items()}
        return Comparison(self.pooled, seeds=last)

    def panels(self, axis: str = "step") -> list[panels.Panel]:
        """Figure 2 against optimizer steps, or against what was spent."""
        drawn = panels.of_evaluations({name: run.evaluations for name, run in self.pooled.items()})
        if axis == "step":
            return drawn
        return [
            replace(
                panel,
                over=axis.replace("_", " "),
                curves=tuple(
                    replace(curve, steps=tuple(self.cost(curve.label, int(step), axis) for step in curve.steps))
                    for curve in panel.curves
                ),
            )
            for panel in drawn
        ]

    def gains(self, condition: str) -> dict[Metric, Difference]:
        """The last evaluation against the first, over seeds and problems."""
        runs = self.seeds[condition]
        first, last = ([run.evaluations[at] for run in runs] for at in (0, -1))
        return compare(first, last, resamples=first[0].resamples, seed=0)

    @property
    def credit(self) -> dict[str, dict[str, Interval]]:
        """Credit by region before training, by context: of the first run that has a probe."""
        for runs in self.seeds.values():
            if runs[0].probes:
                return dict(runs[0].probes[0][1].contexts)
        return {}

    def habits(self, condition: str, at: int) -> dict[str, Interval]:
        """What the attempts of an evaluation do, seeds together; `at` is 0 (the first evaluation) or −1 (the last).

        Nothing where a problem is not a sum.
        """
        runs = self.seeds[condition]
        problems = {one.id: one for one in read_jsonl(runs[0].folder / "problems" / "evaluation.jsonl", Problem)}
        if not all("terms" in problem.meta for problem in problems.values()):
            return {}
        step = runs[0].evaluations[at].step
        name = f"step-{step:06d}.jsonl"
        attempts = [one for run in runs for one in read_jsonl(run.folder / "evaluations" / name, Rollout)]
        return behaviours(attempts, problems, resamples=2000, seed=0)


def write(folders: Mapping[str, Sequence[Path]], out: Path) -> Path:
    """Write `comparison.html`, `comparison.md` and the figures into `out`; the page's path."""
    conditions = Conditions(folders)
    drawn = conditions.panels()
    for axis in AXES:
        name = "comparison.png" if axis == "step" else f"comparison-{axis}.png"
        write_atomically(out / "figures" / name, figures.png(conditions.panels(axis)))
    write_atomically(out / "comparison.md", markdown(conditions))
    html = page.of_comparison(conditions.comparison, evaluation=drawn)
    write_atomically(out / "comparison.html", html)
    return out / "comparison.html"


def markdown(conditions: Conditions) -> str:
    """The tables of the page and of `docs/lab.md`."""
    comparison = conditions.comparison
    first = next(iter(conditions.pooled.values()))
    seeds = sorted({len(runs) for runs in conditions.seeds.values()})
    n, problems = first.evaluations[0].n, len(first.evaluations[0].problem_ids)
    lines = [
        f"{problems} test problems, n = {n}, seeds: {', '.join(map(str, seeds))}; "
        "95 % intervals over seeds and problems.",
        "",
        "Best checkpoint, metric by metric (the paper's Table 1):",
        "",
        f"| condition | Avg@{n} | Maj@{n} | Pass@{n} | answer length |",
        "|---|---|---|---|---|",
    ]
    for condition, row in comparison.best.items():
        cells = [
            f"{display.value(metric, best.measure.value)} [{display.value(metric, best.measure.low)}, "
            f"{display.value(metric, best.measure.high)}] at {best.step}"
            for metric, best in row.items()
        ]
        lines.append(f"| {condition} | {' | '.join(cells)} |")
    lines += [
        "",
        f"Avg@{n}, last evaluation against first, and against {comparison.baseline}'s last:",
        "",
        f"| condition | before | after | gain, points | against {comparison.baseline} |",
        "|---|---|---|---|---|",
    ]
    against = {other.label: _change(other.differences["avg"]) for other in comparison.against}
    for condition, run in conditions.pooled.items():
        before, after = (run.evaluations[at].measures["avg"].value for at in (0, -1))
        lines.append(
            f"| {condition} | {display.value('avg', before)} | {display.value('avg', after)} "
            f"| {_change(conditions.gains(condition)['avg'])} | {against.get(condition, '')} |"
        )
    if untrained := conditions.habits(comparison.baseline, 0):
        lines += [
            "",
            "What the attempts do, at the last evaluation:",
            "",
            f"| condition | {' | '.join(BEHAVIOURS)} |",
            "|---|---|---|---|",
            _habits_row("before", untrained),
            *(_habits_row(condition, conditions.habits(condition, -1)) for condition in conditions.pooled),
        ]
    lines += [
        "",
        "Credit before training (nats a token):",
        "",
        f"| context | {' | '.join(_REGIONS.values())} |",
        "|---|---|---|---|---|",
    ]
    for context, found in conditions.credit.items():
        lines.append(f"| {context.removeprefix('lab/')} | {' | '.join(_nats(found.get(name)) for name in _REGIONS)} |")
    lines += [
        "",
        "Spent by the last step, the mean over seeds:",
        "",
        f"| condition | {' | '.join(COSTS)} |",
        "|---" * (len(COSTS) + 1) + "|",
    ]
    for condition, run in conditions.pooled.items():
        step = run.evaluations[-1].step
        lines.append(
            f"| {condition} | {' | '.join(f'{conditions.cost(condition, step, axis):.4g}' for axis in COSTS)} |"
        )
    return "\n".join(lines) + "\n"


def _pooled(condition: str, runs: Sequence[Run]) -> Run:
    steps = [[evaluation.step for evaluation in run.evaluations] for run in runs]
    if not steps[0] or any(other != steps[0] for other in steps):
        raise StepalignError(f"{condition}: its seeds were evaluated at different steps: {steps}")
    recipe: dict[str, Any] = {**runs[0].recipe, "name": condition}
    recipe.pop("seed", None)
    evaluations = [pool(same) for same in zip(*(run.evaluations for run in runs), strict=True)]
    return replace(runs[0], recipe=recipe, evaluations=evaluations)


def _habits_row(name: str, found: Mapping[str, Interval]) -> str:
    return f"| {name} | {' | '.join(f'{found[habit]:.0%}' for habit in BEHAVIOURS)} |"


def _change(one: Difference) -> str:
    shown = [display.difference("avg", value) for value in (one.value, one.low, one.high)]
    return f"{shown[0]} [{shown[1]}, {shown[2]}]"


def _nats(one: Interval | None) -> str:
    return "–" if one is None else f"{one.value:+.2f} [{one.low:+.2f}, {one.high:+.2f}], n = {one.n}"
