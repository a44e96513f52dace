"""What a run's report says beyond its figures: did it help, what was taught, where the time went."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from stepalign.critics import stats
from stepalign.evaluation.compare import compare
from stepalign.evaluation.metrics import METRICS, Evaluation, Metric
from stepalign.evaluation.stats import Difference, Interval
from stepalign.records import Critique
from stepalign.report import display
from stepalign.report.run import Example, Run

LOWER_IS_BETTER: tuple[Metric, ...] = ("length", "truncated")
"""As in the paper's Table 1 for the answer length, though a short answer is not by itself a good one."""

_RATES = {
    "sample": "completion_tokens",
    "teacher": "teacher_tokens",
    "base": "base_tokens",
    "student": "student_tokens",
}
"""The metric that counts the tokens which a stage handles."""

_SPENT = "by the critic, answers asked for again included"

_CASES = {
    "A": "fully correct",
    "B": "right answer, an unjustified step",
    "C": "ran out of tokens",
    "D": "incorrect answer",
}

_EXAMPLES = 6


@dataclass(frozen=True)
class Verdict:
    """Whether something helped, in words."""

    tone: Literal["better", "worse", "open"]
    headline: str
    detail: str


@dataclass(frozen=True)
class Row:
    """A metric before and after training, and at its best."""

    metric: Metric
    label: str
    before: Interval
    after: Interval | None
    difference: Difference | None
    best: Interval
    best_step: int


@dataclass(frozen=True)
class Stage:
    """A stage's part of the time."""

    name: str
    seconds: float
    share: float
    tokens_per_second: float | None


class Summary:
    """Everything the page says about one run."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.before: Evaluation | None = run.evaluations[0] if run.evaluations else None
        self.after: Evaluation | None = run.evaluations[-1] if len(run.evaluations) > 1 else None

    # ── what ran ──────────────────────────────────────────────────────────────────────────────────────────

    def setting(self, key: str) -> Any:
        """A value of the recipe by its full key; None where it has none."""
        found: Any = self.run.recipe
        for part in key.split("."):
            found = found.get(part) if isinstance(found, Mapping) else None
        return found

    @property
    def condition(self) -> str:
        """What the teacher sees, and who wrote it; or that there is none."""
        if self.setting("algorithm.kind") == "grpo":
            return f"GRPO, {count(int(self.setting('training.num_generations') or 1), 'rollout')} a problem"
        critic = self.setting("critic.model") or self.setting("critic.kind")
        shown = f"context {self.setting('context.template') or 'unknown'}"
        return f"{shown}, critic {critic}" if critic else f"{shown}, no critic"

    @property
    def n(self) -> int:
        """The n of Avg@n; 0 without an evaluation."""
        return self.before.n if self.before else 0

    @property
    def steps_done(self) -> int:
        """Optimizer steps taken."""
        return int(self.run.steps[-1]["step"]) if self.run.steps else 0

    @property
    def rollouts(self) -> int:
        """Rollouts drawn for training."""
        return sum(int(step.get("rollouts", 0)) for step in self.run.steps)

    # ── did it help ───────────────────────────────────────────────────────────────────────────────────────

    @cached_property
    def differences(self) -> dict[Metric, Difference]:
        """After minus before, metric by metric; empty where there is nothing to compare."""
        if self.before is None or self.after is None:
            return {}
        return compare(self.before, self.after, resamples=self.after.resamples, seed=self.after.seed)

    @property
    def verdict(self) -> Verdict:
        """Did it help? By Avg@n, the metric that uses every sample."""
        if self.before is None:
            return Verdict("open", "Not evaluated yet.", "The run's folder holds no evaluation.")
        name, problems = display.label("avg", self.n), len(self.before.problem_ids)
        measure = self.before.measures["avg"]
        old, low, high = (display.value("avg", end) for end in (measure.value, measure.low, measure.high))
        if self.after is None:
            return Verdict(
                "open",
                f"{name} is {old} at step {self.before.step}.",
                f"95 % interval {low} to {high}, {count(problems, 'problem')}. "
                "Whether training helps, a second evaluation will say.",
            )
        new = display.value("avg", self.after.measures["avg"].value)
        change = self.differences["avg"]
        verb = "went" if change.includes_zero else "rose" if change.value > 0 else "fell"
        return judge(change, f"{name} {verb} from {old} to {new}", f"step {self.before.step}", problems)

    @property
    def rows(self) -> list[Row]:
        """One row a metric; none without an evaluation."""
        if self.before is None:
            return []
        rows = []
        for metric in METRICS:
            best_step, best = best_of(metric, self.run.evaluations)
            rows.append(
                Row(
                    metric,
                    display.label(metric, self.n),
                    before=self.before.measures[metric],
                    after=self.after.measures[metric] if self.after else None,
                    difference=self.differences.get(metric),
                    best=best,
                    best_step=best_step,
                )
            )
        return rows

    # ── where the time went ───────────────────────────────────────────────────────────────────────────────

    @property
    def stages(self) -> list[Stage]:
        """The stages of the optimizer steps, in their order. Stages without any time are left out."""
        seconds = self._total("seconds")
        whole = sum(seconds.values())
        return [
            Stage(name, spent, spent / whole, self._rate(name, spent)) for name, spent in seconds.items() if spent > 0
        ]

    @property
    def seconds(self) -> float:
        """The time of all stages."""
        return sum(stage.seconds for stage in self.stages)

    # ── what was taught ───────────────────────────────────────────────────────────────────────────────────

    @property
    def counts(self) -> list[tuple[str, int, str]]:
        """What became of rollouts and problems: name, number, what it means."""
        outcomes, cases, failures = (self._total(key) for key in ("outcomes", "cases", "failures"))
        dropped = self.run.manifest.get("problems", {}).get("dropped", {})
        rows = []
        if self.run.steps:
            rows = [
                ("rollouts", self.rollouts, "drawn for training"),
                ("taught", outcomes["taught"], "carry loss"),
                ("dropped", outcomes["dropped"], "carry no loss"),
                (
                    "fell back",
                    outcomes["fallback"],
                    "without a critique, to the reference solution",
                ),
                ("cut", outcomes["cut"], "taught with a teacher's prompt shortened to teacher.max_length"),
            ]
        rows += [(f"critiques of case {case}", cases[case], _CASES.get(case, "")) for case in sorted(cases)]
        rows += [(f"failed: {why}", failures[why], "no critique, or no lesson") for why in sorted(failures)]
        spent = self._total("critic_tokens")
        rows += [(f"critic's tokens: {what}", spent[what], _SPENT) for what in sorted(spent) if spent[what]]
        rows += [(f"left out: {why}", dropped[why], "problems, before training") for why in sorted(dropped)]
        return rows

    @property
    def checks(self) -> list[tuple[str, list[int]]]:
        """What became of the critiques, check by check: a number for each of `stats.OUTCOMES`."""
        total: dict[str, Counter[str]] = {}
        for step in self.run.steps:
            for name, found in step.get("checks", {}).items():
                total.setdefault(name, Counter()).update(found)
        return [(name, [total[name][outcome] for outcome in stats.OUTCOMES]) for name in stats.ordered(total)]

    @property
    def examples(self) -> list[Example]:
        """A handful of rollouts: one of each kind, those with a mended step first, then others in order."""
        kinds: dict[str, Example] = {}
        for example in self.run.examples:
            kinds.setdefault(_kind(example), example)
        chosen = sorted(kinds.values(), key=lambda example: not _mended(example))
        chosen += [example for example in self.run.examples if example not in chosen]
        return chosen[:_EXAMPLES]

    def _total(self, key: str) -> Counter[str]:
        total: Counter[str] = Counter()
        for step in self.run.steps:
            for name, amount in step.get(key, {}).items():
                total[name] += amount
        return total

    def _rate(self, stage: str, seconds: float) -> float | None:
        """Tokens a second, over the steps that spent time on the stage (a resumed one may not have)."""
        if stage not in _RATES:
            return None
        timed = (step for step in self.run.steps if stage in step.get("seconds", {}))
        tokens: float = sum(step.get(_RATES[stage], 0) for step in timed)
        return tokens / seconds


def best_of(metric: Metric, evaluations: Sequence[Evaluation]) -> tuple[int, Interval]:
    """The best value over checkpoints and its step, the earliest of equal ones.

    As in the paper's Table 1, step 0 is no checkpoint; it counts only where it is the only evaluation.
    """
    trained = [evaluation for evaluation in evaluations if evaluation.step > 0] or list(evaluations)
    sign = -1 if metric in LOWER_IS_BETTER else 1
    best = max(trained, key=lambda evaluation: (sign * evaluation.measures[metric].value, -evaluation.step))
    return best.step, best.measures[metric]


def judge(change: Difference, headline: str, against: str, problems: int, seeds: int = 1) -> Verdict:
    """A difference in Avg@n in words. An interval that includes zero never counts as a gain."""
    points, low, high = (display.difference("avg", end) for end in (change.value, change.low, change.high))
    paired = f"paired over {count(problems, 'problem')}" + (f", over {seeds} seeds each" if seeds > 1 else "")
    detail = f"{points} points against {against}, 95 % interval {low} to {high}, {paired}."
    if problems == 1:
        return Verdict("open", f"{headline}.", f"{detail} One problem shows no scatter to judge by.")
    if change.includes_zero:
        detail += " The interval includes zero."
        return Verdict("open", f"{headline}: no difference is shown.", detail)
    return Verdict("better" if change.value > 0 else "worse", f"{headline}.", detail)


def count(number: int, noun: str) -> str:
    """`1 problem`, `30 problems`."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def _mended(example: Example) -> bool:
    return isinstance(example.answer, Critique) and example.answer.first_error is not None


def _kind(example: Example) -> str:
    if example.answer is None:
        return str(example.rollout.correct)
    return example.answer.case if isinstance(example.answer, Critique) else example.answer.reason
