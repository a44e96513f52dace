"""Simulation of one step: rollouts end, critics answer them, learning takes micro-batches of those that are answered.

A critic works on a number of requests at once and takes each for its latency. Learning begins when sampling has ended,
because both use the same device. It takes a micro-batch as soon as enough critiques are there.

    python bench/overlap.py      # the simulation beside measured steps
"""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class StepTime:
    """Seconds of one simulated step."""

    seconds: float
    waiting: float
    """The part of it in which learning waits for critiques."""


def simulate_step(
    sampled: Sequence[float],
    latencies: Sequence[float],
    *,
    max_concurrency: int,
    micro_batch_size: int,
    learning: float,
    overlap: bool = True,
) -> StepTime:
    """Simulate one step.

    Args:
        sampled: seconds at which each rollout ends.
        latencies: seconds that the critic takes for each.
        max_concurrency: requests that the critics work on at once.
        micro_batch_size: rollouts in one pass of learning.
        learning: seconds of all passes together.
        overlap: critiques are asked for while others are sampled, and learned from as they come.
    """
    end_of_sampling = max(sampled)
    busy: list[float] = []
    answered = []
    for ready, latency in sorted(zip(sampled, latencies, strict=True)):
        start = ready if overlap else end_of_sampling
        if len(busy) == max_concurrency:
            start = max(start, heapq.heappop(busy))
        heapq.heappush(busy, start + latency)
        answered.append(start + latency)
    answered.sort()
    now = end_of_sampling if overlap else max(end_of_sampling, answered[-1])
    waiting = now - end_of_sampling
    for first in range(0, len(answered), micro_batch_size):
        batch = answered[first : first + micro_batch_size]
        waiting += max(0.0, batch[-1] - now)
        now = max(now, batch[-1]) + learning * len(batch) / len(answered)
    return StepTime(seconds=now, waiting=waiting)


def enough_concurrency(
    sampled: Sequence[float], latencies: Sequence[float], *, micro_batch_size: int, learning: float
) -> int:
    """Return the fewest requests at once that delay a step by 5 % at most, beside a critic without limit."""

    def seconds(concurrency: int) -> float:
        return simulate_step(
            sampled, latencies, max_concurrency=concurrency, micro_batch_size=micro_batch_size, learning=learning
        ).seconds

    goal = 1.05 * seconds(len(sampled))
    low, high = 1, len(sampled)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if seconds(middle) <= goal else (middle + 1, high)
    return low
