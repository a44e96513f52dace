"""Grade mathematical answers in worker processes that can be killed.

sympy can hang or fill the memory on a few characters, `9^{9^{9^9}}`, and a signal does not end a long C call. So
answers are compared (`rewards.math_answers`) in the processes of a Pebble pool with bounded memory. A worker that is
late is killed: that answer is a `timeout`, and the others are graded as if it had not been there. Equal comparisons are
made once. Needs POSIX.
"""

import logging
import multiprocessing
import os
import signal
import sys
import threading
import time
import warnings
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import replace
from multiprocessing import spawn
from multiprocessing.context import SpawnContext, SpawnProcess
from typing import Any

from pebble import ProcessExpired, ProcessPool

from stepalign import config
from stepalign.errors import StepalignError
from stepalign.records import Grade, Problem, Rollout
from stepalign.rewards import Grader, problem_of
from stepalign.rewards.math_answers import Outcome, judge
from stepalign.trace import final_answers

MAX_CHARACTERS = 2_000
"""Longer answers and references are refused unparsed: outcome `error`."""
MAX_MEMORY_BYTES = 2 * 2**30
"""The address space of one worker, several times what ordinary answers need."""

_START_S = 120.0
"""A cold import over a network file system takes this long at worst."""
_STARTS = 3
_GRACE_S = 2.0
_STALL_S = 30.0
"""A pool without any reply for this long, beside the time limit, is replaced: a worker that was killed from outside
may have held the lock that all workers share."""
_POLL_S = 0.5
_SCHEDULED = 4
"""Tasks scheduled for each worker, so that none waits for the parent and the pipe never fills."""
_SHOWN_CHARACTERS = 200

_Task = tuple[str, tuple[str, ...]]
"""A reference, and a response's answers."""
_Reply = tuple[Outcome, str]
"""The outcome and the answer's canonical form."""


class MathGrader(Grader):
    """Grade in worker processes, which start when first needed.

    Threads that share a grader take turns; a forked child gets workers of its own.
    """

    def __init__(self, *, num_workers: int = 2, timeout_s: float = 10.0) -> None:
        """Start nothing yet. `timeout_s` is for one rollout."""
        self._num_workers, self._timeout_s = num_workers, timeout_s
        self._pool: ProcessPool | None = None
        self._lock = threading.Lock()
        self._owner = os.getpid()

    @classmethod
    def from_config(cls, settings: config.GraderConfig) -> "MathGrader":
        """Build from a recipe's `[grader]`."""
        return cls(num_workers=settings.num_workers, timeout_s=settings.timeout_s)

    def close(self) -> None:
        """Kill the workers. Grading again would start new ones."""
        self._disown_after_fork()
        if self._pool is not None:
            self._pool.stop()  # type: ignore[no-untyped-call]
            self._pool.join()
            self._pool = None

    def grade(self, rollouts: Sequence[Rollout], problems: Mapping[str, Problem]) -> list[Rollout]:
        """Grade in the workers.

        All correct answers to a problem have one canonical form, the reference's text; a wrong answer has its own.
        Without a comparison (`missing`, `ambiguous`, `timeout`, `error`) it is empty.
        """
        tasks = [(problem_of(rollout, problems).answer, final_answers(rollout)) for rollout in rollouts]
        graded = []
        for rollout, (_, answers), (outcome, canonical) in zip(rollouts, tasks, self._replies(tasks), strict=True):
            feedback, correct = _feedback(outcome, answers), outcome == "correct"
            grade = Grade(correct=correct, outcome=outcome, final_answer=canonical, feedback=feedback)
            graded.append(replace(rollout, grade=grade))
        return graded

    def same(self, pairs: Sequence[tuple[str, str]]) -> list[bool]:
        """Compare the two answers of each pair.

        The reference says what counts: `3` equals `x=3`, and `y=3` does not equal `x=3` (`docs/grading.md`).
        """
        replies = self._replies([(reference, (answer,)) for reference, answer in pairs])
        return [outcome == "correct" for outcome, _ in replies]

    def _replies(self, tasks: Sequence[_Task]) -> list[_Reply]:
        known: dict[_Task, _Reply] = {}
        for reference, answers in tasks:
            if not answers:
                known[reference, answers] = ("missing", "")
            elif max(map(len, (reference, *answers))) > MAX_CHARACTERS:
                known[reference, answers] = ("error", "")
        unknown = [task for task in dict.fromkeys(tasks) if task not in known]
        self._disown_after_fork()
        with self._lock:
            try:
                known.update(self._compare(unknown))
            except BaseException:
                self.close()  # tasks under way would delay the next call
                raise
        return [known[task] for task in tasks]

    def _compare(self, tasks: Sequence[_Task]) -> dict[_Task, _Reply]:
        """Schedule the tasks, collect the replies, replace a pool that is broken."""
        replies: dict[_Task, _Reply] = {}
        waiting, scheduled = deque(tasks), dict[Future[_Reply], _Task]()
        deaths: Counter[_Task] = Counter()
        failures, is_ready, since = 0, self._pool is not None, time.monotonic()
        while len(replies) < len(tasks):
            try:
                while waiting and len(scheduled) < _SCHEDULED * self._num_workers:
                    future = self._schedule(waiting[0])
                    scheduled[future] = waiting.popleft()
                done, _ = wait(scheduled, _POLL_S, FIRST_COMPLETED)
                stall_s = self._timeout_s + (_STALL_S if is_ready else _START_S)
                is_alive = self._pool is not None and self._pool.active  # False after an idle worker was killed
                if not done and (not is_alive or time.monotonic() - since > stall_s):
                    raise BrokenProcessPool("no reply")
                for future in done:
                    since = time.monotonic()
                    task, reply = scheduled[future], _reply(future)
                    deaths[task] += reply is None
                    if reply is None and deaths[task] < 2:
                        waiting.appendleft(task)
                    else:
                        replies[task] = reply or ("error", "")
                        failures, is_ready = 0, True
                    del scheduled[future]
            except BrokenProcessPool as error:
                failures, is_ready, since = failures + 1, False, time.monotonic()
                waiting.extendleft(scheduled.values())
                scheduled.clear()
                self.close()
                if failures == _STARTS:
                    raise StepalignError(f"no grading process can be started ({error})") from None
        return replies

    def _schedule(self, task: _Task) -> Future[_Reply]:
        pool = self._pool
        if pool is None or not pool.active:
            self.close()
            pool = self._pool = ProcessPool(self._num_workers, initializer=_initialize, context=_Context())
        try:
            return pool.schedule(_work, (task, self._timeout_s + _GRACE_S), timeout=self._timeout_s)
        except RuntimeError as error:
            raise BrokenProcessPool(str(error)) from None

    def _disown_after_fork(self) -> None:
        if self._owner != os.getpid():
            self._pool, self._lock, self._owner = None, threading.Lock(), os.getpid()


def _reply(future: Future[_Reply]) -> _Reply | None:
    """Return a task's reply; None where its worker died, perhaps for a reason outside the task."""
    try:
        return future.result()
    except BrokenProcessPool:
        raise
    except ProcessExpired as error:
        return ("timeout", "") if error.exitcode == -signal.SIGALRM else None
    except TimeoutError:
        return "timeout", ""
    except Exception:  # sympy raises anything
        return "error", ""


def _feedback(outcome: Outcome, answers: Sequence[str]) -> str:
    """Say what was extracted and what is wrong with it, without the reference."""
    texts = [text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}…" for text in answers]
    if outcome == "missing":
        return "The solution has no final answer in \\boxed{…}."
    if outcome == "ambiguous":
        return f"The solution gives several different final answers: {'; '.join(texts)}."
    if outcome in ("timeout", "error"):
        in_time = " in time" if outcome == "timeout" else ""
        return f"The final answer {texts[-1]} could not be compared with the reference{in_time}."
    return f"The final answer {texts[-1]} is {outcome}."


class _Process(SpawnProcess):
    """Worker process that does not import the caller's main module.

    A script without `if __name__ == "__main__"` would run again in each worker, and torch would fill its memory.
    """

    def start(self) -> None:
        """Start with SIGINT blocked, because Ctrl-C at the terminal is for the parent, which kills the worker."""

        def preparation_data(name: str) -> dict[str, Any]:
            data: dict[str, Any] = default(name)
            skipped = ("init_main_from_name", "init_main_from_path", "dir") if name == self.name else ()
            return {key: value for key, value in data.items() if key not in skipped}

        with _SPAWN:
            default = spawn.get_preparation_data
            mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
            try:
                spawn.get_preparation_data = preparation_data
                super().start()
            finally:
                spawn.get_preparation_data = default
                signal.pthread_sigmask(signal.SIG_SETMASK, mask)


class _Context(SpawnContext):
    Process = _Process


_SPAWN = threading.Lock()
# multiprocessing does the same in its own children: at its end a forked child would stop its parent's workers.
os.register_at_fork(after_in_child=multiprocessing.process._children.clear)  # type: ignore[attr-defined]


def _initialize() -> None:
    """Prepare a worker: limits, silence, and whatever is imported and compiled on first use."""
    os.setpgrp()
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # the parent's output is for the parent
    warnings.simplefilter("ignore")
    logging.disable()
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # Pebble's handler would wait for the end of a C call
    with suppress(ImportError, ValueError, OSError):  # where the system has no such limit, the clock must do
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY_BYTES, MAX_MEMORY_BYTES))
    judge("x^2", (r"x \cdot x", r"\frac{2x}{2}x"))


def _work(task: _Task, alarm_s: float) -> _Reply:
    """Compare one task's answers.

    The parent kills a worker that is late. The alarm is for a worker whose parent is gone: its default action ends
    the process in the midst of a C call too.
    """
    signal.setitimer(signal.ITIMER_REAL, alarm_s)
    try:
        return judge(*task)
    except MemoryError:
        os._exit(1)  # the next answer must not suffer from what is still allocated
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
