"""Side effects of training: Pass@n, length, repetition, diversity and entropy, before and after.

Values are of each problem's evaluation rollouts, differences are paired over problems, and over seeds where there are
several. Entropy is that of the training tokens with a loss, of the first and of the last five steps: of the policy's
own rollouts only where the algorithm learns from those.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float

from stepalign.evaluation.metrics import Metric, common_metrics
from stepalign.evaluation.stats import Difference, paired_bootstrap
from stepalign.io import read_jsonl
from stepalign.records import Rollout
from stepalign.report.comparison import Comparison
from stepalign.report.display import Cell, Table
from stepalign.report.run import RunFiles
from stepalign.trainer.step_metrics import NGRAM, repeated

STEPS = 5
"""Steps at either end of a run whose entropy is averaged."""
SMALLEST = 0.01
"""The smallest change of a share that is named."""
RELATIVE = 0.1
"""The smallest relative change of length and of diversity that is named."""
OWN = ("repeated", "distinct")


def side_effects(runs: Sequence[RunFiles]) -> dict[str, tuple[float, float, Difference]]:
    """Compare the last evaluation of a condition's seeds with their first.

    Returns:
        Before, after and their difference, by metric of an evaluation and by `repeated` and `distinct` (the share of a
        problem's rollouts whose text is the first of its kind).
    """
    metrics = common_metrics([run.evaluations[at] for run in runs for at in (0, -1)])
    before, after = (np.array([_values(run, at, metrics) for run in runs]) for at in (0, -1))
    changes = paired_bootstrap(before, after, resamples=2000, seed=0, same_seeds=True)
    ends = [side.mean(axis=(0, 1)) for side in (before, after)]
    names: list[str] = [*metrics, *OWN]
    return {name: (float(ends[0][k]), float(ends[1][k]), changes[k]) for k, name in enumerate(names)}


def _values(run: RunFiles, at: int, metrics: Sequence[Metric]) -> Float[np.ndarray, "problems measures"]:
    evaluation = run.evaluations[at]
    by_problem: dict[str, list[Rollout]] = {name: [] for name in sorted(evaluation.problem_ids)}
    for rollout in read_jsonl(run.folder / "evaluations" / f"step-{evaluation.step:06d}.jsonl", Rollout):
        by_problem[rollout.problem_id].append(rollout)
    own = [
        (np.mean([repeated(one) for one in rollouts]), len({one.text for one in rollouts}) / len(rollouts))
        for rollouts in by_problem.values()
    ]
    return np.concatenate([evaluation.values(metrics), np.array(own)], axis=1)


def broken(effects: Mapping[str, tuple[float, float, Difference]], n: int) -> list[str]:
    """Name what changed for the worse: by a point or a tenth, and with an interval without zero."""
    falls = (("avg", f"Avg@{n}"), ("pass", f"Pass@{n}"), ("formatted", "format"))
    rises = (("truncated", "truncation"), ("repeated", "repetition"))
    signed = [(effects[metric], -1, name) for metric, name in falls] + [(effects[m], 1, name) for m, name in rises]
    found = [
        name
        for (before, after, change), sign, name in signed
        if not change.includes_zero and sign * (after - before) >= SMALLEST
    ]
    before, after, change = effects["length"]
    if not change.includes_zero and abs(after - before) >= RELATIVE * before:
        found.append("longer" if after > before else "shorter")
    before, after, change = effects["distinct"]
    if not change.includes_zero and before - after >= RELATIVE * before:
        found.append("diversity")
    return found


def side_effects_table(comparison: Comparison) -> Table:
    """Lay out each condition's side effects."""
    n, rows = comparison.n, []
    for condition, runs in comparison.runs.items():
        if len(runs[0].evaluations) < 2:
            continue
        effects = side_effects(runs)
        cells = [
            _cell(*effects[metric], scale, places)
            for metric, scale, places in (
                ("pass", 100, 0),
                ("length", 1, 0),
                ("repeated", 100, 1),
                ("distinct", 100, 0),
            )
        ]
        rows.append((condition, [*cells, _entropy(runs), Cell(", ".join(broken(effects, n)) or "–")]))
    columns = [f"Pass@{n}, %", "tokens", f"repeated {NGRAM}-grams, %", "distinct of a problem's, %", "entropy, nats"]
    return Table("Side effects, before → after and difference", [*columns, "worse"], rows)


def _cell(before: float, after: float, change: Difference, scale: float, places: int) -> Cell:
    low, high = (f"{scale * end:+.{places}f}".replace("-", "−") for end in (change.low, change.high))
    return Cell(f"{scale * before:.{places}f} → {scale * after:.{places}f}", (f"[{low}, {high}]",))


def _entropy(runs: Sequence[RunFiles]) -> Cell:
    values = [[step["entropy_student"] for step in run.steps if "entropy_student" in step] for run in runs]
    if not all(values):
        return Cell("–")
    first, last = (np.mean([np.mean(of_run) for of_run in part]) for part in _ends(values))
    return Cell(f"{first:.3f} → {last:.3f}")


def _ends(values: Sequence[Sequence[float]]) -> tuple[list[Sequence[float]], list[Sequence[float]]]:
    return [of_run[:STEPS] for of_run in values], [of_run[-STEPS:] for of_run in values]
