"""Metrics of one step: its rollouts, its cost, warnings, and the line on the terminal.

Floating-point operations are counted as 2·N a token read, N the parameters of the model that reads. A token with
gradients counts twice, and three times where all weights are trained: frozen weights need no gradients of their own.
Common ids of views in one row are counted with each view, so that counts do not depend on the micro-batches; the time
that is saved by reading them once shows in `seconds`. Left out: the adapter's and attention's own, and those of a
separate critic, because the critic's tokens are counted by themselves.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from stepalign import config
from stepalign.records import SHORTFALLS, CriticResult, Critique, CritiqueFailure, Rollout
from stepalign.trace import parse_rollout
from stepalign.trainer.accumulation import READ

COSTS = ("rollouts", "problems", "generated_tokens", "teacher_tokens", "critic_tokens", "updates", "flops", "seconds")
"""Costs that conditions are compared by. `seconds` is the sum of the stages' in `metrics.jsonl`."""


WIDTH = 69
"""Characters of a step's line, so that it fits a terminal of 80 columns behind `step 1000: `."""
NGRAM = 8
"""Tokens of a repeated piece."""


def repeated(rollout: Rollout) -> float:
    """Return the share of a rollout's token n-grams that stand earlier in it."""
    ids = rollout.completion_ids
    ngrams = [ids[start : start + NGRAM] for start in range(len(ids) - NGRAM + 1)]
    return 1 - len(set(ngrams)) / len(ngrams) if ngrams else 0.0


def rollout_metrics(rollouts: Sequence[Rollout]) -> dict[str, int | float]:
    """Count a step's rollouts and tokens.

    `correct`, `formatted`, `truncated` and `on_policy` are shares of the first turn's rollouts, `correct_second` of the
    second turn's. `repeated` is the mean share of repeated 8-grams of the first turn's, and `lines` the mean number of
    lines, where all are programs.
    """
    first = [rollout for rollout in rollouts if rollout.turn == 1]
    second = [rollout for rollout in rollouts if rollout.turn == 2]
    count, traces = len(first), [parse_rollout(rollout) for rollout in first]
    values = {
        "rollouts": count,
        "completion_tokens": sum(len(rollout.completion_ids) for rollout in first),
        "correct": sum(rollout.correct for rollout in first) / count,
        "formatted": sum(trace.formatted for trace in traces) / count,
        "truncated": sum(rollout.finish == "length" for rollout in first) / count,
        "repeated": sum(map(repeated, first)) / count,
        "on_policy": sum(rollout.on_policy for rollout in first) / count,
    }
    if all(trace.is_program for trace in traces):
        values["lines"] = sum(trace.num_lines for trace in traces) / count
    if second:
        values |= {
            "rollouts_second": len(second),
            "correct_second": sum(rollout.correct for rollout in second) / len(second),
        }
    return values


def step_outcomes(
    outcomes: Mapping[str, int], rollouts: Sequence[Rollout], critiques: Sequence[CriticResult]
) -> dict[str, int]:
    """Add failed critiques, corrections by the program and restarted sandboxes to an algorithm's outcomes."""
    counts = dict(outcomes)
    if critiques:
        counts["failed"] = sum(isinstance(result, CritiqueFailure) for result in critiques)
    if mended := sum(isinstance(result, Critique) and result.mender_failed for result in critiques):
        counts["mended by program"] = mended
    if restarted := sum(rollout.grade is not None and rollout.grade.sandbox_restarts > 0 for rollout in rollouts):
        counts["sandbox restarted"] = restarted
    return counts


def step_cost(
    parameters: tuple[int, int],
    num_problems: int,
    rollouts: Sequence[Rollout],
    critiques: Sequence[CriticResult],
    update_metrics: Mapping[str, float],
    updates: int,
    *,
    full: bool,
) -> dict[str, int]:
    """Count one step's cost, seconds aside.

    Args:
        parameters: those that a token is multiplied with in the base, and in the teacher.
        num_problems: problems of the step.
        rollouts: for them; references are not sampled, so they cost nothing.
        critiques: the critic's results.
        update_metrics: tokens that student, teacher and base read in all updates.
        updates: of the policy.
        full: all weights are trained.
    """
    sampled = [rollout for rollout in rollouts if rollout.source != "reference"]
    generated = sum(len(rollout.completion_ids) for rollout in sampled)
    read = Counter[str]()
    for rollout in sampled:
        read[rollout.source] += len(rollout.prompt_ids) + len(rollout.completion_ids)
    student, teacher, base = (int(update_metrics.get(name, 0)) for name in READ)
    of_base, of_teacher = parameters
    return {
        "rollouts": len(sampled),
        "problems": num_problems,
        "generated_tokens": generated,
        "teacher_tokens": teacher + base,
        "critic_tokens": sum(result.prompt_tokens + result.completion_tokens for result in critiques),
        "updates": updates,
        "flops": 2 * of_base * (read["policy"] + base + (3 if full else 2) * student)
        + 2 * of_teacher * (read["teacher"] + teacher),
    }


def step_warnings(
    rollouts: Sequence[Rollout],
    update_metrics: Mapping[str, float],
    failures: Mapping[str, int],
    sampling: config.SamplingConfig,
    tolerance: float,
) -> Iterator[str]:
    """Yield warnings about a step that do not end the run. `tolerance` is the sampler's, in nats a token."""
    if all(rollout.finish == "length" for rollout in rollouts):
        yield f"every rollout reached sampling.max_new_tokens = {sampling.max_new_tokens}"
    if len({rollout.text for rollout in rollouts}) == 1 and len(rollouts) > 1:
        yield f"all {len(rollouts)} rollouts are the same text: {rollouts[0].text[:60]!r}"
    if (mismatch := update_metrics.get("sampler_mismatch_max", 0.0)) > tolerance:
        yield (
            f"the sampler's log-probabilities of a rollout differ from the trainer's by {mismatch:.2g} nats a token "
            f"(sampler.tolerance = {tolerance:g})"
        )
    if "loss" not in update_metrics:
        yield f"no rollout carries a gradient, so no update was made (dropped: {dict(failures)})"


def numbers(line: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """Yield every number of a step's line under its keys, joined by a slash, as trackers name it."""
    for key, value in line.items():
        if isinstance(value, Mapping):
            yield from numbers(value, f"{prefix}{key}/")
        elif isinstance(value, int | float):
            yield f"{prefix}{key}", value


def step_line(values: Mapping[str, Any], outcomes: Mapping[str, int], seconds: Mapping[str, float]) -> str:
    """Write a step's metrics, what failed, fell back or dropped out, and its seconds in one line.

    The largest stages are named, as many as leave the line within `WIDTH`. All are in `metrics.jsonl`.
    """
    parts = [f"loss {values['loss']:.4f}"] if "loss" in values else []
    parts += [f"correct {values['correct']:.0%}", f"{values['completion_tokens'] / values['rollouts']:.0f} tokens"]
    parts += [f"{outcomes[name]} {name}" for name in ("failed", *SHORTFALLS, "masked") if outcomes.get(name)]
    parts += [f"canary {name}" for name in values.get("canaries", ())]
    total = sum(seconds.values())
    line = ", ".join([*parts, f"{total:.1f} s" if total < 10 else f"{total:.0f} s"])
    stages = [
        f"{name} {seconds[name] / total:.0%}" for name in sorted(seconds, key=lambda name: -seconds[name]) if total
    ]
    while stages and len(f"{line} ({', '.join(stages)})") > WIDTH:
        stages.pop()
    return f"{line} ({', '.join(stages)})" if stages else line
