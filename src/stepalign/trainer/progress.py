"""What a step's rollouts and update come to: metrics, one line, and what a person should know."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from stepalign import config
from stepalign import trace as traces
from stepalign.records import Rollout


def measured(rollouts: Sequence[Rollout]) -> dict[str, int | float]:
    """A step's rollouts in figures; `correct`, `formatted` and `truncated` are shares of them."""
    drawn = len(rollouts)
    return {
        "rollouts": drawn,
        "completion_tokens": sum(len(rollout.completion_ids) for rollout in rollouts),
        "correct": sum(rollout.correct for rollout in rollouts) / drawn,
        "formatted": sum(traces.parse(rollout.text).formatted for rollout in rollouts) / drawn,
        "truncated": sum(rollout.finish == "length" for rollout in rollouts) / drawn,
    }


def warnings(
    rollouts: Sequence[Rollout],
    learnt: Mapping[str, float],
    failures: Mapping[str, int],
    sampling: config.SamplingConfig,
) -> Iterator[str]:
    """What went wrong with a step without ending it."""
    if all(rollout.finish == "length" for rollout in rollouts):
        yield f"every rollout ran into sampling.max_new_tokens = {sampling.max_new_tokens}"
    if len({rollout.text for rollout in rollouts}) == 1 and len(rollouts) > 1:
        yield f"all {len(rollouts)} rollouts are the same text: {rollouts[0].text[:60]!r}"
    if "loss" not in learnt:
        yield f"nothing to learn from, no update (dropped: {dict(failures)})"


def line(values: Mapping[str, Any], seconds: Mapping[str, float]) -> str:
    """A step in a line: its metrics, and each stage's share of its seconds."""
    loss = f"loss {values['loss']:.4f}, " if "loss" in values else ""
    spent = sum(seconds.values()) or 1.0
    return (
        f"{loss}correct {values['correct']:.0%}, {values['completion_tokens'] / values['rollouts']:.0f} tokens, "
        + ", ".join(f"{name} {value / spent:.0%}" for name, value in seconds.items())
        + f" of {spent:.0f} s"
    )
