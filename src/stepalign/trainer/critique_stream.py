"""Grades and critiques behind the sampler: both are made while other rollouts are still drawn.

Drawing and learning want the device; grading is work for other processes, and a served critic another machine. So
each rollout that ends is graded in one thread and handed to the critic in another, however many the critic has under
way, and answers are taken out as they are ready. Within an optimizer step the policy stays the same, so nothing here
is off-policy.

Left out: asking ahead across optimizer steps, which would be.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from queue import Empty, SimpleQueue
from threading import Thread
from types import TracebackType
from typing import TypeVar

from stepalign.console import Console
from stepalign.critics import Critic
from stepalign.records import CriticResult, Problem, Rollout
from stepalign.rewards import Grader
from stepalign.views import TrainingExample, micro_batches

L = TypeVar("L", bound=TrainingExample)


class CritiqueStream:
    """The grades and the critic's answers of one optimizer step. Use it as a context manager."""

    def __init__(
        self, problems: Mapping[str, Problem], grader: Grader, critic: Critic | None, *, at_once: bool
    ) -> None:
        """Nothing starts before the first rollout.

        Args:
            problems: by id.
            grader: compares answers.
            critic: None asks nobody.
            at_once: ask while rollouts are still drawn; else once all are there, in the thread that wants answers.
        """
        self._problems, self._grader, self._critic = problems, grader, critic
        self._at_once = at_once and critic is not None
        self._drawn: SimpleQueue[Rollout | None] = SimpleQueue()
        self._asked: SimpleQueue[Rollout | None] = SimpleQueue()
        self._answers: SimpleQueue[CriticResult | BaseException | None] = SimpleQueue()
        self._graded: dict[str, Rollout] = {}
        self._fault: BaseException | None = None
        self._given_up = False
        self.exhausted = critic is None
        """Whether every answer has been taken."""
        # Daemons: an interrupted run does not wait for a critic.
        self._grading = Thread(target=self._grade, name="grading", daemon=True)
        self._asking = Thread(target=self._ask, name="asking", daemon=True)
        self.spans: list[tuple[float, float]] = []
        """When each rollout was handed to the critic, and when it was answered (`time.perf_counter`)."""

    def __enter__(self) -> "CritiqueStream":
        self._grading.start()
        if self._at_once:
            self._asking.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Take no more. What is under way after an error is dropped with the critic's next answer."""
        self._given_up = True
        self._drawn.put(None)

    def add(self, rollout: Rollout) -> None:
        """Have an attempt graded, if it has no grade yet, and criticized."""
        self._drawn.put(rollout)

    def graded(self, rollouts: Sequence[Rollout]) -> list[Rollout]:
        """The rollouts with their grades; they are all that were, or will be, added.

        Raises:
            StepalignError: what the grader raised.
        """
        self._drawn.put(None)
        self._grading.join()
        if self._fault is not None:
            raise self._fault
        return [self._graded[rollout.id] for rollout in rollouts]

    def answers(self) -> Iterator[CriticResult]:
        """The critic's answers, in the order in which they are ready; everything must have been graded.

        Raises:
            StepalignError: what the critic raised.
        """
        if self._at_once:
            while answers := self.take(wait=True):
                yield from answers
        elif self._critic is not None:
            yield from self._critic.critique(self._attempts())

    def take(self, *, wait: bool) -> list[CriticResult]:
        """The answers that are ready, of a critic that is asked at once.

        Args:
            wait: for one, if there is none yet; none then means that all have been taken.

        Raises:
            StepalignError: what the critic raised.
        """
        answers: list[CriticResult] = []
        while not self.exhausted:
            try:
                found = self._answers.get(block=wait and not answers)
            except Empty:
                break
            if isinstance(found, BaseException):
                raise found
            if found is None:
                self.exhausted = True
            else:
                answers.append(found)
        return answers

    def _grade(self) -> None:
        more = True
        try:
            while more:
                waiting = [self._drawn.get(), *self._drained()]
                if self._given_up:
                    break
                more = None not in waiting
                drawn = [rollout for rollout in waiting if rollout is not None]
                known = [rollout for rollout in drawn if rollout.grade is not None]
                new = [rollout for rollout in drawn if rollout.grade is None]
                for rollout in (*known, *self._grader.grade(new, self._problems)):
                    self._graded[rollout.id] = rollout
                    self._asked.put(rollout)
        except BaseException as error:  # raised again where the grades are wanted
            self._fault = error
        finally:
            self._asked.put(None)

    def _drained(self) -> Iterator[Rollout | None]:
        while True:
            try:
                yield self._drawn.get_nowait()
            except Empty:
                return

    def _attempts(self) -> Iterator[tuple[Problem, Rollout]]:
        while (rollout := self._asked.get()) is not None and not self._given_up:
            yield self._problems[rollout.problem_id], rollout

    def _ask(self) -> None:
        assert self._critic is not None
        since: dict[str, float] = {}

        def timed() -> Iterator[tuple[Problem, Rollout]]:
            for problem, rollout in self._attempts():
                since[rollout.id] = time.perf_counter()
                yield problem, rollout

        end: BaseException | None = None
        try:
            for answer in self._critic.critique(timed()):
                if self._given_up:
                    break  # and with the iterator what is under way ends
                self.spans.append((since[answer.rollout_id], time.perf_counter()))
                self._answers.put(answer)
        except BaseException as error:  # raised again where the answers are wanted
            end = error
        self._answers.put(end)


def iter_micro_batches(
    answering: CritiqueStream,
    teach: Callable[[Sequence[CriticResult]], Sequence[L]],
    size: int,
    tokens: int | None,
    console: Console,
) -> Iterator[list[L]]:
    """Micro-batches of the lessons that are ready, the longest first; it waits only where they do not fill one.

    Args:
        answering: of a critic that is asked at once.
        teach: the lessons that answers come to.
        size: lessons in a micro-batch, at most.
        tokens: its padded tokens, at most (`views.micro_batches`).
        console: the seconds spent waiting are `critique`'s.
    """
    ready: list[L] = []
    while True:
        while len(ready) < size and not answering.exhausted:
            start = time.perf_counter()
            answers = answering.take(wait=True)
            console.timed("critique", start)
            ready.extend(teach(answers))
        if not ready:
            return
        ready.extend(teach(answering.take(wait=False)))
        micro = next(micro_batches(ready, size, tokens))
        taken = {lesson.rollout_id for lesson in micro}
        ready = [lesson for lesson in ready if lesson.rollout_id not in taken]
        yield micro
