"""Result of a run: evaluations with intervals, the adapter's folder, metrics and the report, read from its folder.

    result = stepalign.train(recipe)
    result.final.measures["avg"], result.adapter, result.metrics, result.report()

`TrainResult(Path("runs/quickstart"))` is the result of a run of earlier.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from markupsafe import Markup

from stepalign import report
from stepalign.arguments import checked
from stepalign.errors import StepalignError
from stepalign.evaluation.metrics import Evaluation, Metric
from stepalign.evaluation.stats import Difference
from stepalign.notebook import html_table
from stepalign.report.summary import Summary, best_of
from stepalign.trainer import checkpoints

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True, init=False)
class TrainResult:
    """A run's folder and what is in it."""

    folder: Path

    @checked
    def __init__(self, folder: Path | str) -> None:
        object.__setattr__(self, "folder", Path(folder))

    @cached_property
    def _summary(self) -> Summary:
        return report.summarize(self.folder)

    @property
    def evaluations(self) -> list[Evaluation]:
        """Every evaluation, in the order of the steps."""
        return self._summary.run.evaluations

    @property
    def initial(self) -> Evaluation | None:
        """The evaluation before training; None without evaluation problems."""
        return self._summary.before

    @property
    def final(self) -> Evaluation | None:
        """The last evaluation; None without evaluation problems."""
        return self._summary.last

    @property
    def best(self) -> Evaluation | None:
        """The evaluated checkpoint with the highest Avg@n. It is chosen on the evaluation problems, so it flatters."""
        if not self.evaluations:
            return None
        step, _ = best_of("avg", self.evaluations)
        return next(evaluation for evaluation in self.evaluations if evaluation.step == step)

    @property
    def differences(self) -> dict[Metric, Difference]:
        """Final minus initial evaluation, paired over problems; empty without two of them."""
        return self._summary.differences

    @property
    def adapter(self) -> Path:
        """The last checkpoint's folder: a PEFT adapter, or a whole model where all weights are trained.

        Raises:
            StepalignError: the run has no checkpoint yet.
        """
        if (last := checkpoints.latest(self.folder / "checkpoints")) is None:
            raise StepalignError(f"{self.folder}: no checkpoint yet")
        return last

    @property
    def metrics(self) -> "pandas.DataFrame":
        """One row an optimizer step. A table within a step's line has columns like `outcomes.trained`.

        Raises:
            StepalignError: pandas is not installed.
        """
        try:
            import pandas
        except ModuleNotFoundError:
            raise StepalignError(
                f"metrics as a DataFrame need pandas: pip install pandas. They are also in {self.folder}/metrics.jsonl"
            ) from None
        return pandas.json_normalize([dict(step) for step in self._summary.run.steps])

    def report(self) -> Path:
        """Write the run's page again, and return its path."""
        return report.write(self._summary)

    def __str__(self) -> str:
        verdict = self._summary.verdict
        return f"{self.folder}: {verdict.headline} {verdict.detail}"

    def _repr_html_(self) -> str:
        """Return verdict, values and intervals for a notebook."""
        verdict, table = self._summary.verdict, self._summary.values
        rows = [] if table is None else [(name, *map(str, cells)) for name, cells in table.rows]
        values = html_table(table.columns, rows) if table else ""
        return Markup("<p>{}: {} {}</p>{}").format(self.folder, verdict.headline, verdict.detail, Markup(values))
