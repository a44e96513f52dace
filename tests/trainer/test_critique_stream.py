"""Grades and critiques behind the sampler: nothing is lost, and nothing waits that need not."""

import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace

import pytest

from stepalign.algorithms.base import StepExamples
from stepalign.algorithms.distillation_loss import DistillationExample
from stepalign.console import Console
from stepalign.critics.arithmetic.critic import ProgramCritic
from stepalign.errors import StepalignError
from stepalign.records import CriticResult, Critique, CritiqueFailure, Grade, Problem, Rollout
from stepalign.rewards import Grader
from stepalign.rewards.math import MathGrader
from stepalign.trainer.critique_stream import CritiqueStream, iter_micro_batches
from stepalign.views import View

PROBLEMS = {f"p{n}": Problem(id=f"p{n}", statement=f"Compute {n} + 1.", answer=str(n + 1)) for n in range(6)}


def attempt(number: int) -> Rollout:
    result = number + 1 + number % 2
    text = f"### Step 1: Add\n{number} + 1 = {result}\n\n### Final Answer:\n\\boxed{{{result}}}"
    return Rollout(
        id=f"r{number}",
        problem_id=f"p{number}",
        completion_ids=(0,) * (number + 1),
        token_starts=(0,) * (number + 1),
        text=text,
        finish="stop",
    )


ATTEMPTS = [attempt(number) for number in range(6)]


class Held:
    """The program critic, which lets an answer go when it is told to."""

    name = "held"

    def __init__(self) -> None:
        self.taken: list[str] = []
        self.go = threading.Semaphore(0)
        self.closed = threading.Event()

    def critique(self, attempts: Iterable[tuple[Problem, Rollout]]) -> Iterator[Critique | CritiqueFailure]:
        try:
            for problem, rollout in attempts:
                assert rollout.grade is not None
                self.taken.append(rollout.id)
                assert self.go.acquire(timeout=30)
                yield from ProgramCritic().critique([(problem, rollout)])
        finally:
            self.closed.set()


@pytest.fixture(scope="module")
def grader() -> Iterator[Grader]:
    with MathGrader() as grader:
        yield grader


def until(true: object) -> None:
    """Wait for what a thread is about to do."""
    end = time.monotonic() + 30
    while not true():  # type: ignore[operator]
        assert time.monotonic() < end
        time.sleep(0.005)


@pytest.mark.parametrize("concurrent", [True, False])
def test_grades_and_critiques_are_those_of_grader_and_critic_alone(concurrent: bool, grader: Grader) -> None:
    with CritiqueStream(PROBLEMS, grader, ProgramCritic(), concurrent=concurrent) as stream:
        for rollout in ATTEMPTS:
            stream.submit(rollout)
        graded = stream.graded(ATTEMPTS[::-1])
        answers = list(stream.results())
    assert graded == grader.grade(ATTEMPTS[::-1], PROBLEMS)
    alone = ProgramCritic().critique((PROBLEMS[rollout.problem_id], rollout) for rollout in graded[::-1])
    assert [(a.rollout_id, a.text) for a in answers if isinstance(a, Critique)] == [
        (a.rollout_id, a.text) for a in alone if isinstance(a, Critique)
    ]
    assert len(answers) == 6
    assert len(stream.spans) == (6 if concurrent else 0)


def test_a_grade_that_was_kept_stays(grader: Grader) -> None:
    (right,) = grader.grade(ATTEMPTS[:1], PROBLEMS)
    kept = replace(right, grade=Grade(correct=False, outcome="timeout"))
    with CritiqueStream(PROBLEMS, grader, None, concurrent=True) as stream:
        stream.submit(kept)
        assert stream.graded([kept]) == [kept]


def test_the_critic_is_asked_while_others_are_drawn(grader: Grader) -> None:
    critic = Held()
    with CritiqueStream(PROBLEMS, grader, critic, concurrent=True) as stream:
        stream.submit(ATTEMPTS[0])
        until(lambda: critic.taken == ["r0"])
        for rollout in ATTEMPTS[1:]:
            stream.submit(rollout)
        assert [rollout.id for rollout in stream.graded(ATTEMPTS)] == [f"r{n}" for n in range(6)], "nobody waits"
        assert stream.drain(wait=False) == []
        critic.go.release()
        (first,) = stream.drain(wait=True)
        assert first.rollout_id == "r0"
        critic.go.release(5)
        assert [answer.rollout_id for answer in stream.results()] == [f"r{n}" for n in range(1, 6)]
        assert stream.exhausted
        assert stream.drain(wait=True) == []
    begun, ended = zip(*stream.spans, strict=True)
    assert all(start <= end for start, end in stream.spans)
    assert list(ended) == sorted(ended)
    assert begun[0] < ended[0] < begun[1] < ended[1]


def test_without_overlap_nobody_is_asked_before_answers_are_wanted(grader: Grader) -> None:
    critic = Held()
    with CritiqueStream(PROBLEMS, grader, critic, concurrent=False) as stream:
        stream.submit(ATTEMPTS[0])
        stream.graded(ATTEMPTS[:1])
        assert critic.taken == []
        critic.go.release()
        assert [answer.rollout_id for answer in stream.results()] == ["r0"]


def test_without_a_critic_there_are_grades_alone(grader: Grader) -> None:
    with CritiqueStream(PROBLEMS, grader, None, concurrent=True) as stream:
        stream.submit(ATTEMPTS[1])
        (graded,) = stream.graded(ATTEMPTS[1:2])
        assert not graded.correct
        assert list(stream.results()) == []


def test_a_critic_that_breaks_is_an_error_once_the_rollouts_are_there(grader: Grader) -> None:
    class Broken(Held):
        def critique(self, attempts: Iterable[tuple[Problem, Rollout]]) -> Iterator[Critique | CritiqueFailure]:
            yield from ProgramCritic().critique([next(iter(attempts))])
            raise StepalignError("no endpoint answers")

    with CritiqueStream(PROBLEMS, grader, Broken(), concurrent=True) as stream:
        for rollout in ATTEMPTS:
            stream.submit(rollout)
        assert len(stream.graded(ATTEMPTS)) == 6
        with pytest.raises(StepalignError, match="no endpoint answers"):
            list(stream.results())


def test_a_grader_that_breaks_is_an_error_where_the_grades_are_wanted(grader: Grader) -> None:
    with CritiqueStream({}, grader, ProgramCritic(), concurrent=True) as stream:
        stream.submit(ATTEMPTS[0])
        with pytest.raises(StepalignError, match="there is no problem 'p0'"):
            stream.graded(ATTEMPTS[:1])


def test_an_interrupted_step_does_not_wait_for_the_critic_and_leaves_it(grader: Grader) -> None:
    critic = Held()
    stream = CritiqueStream(PROBLEMS, grader, critic, concurrent=True)
    stream.__enter__()
    for rollout in ATTEMPTS:
        stream.submit(rollout)
    until(lambda: critic.taken == ["r0"])
    stream.__exit__(KeyboardInterrupt, None, None)
    assert not critic.closed.is_set()
    critic.go.release()
    assert critic.closed.wait(timeout=30)
    assert critic.taken == ["r0"], "with its next answer it is left"


# ── micro-batches of what is ready ────────────────────────────────────────────────────────────────────────────


def example_of(answer: CriticResult) -> DistillationExample:
    length = int(answer.rollout_id[1:]) + 1
    view = View(prompt_ids=(0,), completion_ids=(0,) * length, loss_start=0, loss_stop=length)
    return DistillationExample(rollout_id=answer.rollout_id, student=view, teacher=view)


def test_learning_begins_with_the_first_full_micro_batch(grader: Grader) -> None:
    critic = Held()
    with CritiqueStream(PROBLEMS, grader, critic, concurrent=True) as stream, Console() as console:
        for rollout in ATTEMPTS:
            stream.submit(rollout)
        stream.graded(ATTEMPTS)
        micros = iter_micro_batches(stream, lambda answers: [*map(example_of, answers)], 2, None, False, console)
        critic.go.release(2)
        assert [lesson.rollout_id for lesson in next(micros)] == ["r1", "r0"]
        assert len(critic.taken) == 3, "the third is still with the critic"
        critic.go.release(4)
        until(lambda: len(stream.spans) == 6)
        assert [[lesson.rollout_id for lesson in micro] for micro in micros] == [["r5", "r4"], ["r3", "r2"]], (
            "of all that are ready the longest"
        )
    assert console.seconds["critique"] > 0


def test_what_cannot_be_learnt_from_delays_nothing_and_a_rest_is_a_micro_batch_of_its_own(grader: Grader) -> None:
    with CritiqueStream(PROBLEMS, grader, ProgramCritic(), concurrent=True) as stream, Console() as console:
        for rollout in ATTEMPTS:
            stream.submit(rollout)
        stream.graded(ATTEMPTS)
        micros = iter_micro_batches(
            stream, lambda answers: [example_of(a) for a in answers if a.rollout_id != "r3"], 2, None, False, console
        )
        taken = [lesson.rollout_id for micro in micros for lesson in micro]
    assert sorted(taken) == ["r0", "r1", "r2", "r4", "r5"]


def test_a_step_taken_in_part_by_part_is_the_step() -> None:
    parts = []
    for name in ("a", "b"):
        part: StepExamples[DistillationExample] = StepExamples()
        part.outcomes["trained"] += 1
        part.cases[name] += 2
        part.failures["parse"] += 1
        parts.append(part)
    whole, rest = parts
    whole.extend(rest)
    assert (whole.outcomes, whole.cases, whole.failures) == ({"trained": 2}, {"a": 2, "b": 2}, {"parse": 2})
