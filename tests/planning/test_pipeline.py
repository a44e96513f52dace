"""A simulated step against steps that were counted out by hand."""

import pytest

from stepalign.planning.pipeline import enough_concurrency, simulate_step


def test_critiques_come_while_others_are_sampled() -> None:
    # Two requests at once: answers at 3, 4, 5, 6. Learning of 1 s a pass of two begins at 4.
    step = simulate_step([1, 2, 3, 4], [2, 2, 2, 2], max_concurrency=2, micro_batch_size=2, learning=2.0)
    assert (step.seconds, step.waiting) == (7.0, 1.0)


def test_without_overlap_everything_waits_for_the_last_critique() -> None:
    step = simulate_step([1, 2, 3, 4], [2] * 4, max_concurrency=2, micro_batch_size=2, learning=2.0, overlap=False)
    assert (step.seconds, step.waiting) == (10.0, 4.0)


def test_one_request_at_a_time_takes_the_sum() -> None:
    step = simulate_step([0, 0, 0], [5, 5, 5], max_concurrency=1, micro_batch_size=3, learning=0.0)
    assert (step.seconds, step.waiting) == (15.0, 15.0)


def test_a_critic_faster_than_sampling_costs_its_last_answer() -> None:
    step = simulate_step([10, 20, 30], [1, 1, 1], max_concurrency=4, micro_batch_size=1, learning=3.0)
    assert (step.seconds, step.waiting) == (33.0, 0.0), "the last answer comes while the first two are learned"


@pytest.mark.parametrize(("latency", "expected"), [(0.1, 1), (8.0, 8), (1000.0, 64)])
def test_enough_concurrency_delays_a_step_by_one_part_in_twenty_at_most(latency: float, expected: int) -> None:
    sampled = [n + 1.0 for n in range(64)]
    options = {"micro_batch_size": 8, "learning": 10.0}
    enough = enough_concurrency(sampled, [latency] * 64, **options)
    assert enough <= expected
    times = {n: simulate_step(sampled, [latency] * 64, max_concurrency=n, **options).seconds for n in (enough, 64)}
    assert times[enough] <= 1.05 * times[64]
    if enough > 1:
        slower = simulate_step(sampled, [latency] * 64, max_concurrency=enough - 1, **options).seconds
        assert slower > 1.05 * times[64]
