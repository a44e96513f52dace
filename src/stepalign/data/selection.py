"""The paper's filter: keep problems that the solver seldom solves but writes in the format.

n attempts by the solver at every problem; a problem is kept with Avg@n < `max_accuracy` and a format accuracy >
`min_format_accuracy` (paper: n 16, below 5/16, above 0.9: 312 problems). Some kept problems are held out. One folder:

    settings.json       what the attempts depend on; a folder goes on with these settings or not at all
    attempts.jsonl      graded rollouts, in the order of completion
    train.jsonl, evaluation.jsonl      Problem records
    manifest.json       counts, reasons and every problem's accuracies

The caller samples and grades, so nothing here depends on models. Left out: stopping early at problems that can no
longer pass, because accuracies could then not be compared.

    stepalign select recipes/paper/stepalign.toml --out problems/openmath
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import JsonValue

from stepalign import config
from stepalign.data.attempts import AttemptLog, AttemptStats
from stepalign.data.normalize import Loaded
from stepalign.data.split import split
from stepalign.errors import StepalignError
from stepalign.io import claim, to_json, write_json, write_jsonl
from stepalign.records import Problem, Rollout

Attempt = Callable[[Sequence[Problem]], Iterable[Rollout]]
"""Yields `num_attempts` graded rollouts of each problem, in any order."""


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
    progress: Callable[[int, int], None] | None = None,
) -> Selected:
    """Attempt every problem, filter, split, and write the folder. A killed selection continues.

    Args:
        loaded: the problems, and what their source left out (for the manifest).
        attempt: samples and grades.
        settings: number of attempts, and the bounds.
        folder: the results.
        holdout: problems split off for evaluation.
        seed: of the split.
        batch: problems passed to `attempt` at once; a kill costs at most the unfinished ones of one batch.
        fingerprint: what the attempts depend on beside problems and number: model, prompts, sampling, seed.
        progress: called with the problems finished and their number, at the start and after each.

    Raises:
        StepalignError: the folder has other settings (naming what differs), no problem passes, or none would
            be left beside the hold-out.
    """
    filtering = {"selection": settings.model_dump(mode="json"), "holdout": holdout, "seed": seed}
    digest = hashlib.blake2b("\n".join(map(to_json, loaded.problems)).encode(), digest_size=8).hexdigest()
    claim(
        folder / "settings.json",
        {
            **fingerprint,
            "attempts": settings.num_attempts,
            "problems": {"count": len(loaded.problems), "digest": digest},
            "filter": filtering,
        },
        started=(folder / "attempts.jsonl").exists(),
        refusal="its attempts were sampled with other settings, or filtered with others. Choose another folder; where "
        "only `filter` differs, remove manifest.json to filter the same attempts again",
        free=() if (folder / "manifest.json").exists() else ("filter",),
    )
    log = AttemptLog(folder / "attempts.jsonl", settings.num_attempts)
    stats = _attempt_all(loaded.problems, attempt, log, batch, progress)

    reasons = {problem.id: _reason(stats[problem.id], settings) for problem in loaded.problems}
    kept = [problem for problem in loaded.problems if not reasons[problem.id]]
    dropped = dict(Counter(reason for reason in reasons.values() if reason))
    if not kept:
        counts = ", ".join(f"{count} by {reason}" for reason, count in dropped.items())
        raise StepalignError(
            f"{folder}: none of {len(loaded.problems)} problems passed the selection: dropped {counts} "
            f"(max_accuracy = {settings.max_accuracy:g}, min_format_accuracy = {settings.min_format_accuracy:g})"
        )
    train, evaluation = split(kept, holdout, seed)

    held_out = {problem.id for problem in evaluation}
    write_jsonl(folder / "train.jsonl", train)
    write_jsonl(folder / "evaluation.jsonl", evaluation)
    write_json(
        folder / "manifest.json",
        filtering
        | {
            "counts": {
                "loaded": len(loaded.problems),
                "kept": len(kept),
                "train": len(train),
                "evaluation": len(evaluation),
            },
            "dropped_by_source": {
                reason: {"count": count, "places": loaded.places.get(reason, [])}
                for reason, count in loaded.dropped.items()
            },
            "dropped": dropped,
            "problems": [
                {
                    "id": problem.id,
                    "accuracy": stats[problem.id].accuracy,
                    "format_accuracy": stats[problem.id].format_accuracy,
                    "dropped": reasons[problem.id] or None,
                    "held_out": problem.id in held_out,
                }
                for problem in loaded.problems
            ],
        },
    )
    return Selected(train=tuple(train), evaluation=tuple(evaluation), dropped=dropped)


def _attempt_all(
    problems: Sequence[Problem],
    attempt: Attempt,
    log: AttemptLog,
    batch: int,
    progress: Callable[[int, int], None] | None,
) -> Mapping[str, AttemptStats]:
    """Sample the attempts missing in the log. Append each problem when its last attempt is graded."""
    report = progress or (lambda done, total: None)
    report(len(log.stats), len(problems))
    waiting = [problem for problem in problems if problem.id not in log.stats]
    for start in range(0, len(waiting), batch):
        open_rollouts: dict[str, list[Rollout]] = {problem.id: [] for problem in waiting[start : start + batch]}
        for rollout in attempt(waiting[start : start + batch]):
            rollouts = open_rollouts[rollout.problem_id]
            rollouts.append(rollout)
            if len(rollouts) == log.attempts:
                log.append(sorted(rollouts, key=lambda rollout: rollout.sample))
                del open_rollouts[rollout.problem_id]
                report(len(log.stats), len(problems))
        if open_rollouts:
            counts = ", ".join(f"{name}: {len(rollouts)}" for name, rollouts in open_rollouts.items())
            raise ValueError(f"{log.attempts} attempts at each problem wanted, found {counts}")
    return log.stats


def _reason(stats: AttemptStats, settings: config.SelectionConfig) -> str:
    """Return the bounds that a problem fails; empty where it passes."""
    failed = {
        "accuracy": stats.accuracy >= settings.max_accuracy,
        "format": stats.format_accuracy <= settings.min_format_accuracy,
    }
    return " and ".join(name for name, fails in failed.items() if fails)
