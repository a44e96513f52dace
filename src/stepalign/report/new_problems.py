"""Accuracy on training problems, each before the policy learned from it, of runs that attempt the same ones.

A problem's first attempts are an evaluation of the policy at that step: it was not trained on the problem yet. Runs of
one seed attempt the same problems at the same steps, so their difference is paired, and costs no further sampling. At
step 1 all policies are the base, so the problems of step 1 are left out.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from pydantic import BaseModel

from stepalign.evaluation.metrics import Metric
from stepalign.evaluation.stats import bootstrap, paired_bootstrap
from stepalign.io import read_jsonl
from stepalign.records import FinishReason, RolloutSource
from stepalign.report import display
from stepalign.report.display import Table
from stepalign.report.run import RunFiles

_METRICS: tuple[Metric, ...] = ("avg", "truncated", "length")


class _Grade(BaseModel):
    correct: bool


class _Attempt(BaseModel):
    """The part of a rollout that is read here."""

    problem_id: str
    completion_ids: tuple[int, ...]
    finish: FinishReason
    source: RolloutSource = "policy"
    grade: _Grade | None = None


Place = tuple[int, str]
"""Optimizer step and problem."""


def first_attempts(run: RunFiles) -> dict[Place, list[float]]:
    """Return correctness, truncation and length of each problem's first attempts, the means over its samples.

    Only the policy's own rollouts of finished steps after the first count.
    """
    seen: set[str] = set()
    found: dict[Place, list[float]] = {}
    for step in (line["step"] for line in run.steps):
        path = run.folder / "rollouts" / f"step-{step:06d}.jsonl"
        rows: dict[str, list[tuple[float, ...]]] = {}
        for one in read_jsonl(path, _Attempt) if path.exists() else ():
            if one.source == "policy" and one.grade and one.problem_id not in seen:
                row = one.grade.correct, one.finish == "length", len(one.completion_ids)
                rows.setdefault(one.problem_id, []).append(row)
        seen |= rows.keys()
        if step > 1:
            means = {problem: np.mean(samples, axis=0).tolist() for problem, samples in rows.items()}
            found |= {(step, problem): mean for problem, mean in means.items()}
    return found


def table(conditions: Mapping[str, Sequence[RunFiles]], *, resamples: int, seed: int) -> Table | None:
    """Compare conditions with the first one up to the last step that all have finished.

    Conditions whose runs, seed by seed, attempted other problems are left out. None where no other is left.
    """
    runs = [run for of_one in conditions.values() for run in of_one]
    last = min(run.steps[-1]["step"] if run.steps else 0 for run in runs)
    every = {label: [_until(last, first_attempts(run)) for run in of_one] for label, of_one in conditions.items()}
    baseline, *others = every
    places = [sorted(run) for run in every[baseline]]
    if not all(places) or len({len(of_run) for of_run in places}) > 1:
        return None
    same = [label for label in others if [sorted(run) for run in every[label]] == places]
    values = {
        label: np.array([[run[place] for place in of_run] for run, of_run in zip(every[label], places, strict=True)])
        for label in (baseline, *same)
    }
    rows = []
    for label, own in values.items():
        intervals = bootstrap(own, resamples=resamples, seed=seed)
        rows.append((label, [display.value_cell(*one) for one in zip(_METRICS, intervals, strict=True)]))
    for label in same:
        changes = paired_bootstrap(values[baseline], values[label], resamples=resamples, seed=seed, same_seeds=True)
        cells = [display.difference_cell(*one) for one in zip(_METRICS, changes, strict=True)]
        rows.append((f"{label} − {baseline}", cells))
    title = f"Training problems of steps 2 to {last}, each before the policy learned from it"
    note = (
        f"{len(places[0]):,} problems. Not an evaluation on held-out problems: the policy is a later one at each step."
    )
    return Table(title, ["right", "truncated", "tokens"], rows, note) if same else None


def _until(last: int, attempts: Mapping[Place, list[float]]) -> dict[Place, list[float]]:
    return {place: values for place, values in attempts.items() if place[0] <= last}
