"""Comparison of conditions: the paper's Figure 2 and Table 1, paired differences, credit, and the cost of each.

A condition is one run, or several seeds of a run pooled (`evaluation.metrics.pool`). Evaluations without their runs are
compared by `evaluations_table`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Literal

from stepalign.errors import StepalignError
from stepalign.evaluation.metrics import Evaluation, common_metrics, compare, pool
from stepalign.evaluation.stats import Difference
from stepalign.io import flat
from stepalign.report import display, new_problems
from stepalign.report.display import FIGURE_2, Cell, Table
from stepalign.report.figures import Panel, evaluation_panels
from stepalign.report.run import RunFiles
from stepalign.report.summary import LOWER_IS_BETTER, Summary, Verdict, best_of, verdict_of

_REGIONS = {"correct": "correct traces", "before": "before the error", "at": "at it", "after": "after it"}


class Comparison:
    """Conditions, their differences from the first one, and their tables."""

    def __init__(self, conditions: Mapping[str, Sequence[RunFiles]]) -> None:
        """Take each condition's runs, one a seed, by label.

        Raises:
            StepalignError: conditions were evaluated with different n, or a condition's seeds at different steps.
        """
        self.runs = conditions
        self.summaries = {label: Summary(_pooled(label, runs)) for label, runs in conditions.items()}
        self.baseline = next(iter(conditions))
        by_n = {summary.n: label for label, summary in self.summaries.items() if summary.n}
        if len(by_n) > 1:
            named = ", ".join(f"{label}: n = {n}" for n, label in by_n.items())
            raise StepalignError(f"runs evaluated with different n cannot be compared ({named})")
        self.n = next(iter(by_n), 0)

    @cached_property
    def _gains(self) -> dict[str, tuple[Evaluation, Evaluation, Difference]]:
        """Each condition's first and last evaluation, and their difference in Avg@n."""
        found = {}
        for label, summary in self.summaries.items():
            if summary.before and summary.after:
                before, after = ([run.evaluations[at] for run in self.runs[label]] for at in (0, -1))
                resamples, seed = before[0].resamples, summary.before.seed
                changes = compare(before, after, resamples=resamples, seed=seed, same_seeds=True)
                found[label] = summary.before, summary.after, changes["avg"]
        return found

    @property
    def verdict(self) -> Verdict | None:
        """Every condition against its own base; None where none was evaluated twice."""
        if not self._gains:
            return None
        verbs: dict[str, list[str]] = {"rises": [], "falls": [], "shows no change": []}
        for label, (_, _, change) in self._gains.items():
            verb = "shows no change" if change.includes_zero else "rises" if change.value > 0 else "falls"
            verbs[verb].append(f"{label} ({display.difference('avg', change.value)})")
        parts = [f"{verb} under {', '.join(labels)}" for verb, labels in verbs.items() if labels]
        tone: Literal["better", "worse", "open"] = (
            "open" if len(parts) > 1 or verbs["shows no change"] else "better" if verbs["rises"] else "worse"
        )
        detail = "Points against each condition's own base, before training; a change has a 95 % interval without zero."
        return Verdict(tone, f"{display.label('avg', self.n)} {', '.join(parts)}.", detail)

    @cached_property
    def against(self) -> dict[str, Verdict]:
        """Every other condition's last evaluation against the first condition's."""
        return {label: self._against(label) for label in self.summaries if label != self.baseline}

    def _against(self, label: str) -> Verdict:
        a, b = self.summaries[self.baseline].last, self.summaries[label].last
        if a is None or b is None:
            missing = self.baseline if a is None else label
            return Verdict("open", "Not compared.", f"{missing} has not been evaluated.")
        if set(a.problem_ids) != set(b.problem_ids):
            why = f"{label} and {self.baseline} were evaluated on different problems."
            return Verdict("open", "Not compared.", why)
        # The pooled values alone would hide how far apart the seeds are.
        first, second = ([run.evaluations[-1] for run in self.runs[name]] for name in (self.baseline, label))
        differences = compare(first, second, resamples=b.resamples, seed=b.seed)
        reached, old = (display.value("avg", evaluation.measures["avg"].value) for evaluation in (b, a))
        headline = f"{label} reaches {display.label('avg', a.n)} {reached}, {self.baseline} {old}"
        step = f"{self.baseline} (step {b.step} against step {a.step})"
        ours, theirs = display.count(len(second), "seed"), display.count(len(first), "seed")
        seeds = f"{ours} of {label} and {theirs} of {self.baseline}" if ours != theirs else f"{ours} each"
        return verdict_of(differences, headline, step, "" if len(first) == len(second) == 1 else seeds)

    @property
    def settings(self) -> dict[str, list[str]]:
        """The recipes' keys in which the conditions differ, with each one's value; the name aside."""
        recipes = [{key: str(value) for key, value in flat(summary.run.recipe)} for summary in self.summaries.values()]
        keys = sorted({key for recipe in recipes for key in recipe} - {"name"})
        values = {key: [recipe.get(key, "–") for recipe in recipes] for key in keys}
        return {key: row for key, row in values.items() if len(set(row)) > 1}

    @property
    def costs(self) -> list[str]:
        """Names of the costs that every condition's metrics hold, and `seconds`."""
        steps = [step for runs in self.runs.values() for run in runs for step in run.steps]
        names = list(steps[0].get("cost", {})) if steps else []
        return [*(name for name in names if all(name in step.get("cost", {}) for step in steps)), "seconds"]

    def cost(self, label: str, step: float, cost: str) -> float:
        """Sum a condition's cost up to a step, as the mean over its seeds."""
        done = [line for run in self.runs[label] for line in run.steps if line["step"] <= step]
        spent = sum(sum(line["seconds"].values()) if cost == "seconds" else line["cost"][cost] for line in done)
        return float(spent) / len(self.runs[label])

    def panels(self, cost: str | None = None) -> list[Panel]:
        """Make Figure 2 over optimizer steps, or over a cost."""
        evaluations = {label: summary.run.evaluations for label, summary in self.summaries.items()}
        if cost is None:
            return evaluation_panels(evaluations)
        return evaluation_panels(evaluations, cost.replace("_", " "), lambda label, step: self.cost(label, step, cost))

    # ── tables ────────────────────────────────────────────────────────────────────────────────────────────

    def _table(self, title: str, rows: Sequence[tuple[str, Sequence[Cell]]], note: str = "") -> Table:
        return Table(title, [display.label(metric, self.n) for metric in FIGURE_2], rows, note)

    @property
    def best(self) -> Table | None:
        """Table 1 of the paper; None where nothing was evaluated. Runs without an evaluation have no row."""
        evaluated = {label: summary.run.evaluations for label, summary in self.summaries.items() if summary.before}
        if not evaluated:
            return None
        rows: dict[str, list[Cell]] = {label: [] for label in evaluated}
        for metric in FIGURE_2:
            best = {label: best_of(metric, evaluations) for label, evaluations in evaluated.items()}
            values = [interval.value for _, interval in best.values()]
            winner = min(values) if metric in LOWER_IS_BETTER else max(values)
            for label, (step, interval) in best.items():
                bold = interval.value == winner
                rows[label].append(display.value_cell(metric, interval, f"at step {step}", bold=bold))
        note = (
            "As Table 1 of the paper (arXiv 2606.11173): each metric at its own best checkpoint, for length the "
            "least. Bold: best of the column."
        )
        return self._table("Best checkpoint, metric by metric", list(rows.items()), note)

    @property
    def changes(self) -> Table:
        """The last evaluation against the first condition's."""
        rows = []
        for label, verdict in self.against.items():
            cells = [display.difference_cell(metric, change) for metric, change in verdict.differences.items()]
            rows.append((label, cells[: len(FIGURE_2)] or [Cell(verdict.detail)]))
        return self._table(f"Last evaluation against {self.baseline}'s", rows)

    @property
    def gains(self) -> Table:
        """Each condition's last evaluation against its first, and against the first condition's last."""
        rows, against = [], self.against
        for label, (*ends, change) in self._gains.items():
            other = against[label].differences.get("avg") if label in against else None
            rows.append((label, [
                *(Cell(display.value("avg", end.measures["avg"].value)) for end in ends),
                display.difference_cell("avg", change),
                display.difference_cell("avg", other) if other else Cell("–"),
            ]))  # fmt: skip
        title = f"{display.label('avg', self.n)}, last evaluation against the base and against {self.baseline}"
        return Table(title, ["before", "after", "against its base", f"against {self.baseline}"], rows)

    @cached_property
    def new_problems(self) -> Table | None:
        """Accuracy on training problems before they were learned from; None where runs attempted different ones."""
        last = self.summaries[self.baseline].last
        return new_problems.table(self.runs, resamples=last.resamples if last else 2000, seed=last.seed if last else 0)

    @property
    def credit(self) -> Table:
        """Credit before training by context and region, of the first run with a probe."""
        probes = next((runs[0].probes for runs in self.runs.values() if runs[0].probes), None)
        rows = []
        for context, measures in (probes[0][1].contexts if probes else {}).items():
            regions = [measures.get(region) for region in _REGIONS]
            cells = [Cell("–") if i is None else Cell(f"{i:+.2f}".replace("-", "−"), (f"n = {i.n}",)) for i in regions]
            rows.append((context.removeprefix("lab/"), cells))
        return Table("Credit before training, nats a token", list(_REGIONS.values()), rows)

    @property
    def spent(self) -> Table:
        """The costs by the last evaluation, means over seeds."""
        rows = [
            (label, [Cell(f"{self.cost(label, summary.last.step, cost):.4g}") for cost in self.costs])
            for label, summary in self.summaries.items()
            if summary.last
        ]
        return Table("Spent by the last evaluation, mean over seeds", [c.replace("_", " ") for c in self.costs], rows)

    def markdown(self, *others: Table) -> str:
        """Return all tables, and others, as Markdown."""
        seeds = ", ".join(map(str, sorted({len(runs) for runs in self.runs.values()})))
        over = "problems" if seeds == "1" else "seeds and problems"
        first = f"{self.summaries[self.baseline].evaluated_on}; seeds: {seeds}; 95 % intervals over {over}."
        tables = [self.gains, self.best, self.changes, self.new_problems, *others, self.credit, self.spent]
        return "\n\n".join([first, *(table.markdown() for table in tables if table and table.rows)]) + "\n"


def evaluations_table(evaluations: Mapping[str, Evaluation]) -> Table:
    """Return the first evaluation's values, and the paired differences of the others from it.

    Args:
        evaluations: two or more, by name.

    Raises:
        StepalignError: n or the problems differ; with both names.
    """
    (name, first), *others = evaluations.items()
    rows, differences = [], []
    for label, other in others:
        try:
            differences.append(compare(first, other, resamples=first.resamples, seed=first.seed))
        except StepalignError as error:
            raise StepalignError(f"{name} and {label}: {error}") from None
    for metric in common_metrics(list(evaluations.values())):
        cells = [display.value_cell(metric, first.measures[metric])]
        for change in (each[metric] for each in differences):
            shown = display.difference_cell(metric, change)
            cells.append(Cell(shown.text, shown.notes[:1], bold=not change.includes_zero))
        rows.append((display.label(metric, first.n), cells))
    asked = f"{display.count(len(first.problem_ids), 'problem')}, {display.count(first.n, 'sample')} each"
    title = f"Differences from {name}, {asked}; bold: the interval excludes zero"
    return Table(title, list(evaluations), rows)


def _pooled(label: str, runs: Sequence[RunFiles]) -> RunFiles:
    if len(runs) == 1:
        return runs[0]
    steps = [[evaluation.step for evaluation in run.evaluations] for run in runs]
    if not steps[0] or any(other != steps[0] for other in steps):
        raise StepalignError(f"{label}: its seeds were evaluated at different steps: {steps}")
    recipe = {key: value for key, value in runs[0].recipe.items() if key != "seed"}
    evaluations = [pool(same) for same in zip(*(run.evaluations for run in runs), strict=True)]
    return replace(runs[0], recipe=recipe, evaluations=evaluations)
