"""How well a critic finds the first wrong step, as ProcessBench scores it (arXiv 2412.06559, Section 3).

On a trace with an error the critic is right if it names the very first wrong step, on a trace without one if it finds
none. `F1` is the harmonic mean of the two accuracies, so that neither a critic that always complains nor one that never
does scores well. A failure is a miss. Of natural traces only the final answer's label is known: finding any error in a
wrong one is a hit. Intervals are percentile bootstraps over problems, whose traces stay together.

Unlike ProcessBench's, critics here know the reference answer, and with it whether the final answer is right: the
accuracy on correct traces is therefore high, and the first error is what tells critics apart.
"""

from collections.abc import Iterable, Sequence

import numpy as np
from pydantic.dataclasses import dataclass

from stepalign.evaluation.stats import Interval, interval, resample
from stepalign.records import Critique, CritiqueFailure


@dataclass(frozen=True)
class Trial:
    """One trace, and whether the critic was right about it."""

    problem_id: str
    wrong: bool
    """Whether the trace has an error."""
    hit: bool


def judged_step(answer: Critique | CritiqueFailure, first_error: int | None) -> bool:
    """Whether a critic found exactly this first wrong step; None: no error."""
    return isinstance(answer, Critique) and answer.first_error == first_error


def judged_outcome(answer: Critique | CritiqueFailure, *, wrong: bool) -> bool:
    """Whether a critic found an error where there must be one, and none where the final answer is right."""
    return isinstance(answer, Critique) and (answer.first_error is not None) == wrong


def accuracies(trials: Sequence[Trial], *, resamples: int = 2000, seed: int = 0) -> dict[str, Interval]:
    """`wrong`, `right` and `F1`, of which those that have traces behind them."""
    problems = {name: index for index, name in enumerate(dict.fromkeys(trial.problem_id for trial in trials))}
    counts = np.zeros((len(problems), 4))  # hits and traces, of wrong and of right ones
    for trial in trials:
        column = 0 if trial.wrong else 2
        counts[problems[trial.problem_id], column : column + 2] += (trial.hit, 1)
    found: dict[str, Interval] = {}
    if not trials:
        return found
    drawn = resample(len(counts), resamples=resamples, seed=seed) @ counts / len(counts)
    drawn = drawn[(drawn[:, [1, 3]] > 0).sum(axis=1) == (counts.sum(axis=0)[[1, 3]] > 0).sum()]
    every = np.concatenate([counts.mean(axis=0, keepdims=True), drawn])
    with np.errstate(invalid="ignore", divide="ignore"):
        wrong, right = every[:, 0] / every[:, 1], every[:, 2] / every[:, 3]
        f1 = np.where(wrong + right > 0, 2 * wrong * right / (wrong + right), 0.0)
    n_wrong, n_right = int(counts[:, 1].sum()), int(counts[:, 3].sum())
    for name, values, n in (("wrong", wrong, n_wrong), ("right", right, n_right), ("F1", f1, n_wrong + n_right)):
        if n and not (name == "F1" and not (n_wrong and n_right)):
            found[name] = interval(float(values[0]), values[1:], n=n)
    return found


def by_kind(trials: Iterable[tuple[str, Trial]], *, resamples: int = 2000, seed: int = 0) -> dict[str, Interval]:
    """The accuracy on wrong traces, kind by kind."""
    groups: dict[str, list[Trial]] = {}
    for kind, trial in trials:
        groups.setdefault(kind, []).append(trial)
    return {kind: accuracies(group, resamples=resamples, seed=seed)["wrong"] for kind, group in sorted(groups.items())}
