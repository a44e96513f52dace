"""Statements of a run's report: did training help, what was trained on, how the time was spent."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, cast

from stepalign.config import CanariesConfig
from stepalign.config.algorithms import AlgorithmConfig, GRPOConfig, RLTFSDConfig, SeqKDConfig, SFTConfig
from stepalign.config.registry import FAMILIES
from stepalign.critics import stats
from stepalign.errors import StepalignError
from stepalign.evaluation.metrics import Evaluation, Metric, common_metrics, compare
from stepalign.evaluation.stats import Difference, Interval
from stepalign.records import SHORTFALLS, Critique
from stepalign.report import display
from stepalign.report.display import Cell, Table, count
from stepalign.report.run import Example, RunFiles
from stepalign.trainer.canaries import first_raised, of_evaluations, of_steps

LOWER_IS_BETTER: tuple[Metric, ...] = ("length", "lines", "truncated")
"""For the answer length as in the paper's Table 1. A short answer is not by itself a good one."""

_TOKENS = {"sample": "completion"} | {stage: stage for stage in ("teacher", "base", "student")}
"""Prefix of the metric with a stage's tokens."""

_CASES = {
    "A": "fully correct",
    "B": "right answer, an unjustified step",
    "C": "ran out of tokens",
    "D": "incorrect answer",
}

_MAX_EXAMPLES = 6


@dataclass(frozen=True)
class Verdict:
    """A difference in words."""

    tone: Literal["better", "worse", "open"]
    headline: str
    detail: str
    differences: Mapping[Metric, Difference] = field(default_factory=dict)
    """Empty where there is nothing to compare; `detail` tells why."""


@dataclass(frozen=True)
class Stage:
    """A stage's share of the time."""

    name: str
    seconds: float
    share: float
    tokens_per_second: float | None


class Summary:
    """Statements about one run."""

    def __init__(self, run: RunFiles) -> None:
        self.run = run
        self.before: Evaluation | None = run.evaluations[0] if run.evaluations else None
        self.after: Evaluation | None = run.evaluations[-1] if len(run.evaluations) > 1 else None
        self.last = self.after or self.before
        self.n = self.before.n if self.before else 0
        self.steps_done = int(run.steps[-1]["step"]) if run.steps else 0
        self.rollouts = sum(int(step.get("rollouts", 0)) for step in run.steps)

    def setting(self, key: str) -> Any:
        """Return a value of the recipe by its full key; None without one."""
        table: Any = self.run.recipe
        for part in key.split("."):
            table = table.get(part) if isinstance(table, Mapping) else None
        return table

    @cached_property
    def algorithm(self) -> AlgorithmConfig | None:
        """The algorithm's table; None where the recipe is not there, or names one that is not registered."""
        try:
            return cast(AlgorithmConfig, FAMILIES["algorithm"].validate(self.setting("algorithm")))
        except ValueError:
            return None

    @property
    def condition(self) -> str:
        """The context and the critic in use; or the algorithm without both."""
        algorithm = self.algorithm
        if isinstance(algorithm, GRPOConfig):
            generations = self.setting("training.num_generations") or 1
            return f"GRPO, {generations} rollout{'s' * (generations != 1)} a problem"
        if isinstance(algorithm, SFTConfig) and not algorithm.rationalize:
            return f"SFT on {'references' if algorithm.sequences == 'references' else 'right rollouts of its own'}"
        critic = self.setting("critic.model") or self.setting("critic.kind")
        asked = not self.steps_done or any(step.get("cases") or step.get("failures") for step in self.run.steps)
        has_critic = critic and asked and (algorithm is None or algorithm.uses_teacher)
        parts = [f"critic {critic}" if has_critic else "no critic"]
        # Verdicts and feedback modelling take the critique as it is. A context is read by others than teachers too.
        readers = SFTConfig, SeqKDConfig, RLTFSDConfig
        if algorithm is None or algorithm.reference == "teacher" or isinstance(algorithm, readers):
            design = self.setting("context.template") or self.setting("context.function")
            parts = [f"context {design or 'unknown'}", *parts]
        return ", ".join(parts)

    @property
    def training(self) -> str:
        """The optimizer steps taken, of how many."""
        planned = self.setting("training.max_steps")
        of = "" if planned in (None, self.steps_done) else f" of {planned}"
        return f"{count(self.steps_done, 'optimizer step')}{of}"

    @property
    def evaluated_on(self) -> str:
        """The evaluation problems and their samples."""
        if self.before is None:
            return "not yet"
        return f"{count(len(self.before.problem_ids), 'problem')}, {count(self.n, 'sample')} each"

    @property
    def shortfall(self) -> str:
        """The critiques that failed, and the rollouts of an outcome in `SHORTFALLS`; empty where nothing could."""
        outcomes, failures = self._total("outcomes"), self._total("failures")
        critiques = self._total("cases").total() + outcomes["failed"]
        parts = [f"{outcomes['failed']} of {count(critiques, 'critique')} failed"] if outcomes["failed"] else []
        rollouts = count(self.rollouts, "rollout")
        parts += [f"{outcomes[name]} of {rollouts} {verb}" for name, verb in SHORTFALLS.items() if outcomes[name]]
        if not parts:
            return f"No failure among {count(critiques, 'critique')}." if critiques else ""
        reasons = ", ".join(f"{number} {reason}" for reason, number in failures.most_common())
        return ", ".join(parts) + (f" ({reasons})." if reasons else ".")

    @property
    def example_failure(self) -> str:
        """A failed critique of the last step in a line, where half of the run's critiques or more failed."""
        failed = self._total("outcomes")["failed"]
        if not failed or failed < self._total("cases").total():
            return ""
        example = stats.example_failure(example.critique for example in self.run.examples)
        return example and f"For example {example}"

    @property
    def canaries(self) -> list[tuple[int, str]]:
        """The measures that left the range of the run's first steps: step and change in words."""
        table = self.setting("canaries")
        known = CanariesConfig.model_fields
        own = {key: value for key, value in table.items() if key in known} if isinstance(table, Mapping) else {}
        try:
            settings = CanariesConfig(**own)
        except StepalignError as error:
            raise StepalignError(f"{self.run.folder / 'recipe.toml'}: {error}") from None
        run = self.run
        last = {canary.name for canary in of_steps(run.steps, settings)}
        last |= {canary.name for canary in of_evaluations(run.steps, run.evaluations, settings)}
        raised = first_raised(run.steps, run.evaluations, settings)
        return [
            (step, canary.text if canary.name in last else f"{canary.text}, and came back")
            for step, canaries in raised.items()
            for canary in canaries
        ]

    # ── did it help ───────────────────────────────────────────────────────────────────────────────────────

    @cached_property
    def differences(self) -> dict[Metric, Difference]:
        """After minus before, metric by metric; empty without two evaluations."""
        if self.before is None or self.after is None:
            return {}
        return compare(self.before, self.after, resamples=self.after.resamples, seed=self.after.seed)

    @property
    def verdict(self) -> Verdict:
        """The effect on Avg@n, because this metric uses every sample."""
        if self.before is None:
            return Verdict("open", "Not evaluated yet.", "The run's folder holds no evaluation.")
        name, problems, avg = display.label("avg", self.n), len(self.before.problem_ids), self.before.measures["avg"]
        old, low, high = (display.value("avg", number) for number in (avg.value, avg.low, avg.high))
        if self.after is None:
            detail = f"95 % interval {low} to {high}, {count(problems, 'problem')}. "
            detail += "A second evaluation will show whether training helps."
            return Verdict("open", f"{name} is {old} at step {self.before.step}.", detail)
        new = display.value("avg", self.after.measures["avg"].value)
        change = self.differences["avg"]
        verb = "went" if change.includes_zero else "rose" if change.value > 0 else "fell"
        return verdict_of(self.differences, f"{name} {verb} from {old} to {new}", f"step {self.before.step}")

    @property
    def values(self) -> Table | None:
        """Each metric before and after training, and at its best."""
        if self.before is None:
            return None
        columns = [f"step {self.before.step}"]
        if self.after:
            columns += [f"step {self.after.step}", "difference", "resamples in which it is higher", "best checkpoint"]
        rows = []
        for metric in common_metrics(self.run.evaluations):
            cells = [display.value_cell(metric, self.before.measures[metric])]
            if self.after:
                change = self.differences[metric]
                step, best = best_of(metric, self.run.evaluations)
                cells += [
                    display.value_cell(metric, self.after.measures[metric]),
                    display.difference_cell(metric, change),
                    Cell(f"{100 * change.above:.1f} %"),
                    display.value_cell(metric, best, f"at step {step}"),
                ]
            rows.append((display.label(metric, self.n), cells))
        note = "Best is the largest value, for length, lines and truncation the least, over evaluated checkpoints."
        return Table("Values and intervals", columns, rows, note if self.after else "")

    @property
    def every_evaluation(self) -> Table:
        """Each metric at every evaluation."""
        metrics = common_metrics(self.run.evaluations)
        rows = [
            (str(evaluation.step), [display.value_cell(metric, evaluation.measures[metric]) for metric in metrics])
            for evaluation in self.run.evaluations
        ]
        return Table("Every evaluation", [display.label(metric, self.n) for metric in metrics], rows)

    # ── how the time was spent ────────────────────────────────────────────────────────────────────────────

    @cached_property
    def stages(self) -> list[Stage]:
        """The stages of the optimizer steps that took any time, in their order."""
        totals = {name: seconds for name, seconds in self._total("seconds").items() if seconds > 0}
        stages = []
        for name, seconds in totals.items():
            # A resumed step may not have spent time on the stage.
            timed = (step for step in self.run.steps if name in step.get("seconds", {}))
            tokens = sum(step.get(f"{_TOKENS[name]}_tokens", 0) for step in timed) if name in _TOKENS else None
            rate = None if tokens is None else tokens / seconds
            stages.append(Stage(name, seconds, seconds / sum(totals.values()), rate))
        return stages

    @property
    def seconds(self) -> float:
        """The time of all stages."""
        return sum(stage.seconds for stage in self.stages)

    # ── what was trained on ───────────────────────────────────────────────────────────────────────────────

    @property
    def counts(self) -> list[tuple[str, int, str]]:
        """Rollouts, critiques, tokens and problems: name, number, meaning."""
        outcomes, cases, failures = (self._total(key) for key in ("outcomes", "cases", "failures"))
        dropped = self.run.manifest.get("problems", {}).get("dropped", {})
        rows = []
        if self.run.steps:
            rows = [
                ("rollouts", self.rollouts, "sampled for training"),
                ("trained on", outcomes["trained"], "carry loss"),
                ("dropped", outcomes["dropped"], "carry no loss"),
                ("fell back", outcomes["fallback"], "to the reference solution, for lack of a critique"),
                ("cut", outcomes["cut"], "teacher's prompt shortened to teacher.max_length"),
            ]
            rows += [("without credit", n, "keep the plain advantage")] if (n := outcomes["without credit"]) else []
        rows += [(f"critiques of case {case}", cases[case], _CASES.get(case, "")) for case in sorted(cases)]
        rows += [(f"failed: {reason}", failures[reason], "no critique") for reason in sorted(failures)]
        tokens = self._total("critic_tokens")
        rows += [(f"critic's tokens: {k}", tokens[k], "retries included") for k in sorted(tokens) if tokens[k]]
        return rows + [(f"left out: {why}", dropped[why], "problems, before training") for why in sorted(dropped)]

    @property
    def checks(self) -> list[tuple[str, list[int]]]:
        """The number of critiques by check, for each of `stats.OUTCOMES`."""
        steps = [step.get("checks", {}) for step in self.run.steps]
        return [
            (name, [sum(step.get(name, {}).get(outcome, 0) for step in steps) for outcome in stats.OUTCOMES])
            for name in stats.ordered({name for step in steps for name in step})
        ]

    @property
    def examples(self) -> list[Example]:
        """A few rollouts: one of each kind, those with a corrected step first, then others in order."""
        kinds: dict[str, Example] = {}
        for example in self.run.examples:
            critique = example.critique
            kind = critique.case if isinstance(critique, Critique) else critique.reason if critique else ""
            kinds.setdefault(kind or str(example.rollout.correct), example)
        first = sorted(kinds.values(), key=lambda e: not (isinstance(e.critique, Critique) and e.critique.first_error))
        return [*first, *(example for example in self.run.examples if example not in first)][:_MAX_EXAMPLES]

    def _total(self, key: str) -> Counter[str]:
        total: Counter[str] = Counter()
        for step in self.run.steps:
            total.update(step.get(key, {}))
        return total


def best_of(metric: Metric, evaluations: Sequence[Evaluation]) -> tuple[int, Interval]:
    """Return the step and value of the best checkpoint, the earliest of equal ones.

    As in the paper's Table 1, step 0 is no checkpoint; it counts only where it is the only evaluation.
    """
    trained = [evaluation for evaluation in evaluations if evaluation.step > 0] or list(evaluations)
    sign = -1 if metric in LOWER_IS_BETTER else 1
    best = max(trained, key=lambda evaluation: (sign * evaluation.measures[metric].value, -evaluation.step))
    return best.step, best.measures[metric]


def verdict_of(differences: Mapping[Metric, Difference], headline: str, against: str, seeds: str = "") -> Verdict:
    """Put the difference in Avg@n into words. An interval that includes zero never counts as a gain.

    Args:
        differences: of both sides, by metric.
        headline: both values.
        against: the other side's name.
        seeds: the number of seeds in words; empty for one each.
    """
    change = differences["avg"]
    points, low, high = (display.difference("avg", end) for end in (change.value, change.low, change.high))
    paired = f"paired over {count(change.n, 'problem')}" + (f", over {seeds}" if seeds else "")
    detail = f"{points} points against {against}, 95 % interval {low} to {high}, {paired}."
    tone: Literal["better", "worse", "open"] = "better" if change.value > 0 else "worse"
    if change.n == 1:
        tone, headline, detail = "open", f"{headline}.", f"{detail} One problem shows no scatter to judge by."
    elif change.includes_zero:
        tone, headline, detail = "open", f"{headline}: no difference is shown.", f"{detail} The interval includes zero."
    else:
        headline = f"{headline}."
    return Verdict(tone, headline, detail, differences)
