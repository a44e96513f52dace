"""The paper's filter: keep problems that the solver seldom solves but writes in the format.

n attempts by the solver at every problem; a problem is kept with Avg@n < `max_accuracy` and a format accuracy >
`min_format_accuracy` (paper: n 16, below 5/16, above 0.9: 312 problems). Some kept problems are held out. One folder:

    settings.json       what the attempts depend on; a folder goes on with these settings or not at all
    attempts.jsonl      graded rollouts, in the order of completion
    train.jsonl, evaluation.jsonl      Problem records
    manifest.json       counts, reasons and every problem's accuracies

All attempts at one problem are appended at once, when the last of them is graded. A kill leaves at most a
half-written line, or too few attempts at the last problem, at the file's end. Both are cut off and done again.

The caller samples and grades, so nothing here depends on models. Left out: stopping early at problems that can no
longer pass, because accuracies could then not be compared.

    stepalign select paper/select --out selection
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import JsonValue

from stepalign import config, trace
from stepalign.append_log import AppendLog
from stepalign.data import Loaded, split
from stepalign.errors import StepalignError
from stepalign.io import claim, to_json, write_json, write_jsonl
from stepalign.records import Problem, Rollout

Attempt = Callable[[Sequence[Problem]], Iterable[Rollout]]
"""Yields `num_attempts` graded rollouts of each problem, in any order."""
Rates = tuple[float, float]
"""Avg@n of a problem, and the share of its attempts in the format (`trace.Trace.formatted`)."""


@dataclass(frozen=True, kw_only=True)
class Selected:
    """Problems that pass the filter, and counts of the others."""

    train: tuple[Problem, ...]
    evaluation: tuple[Problem, ...]
    dropped: dict[str, int]
    """Problems left out, by reason: `accuracy`, `format`, `accuracy and format`."""


def select(
    loaded: Loaded,
    attempt: Attempt,
    settings: config.SelectionConfig,
    *,
    folder: Path,
    holdout: int,
    seed: int,
    batch: int,
    fingerprint: Mapping[str, JsonValue],
    free: Sequence[str] = (),
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Selected:
    """Attempt every problem, filter, split, and write the folder. A killed selection continues.

    Args:
        loaded: the problems, and what their source left out (for the manifest).
        attempt: samples and grades.
        settings: number of attempts, and the bounds.
        folder: for the results.
        holdout: problems split off for evaluation.
        seed: of the split.
        batch: problems passed to `attempt` at once; a kill costs at most the unfinished ones of one batch.
        fingerprint: what the attempts depend on beside problems and number: model, prompts, sampling, seed.
        free: its keys that may change when a selection resumes.
        progress: called with the problems finished and their number, at the start and after each.

    Raises:
        StepalignError: the folder has other settings (naming what differs), no problem passes, or none would
            be left beside the hold-out.
    """
    problems = loaded.problems
    filtering = {"selection": settings.model_dump(mode="json"), "holdout": holdout, "seed": seed}
    digest = hashlib.blake2b("\n".join(map(to_json, problems)).encode(), digest_size=8).hexdigest()
    claim(
        folder / "settings.json",
        {
            **fingerprint,
            "attempts": settings.num_attempts,
            "problems": {"count": len(problems), "digest": digest},
            "filter": filtering,
        },
        started=(folder / "attempts.jsonl").exists(),
        refusal="its attempts were sampled with other settings, or filtered with others. Choose another folder; where "
        "only `filter` differs, remove manifest.json to filter the same attempts again",
        free=(*free, *(() if (folder / "manifest.json").exists() else ("filter",))),
        optional=("words",),  # earlier releases kept fewer
    )
    rates = _attempt_all(problems, attempt, folder / "attempts.jsonl", settings.num_attempts, batch, progress)

    reasons = {problem.id: _reason(*rates[problem.id], settings) for problem in problems}
    kept = [problem for problem in problems if not reasons[problem.id]]
    dropped = dict(Counter(reason for reason in reasons.values() if reason))
    if not kept:
        counts = ", ".join(f"{count} by {reason}" for reason, count in dropped.items())
        raise StepalignError(
            f"{folder}: none of {len(problems)} problems passed the selection: dropped {counts} "
            f"(max_accuracy = {settings.max_accuracy:g}, min_format_accuracy = {settings.min_format_accuracy:g})"
        )
    train, evaluation = split(kept, holdout, seed)
    write_jsonl(folder / "train.jsonl", train)
    write_jsonl(folder / "evaluation.jsonl", evaluation)
    held_out = {problem.id for problem in evaluation}
    manifest = {
        **filtering,
        "counts": {"loaded": len(problems), "kept": len(kept), "train": len(train), "evaluation": len(evaluation)},
        "dropped_by_source": {
            reason: {"count": count, "places": loaded.places.get(reason, [])}
            for reason, count in loaded.dropped.items()
        },
        "dropped": dropped,
        "problems": [
            {
                "id": problem.id,
                "accuracy": rates[problem.id][0],
                "format_accuracy": rates[problem.id][1],
                "dropped": reasons[problem.id] or None,
                "held_out": problem.id in held_out,
            }
            for problem in problems
        ],
    }
    write_json(folder / "manifest.json", manifest)
    return Selected(train=tuple(train), evaluation=tuple(evaluation), dropped=dropped)


def _attempt_all(
    problems: Sequence[Problem],
    attempt: Attempt,
    path: Path,
    num_attempts: int,
    batch: int,
    progress: Callable[[int, int], None],
) -> Mapping[str, Rates]:
    """Sample the attempts missing in the log. Append each problem when its last attempt is graded."""
    log = AppendLog(path, Rollout)
    rates = _read(log, num_attempts)
    progress(len(rates), len(problems))
    waiting = [problem for problem in problems if problem.id not in rates]
    for start in range(0, len(waiting), batch):
        unfinished: dict[str, list[Rollout]] = {problem.id: [] for problem in waiting[start : start + batch]}
        for rollout in attempt(waiting[start : start + batch]):
            group = unfinished[rollout.problem_id]
            group.append(rollout)
            if len(group) == num_attempts:
                finished = _rates(group)
                log.append(*sorted(group, key=lambda rollout: rollout.sample), durable=True)
                rates[rollout.problem_id] = finished
                del unfinished[rollout.problem_id]
                progress(len(rates), len(problems))
        if unfinished:
            counts = ", ".join(f"{name}: {len(group)}" for name, group in unfinished.items())
            raise ValueError(f"{num_attempts} attempts at each problem wanted, found {counts}")
    return rates


def _read(log: AppendLog[Rollout], num_attempts: int) -> dict[str, Rates]:
    """Read the attempts of an earlier process, and cut off those of an unfinished problem."""
    rates: dict[str, Rates] = {}
    group: list[Rollout] = []
    end = 0
    for rollout in log.read():
        if rollout.problem_id in rates or (group and group[0].problem_id != rollout.problem_id):
            raise StepalignError(f"{log.place}: an attempt at {rollout.problem_id} outside its group of {num_attempts}")
        group.append(rollout)
        if len(group) == num_attempts:
            rates[rollout.problem_id] = _rates(group)
            group, end = [], log.offset
    log.truncate(end)
    return rates


def _rates(group: Sequence[Rollout]) -> Rates:
    if ungraded := [rollout.id for rollout in group if rollout.grade is None]:
        raise ValueError(f"rollout {ungraded[0]} is not graded")
    formatted = sum(trace.parse_rollout(rollout).formatted for rollout in group)
    return sum(rollout.correct for rollout in group) / len(group), formatted / len(group)


def _reason(accuracy: float, format_accuracy: float, settings: config.SelectionConfig) -> str:
    """Return the bounds that a problem fails; empty where it passes."""
    failed = {
        "accuracy": accuracy >= settings.max_accuracy,
        "format": format_accuracy <= settings.min_format_accuracy,
    }
    return " and ".join(name for name, fails in failed.items() if fails)
