"""Grades and critiques of a step's rollouts, made while other rollouts are still sampled.

Sampling and training use the device, grading uses other processes, and a served critic another machine. So one thread
grades each rollout as it ends, another passes it to the critic, and results are read as they are ready. The policy
stays the same within an optimizer step, so nothing here is off-policy.

Left out: critiques across optimizer steps, because they would be off-policy.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from queue import Empty, SimpleQueue
from threading import Thread
from types import TracebackType
from typing import TypeVar

from stepalign.collate import micro_batches
from stepalign.console import Console
from stepalign.critics import Critic
from stepalign.records import CriticResult, Problem, Rollout
from stepalign.rewards import Grader
from stepalign.views import TrainingExample

E = TypeVar("E", bound=TrainingExample)


class CritiqueStream:
    """Grades and critiques of one optimizer step, as a context manager."""

    def __init__(
        self, problems: Mapping[str, Problem], grader: Grader, critic: Critic | None, *, concurrent: bool
    ) -> None:
        """Set up the threads; nothing starts before the first rollout.

        Args:
            problems: by id.
            grader: grades rollouts.
            critic: None makes no critiques.
            concurrent: call the critic while rollouts are still sampled; else in `results`, once all are graded.
        """
        self._problems, self._grader, self._critic = problems, grader, critic
        self._concurrent = concurrent and critic is not None
        self._sampled: SimpleQueue[Rollout | None] = SimpleQueue()
        self._to_critique: SimpleQueue[Rollout | None] = SimpleQueue()
        self._results: SimpleQueue[CriticResult | BaseException | None] = SimpleQueue()
        self._graded: dict[str, Rollout] = {}
        self._error: BaseException | None = None
        self._cancelled = False
        self.exhausted = critic is None
        """True once every result has been read."""
        # Daemons, so that an interrupted run does not wait for a critic.
        self._grading = Thread(target=self._grade, name="grading", daemon=True)
        self._critiquing = Thread(target=self._critique, name="critiquing", daemon=True)
        self.spans: list[tuple[float, float]] = []
        """Start and end of each critique (`time.perf_counter`)."""

    def __enter__(self) -> "CritiqueStream":
        self._grading.start()
        if self._concurrent:
            self._critiquing.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop reading. After an error, requests under way end with the critic's next result."""
        self._cancelled = True
        self._sampled.put(None)

    def submit(self, rollout: Rollout) -> None:
        """Queue a rollout for grading, if it has no grade yet, and for the critic."""
        self._sampled.put(rollout)

    def graded(self, rollouts: Sequence[Rollout]) -> list[Rollout]:
        """Wait for the grades of all submitted rollouts and return these with theirs.

        Raises:
            StepalignError: raised by the grader.
        """
        self._sampled.put(None)
        self._grading.join()
        if self._error is not None:
            raise self._error
        return [self._graded[rollout.id] for rollout in rollouts]

    def results(self) -> Iterator[CriticResult]:
        """Yield the critic's results as they are ready, once all rollouts are graded.

        Raises:
            StepalignError: raised by the critic.
        """
        if self._concurrent:
            while results := self.drain(wait=True):
                yield from results
        elif self._critic is not None:
            yield from self._critic.critique(self._attempts())

    def drain(self, *, wait: bool) -> list[CriticResult]:
        """Return the results that are ready, of a concurrent critic.

        Args:
            wait: wait for one if none is ready. An empty list then means that all have been read.

        Raises:
            StepalignError: raised by the critic.
        """
        results: list[CriticResult] = []
        while not self.exhausted:
            try:
                result = self._results.get(block=wait and not results)
            except Empty:
                break
            if isinstance(result, BaseException):
                raise result
            if result is None:
                self.exhausted = True
            else:
                results.append(result)
        return results

    def _grade(self) -> None:
        more = True
        try:
            while more:
                queued = [self._sampled.get(), *self._queued()]
                if self._cancelled:
                    break
                more = None not in queued
                rollouts = [rollout for rollout in queued if rollout is not None]
                graded = [rollout for rollout in rollouts if rollout.grade is not None]
                ungraded = [rollout for rollout in rollouts if rollout.grade is None]
                for rollout in (*graded, *self._grader.grade(ungraded, self._problems)):
                    self._graded[rollout.id] = rollout
                    self._to_critique.put(rollout)
        except BaseException as error:  # raised again in `graded`
            self._error = error
        finally:
            self._to_critique.put(None)

    def _queued(self) -> Iterator[Rollout | None]:
        while True:
            try:
                yield self._sampled.get_nowait()
            except Empty:
                return

    def _attempts(self) -> Iterator[tuple[Problem, Rollout]]:
        while (rollout := self._to_critique.get()) is not None and not self._cancelled:
            yield self._problems[rollout.problem_id], rollout

    def _critique(self) -> None:
        assert self._critic is not None
        starts: dict[str, float] = {}

        def attempts() -> Iterator[tuple[Problem, Rollout]]:
            for problem, rollout in self._attempts():
                starts[rollout.id] = time.perf_counter()
                yield problem, rollout

        end: BaseException | None = None
        try:
            for result in self._critic.critique(attempts()):
                if self._cancelled:
                    break  # closing the iterator ends the requests under way
                self.spans.append((starts[result.rollout_id], time.perf_counter()))
                self._results.put(result)
        except BaseException as error:  # raised again in `drain`
            end = error
        self._results.put(end)


def iter_micro_batches(
    stream: CritiqueStream,
    build: Callable[[Sequence[CriticResult]], Sequence[E]],
    size: int,
    max_tokens: int | None,
    share_prefixes: bool,
    console: Console,
) -> Iterator[list[E]]:
    """Yield micro-batches of the examples that are ready, the longest first; wait only to fill one.

    Args:
        stream: of a concurrent critic.
        build: makes examples of results.
        size: examples in a micro-batch, at most.
        max_tokens: its padded tokens, at most (`collate.micro_batches`).
        share_prefixes: let views that begin alike share a row.
        console: keeps the seconds of waiting under `critique`.
    """
    ready: list[E] = []
    while True:
        while len(ready) < size and not stream.exhausted:
            start = time.perf_counter()
            results = stream.drain(wait=True)
            console.timed("critique", start)
            ready.extend(build(results))
        if not ready:
            return
        ready.extend(build(stream.drain(wait=False)))
        micro_batch = next(micro_batches(ready, size, max_tokens, share_prefixes=share_prefixes))
        ids = {example.rollout_id for example in micro_batch}
        ready = [example for example in ready if example.rollout_id not in ids]
        yield micro_batch
