"""Final answers held against references by math-verify, in processes that can be killed.

What counts as the answer: the last `\\boxed{…}` of a response, if it stands in the format's final section
(`traces`). Elsewhere a boxed answer counts only if it is the only one, or equal to all others; two different
ones are `ambiguous`, which is wrong. Plain text is no answer, and neither is a box inside `<think>`.

math-verify (sympy beneath it) can hang or fill the memory on a few characters, `9^{9^{9^9}}`, and its own
time-out is a signal that one long C call ignores. So answers are compared in worker processes with bounded
memory, the parent holds the clock, and a worker that is late is killed: that answer is a `timeout`, and the
others are graded as if it had not been there. Equal comparisons are made once. Needs POSIX.

Left out: answers in prose, partial credit.
"""

import json
import logging
import os
import re
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import lru_cache
from math import inf
from multiprocessing.connection import wait
from types import TracebackType
from typing import Any, Literal, Self

from stepalign import config
from stepalign import trace as traces
from stepalign.errors import StepalignError
from stepalign.records import Grade, Problem, Rollout

MAX_CHARACTERS = 2_000
"""Longer answers and references are refused unparsed: outcome `error`."""
MAX_MEMORY_BYTES = 2 * 2**30
"""The address space of one worker, several times what ordinary answers need."""

_START_S = 120.0
"""A cold import over a network file system takes this long at worst."""
_STARTS = 3
_GRACE_S = 2.0
_IN_FLIGHT = 2
"""A worker has the next comparison at hand while the parent reads the last one's outcome."""
_PIPE_BYTES = 16 * 1024
"""What every POSIX pipe holds, so that the parent never blocks on a worker that is busy."""

_Outcome = Literal["correct", "wrong", "missing", "ambiguous", "timeout", "error"]
_Task = tuple[str, tuple[str, ...]]
"""A reference, and a response's answers: the last one counts if it is equal to the others."""
_Reply = tuple[_Outcome, str]
"""The outcome and the answer's canonical form."""


class Grader:
    """Grades in worker processes, which start when first needed. Use it as a context manager.

    Threads that share a grader take turns; a forked child gets workers of its own.
    """

    def __init__(self, settings: config.GraderConfig) -> None:
        self._settings = settings
        self._workers: list[_Worker] = []
        self._lock = threading.Lock()
        self._owner = os.getpid()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Kill the workers. Grading again would start new ones."""
        self._disown_after_fork()
        while self._workers:
            self._workers.pop().kill()

    def grade(self, rollouts: Sequence[Rollout], problems: Mapping[str, Problem]) -> list[Rollout]:
        """The rollouts, in their order, each with its grade.

        All correct answers to a problem have one canonical form, the reference's; a wrong answer has its own.
        Without a comparison (`missing`, `ambiguous`, `timeout`, `error`) it is empty.

        Args:
            rollouts: what to grade; an old grade is replaced.
            problems: by id.

        Raises:
            StepalignError: naming the rollout whose problem is not there, or where no worker can be started.
        """
        tasks: list[_Task] = []
        for rollout in rollouts:
            if rollout.problem_id not in problems:
                raise StepalignError(f"rollout {rollout.id}: there is no problem {rollout.problem_id!r}")
            tasks.append((problems[rollout.problem_id].answer, final_answers(rollout.text)))
        return [
            replace(rollout, grade=Grade(correct=outcome == "correct", outcome=outcome, final_answer=answer))
            for rollout, (outcome, answer) in zip(rollouts, self._replies(tasks), strict=True)
        ]

    def same(self, pairs: Sequence[tuple[str, str]]) -> list[bool]:
        """Whether the two answers of each pair are equal, the first as the reference. In doubt they are not.

        math-verify follows the reference where the two differ in kind: `3` equals `x=3`, `y=3` does not.
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
            known.update(zip(unknown, self._compare(unknown), strict=True))
        return [known[task] for task in tasks]

    def _disown_after_fork(self) -> None:
        if self._owner != os.getpid():
            for worker in self._workers:
                worker.disown()
            self._workers, self._lock, self._owner = [], threading.Lock(), os.getpid()

    def _compare(self, tasks: Sequence[_Task]) -> list[_Reply]:
        """Hand out the tasks, collect the replies, replace workers that are late or dead."""
        replies: dict[int, _Reply] = {}
        waiting = deque(range(len(tasks)))
        deaths: Counter[int] = Counter()
        failed_starts = 0
        try:
            while len(replies) < len(tasks):
                while len(self._workers) < min(self._settings.num_workers, len(tasks) - len(replies)):
                    self._workers.append(_Worker(self._settings.timeout_s))
                for worker in self._workers:
                    while waiting and worker.take(waiting[0], tasks[waiting[0]]):
                        waiting.popleft()
                until_next_deadline = min(worker.deadline for worker in self._workers) - time.monotonic()
                wait(
                    [worker.outlet.fileno() for worker in self._workers],
                    timeout=_seconds(until_next_deadline),
                )
                for worker in list(self._workers):
                    replies.update(worker.receive())
                    late = time.monotonic() >= worker.deadline
                    if not (late or worker.dead):
                        continue
                    self._workers.remove(worker)
                    status = worker.kill()
                    if not worker.ready:
                        failed_starts += 1
                        if failed_starts == _STARTS:
                            raise StepalignError(f"no grading process can be started (exit status {status})")
                    elif worker.in_flight:
                        suspect = worker.in_flight[0]
                        deaths[suspect] += 1
                        if late or status == -signal.SIGALRM:
                            replies[suspect] = ("timeout", "")
                        elif deaths[suspect] == 2:
                            replies[suspect] = ("error", "")
                        waiting.extendleft(task for task in reversed(worker.in_flight) if task not in replies)
        except BaseException:
            self.close()  # whatever is under way would answer the next call
            raise
        return [replies[index] for index in range(len(tasks))]


def final_answers(text: str) -> tuple[str, ...]:
    """What a response gives as its answer: nothing, one, or several that must all be equal to count."""
    trace = traces.parse(text)
    if trace.answer_section is not None:
        in_final_section = _filled(traces.boxed(trace.content(trace.answer_section)))
        if in_final_section and not traces.boxed(text[trace.answer_section.end :]):
            return in_final_section[-1:]
    return tuple(dict.fromkeys(_filled(traces.boxed(text[traces.end_of_thinking(text) :]))))


def _filled(boxes: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(box.strip() for box in boxes if box.strip())


def _seconds(remaining: float) -> float | None:
    return None if remaining == inf else max(0.0, remaining)


class _Worker:
    """The parent's end of one process. It answers tasks in the order in which it took them."""

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        # A process group of its own: Ctrl-C at the terminal is for the parent, which then kills the worker.
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", f"from stepalign.rewards import math; math._serve({timeout_s!r})"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            process_group=0,
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._inlet, self.outlet = self._process.stdin, self._process.stdout
        os.set_blocking(self.outlet.fileno(), False)
        self._unread = b""
        self._sizes: deque[int] = deque()
        self._since = time.monotonic()
        self.in_flight: deque[int] = deque()
        self.ready = False
        self.dead = False

    @property
    def deadline(self) -> float:
        """When the process is late, by the monotonic clock: with its start, or with the task it works on."""
        if not self.ready:
            return self._since + _START_S
        return self._since + self._timeout_s if self.in_flight else inf

    def take(self, index: int, task: _Task) -> bool:
        """Send a task, if there is room for it."""
        if not self.ready or len(self.in_flight) == _IN_FLIGHT:
            return False
        line = json.dumps(task).encode() + b"\n"
        if not self.in_flight:  # it is reading: a line of any length goes through
            self._since = time.monotonic()
        elif sum(self._sizes) + len(line) > _PIPE_BYTES:
            return False
        self.in_flight.append(index)
        self._sizes.append(len(line))
        unsent = memoryview(line)
        with suppress(BrokenPipeError):  # it has died; `receive` will see it
            while unsent:
                unsent = unsent[os.write(self._inlet.fileno(), unsent) :]
        return True

    def receive(self) -> dict[int, _Reply]:
        """The replies that have come."""
        with suppress(BlockingIOError):
            while chunk := os.read(self.outlet.fileno(), 65536):
                self._unread += chunk
            self.dead = True
        *lines, self._unread = self._unread.split(b"\n")
        replies: dict[int, _Reply] = {}
        for line in lines:
            self._since = time.monotonic()
            if self.ready:
                outcome, answer = json.loads(line)
                self._sizes.popleft()
                replies[self.in_flight.popleft()] = (outcome, answer)
            self.ready = True
        return replies

    def kill(self) -> int:
        """End the process and return its exit status."""
        self._process.kill()
        self._inlet.close()
        self.outlet.close()
        return self._process.wait()

    def disown(self) -> None:
        """Forget a process that belongs to the parent of this one."""
        self._inlet.close()
        self.outlet.close()
        self._process.returncode = 0


# ── in the worker ──────────────────────────────────────────────────────────────────────────────────────────


def _serve(timeout_s: float) -> None:
    """Answer tasks, a line of JSON each, until the parent closes the pipe."""
    replies = os.dup(sys.stdout.fileno())
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what a parser prints must not mix with the replies
    warnings.simplefilter("ignore")
    logging.disable()
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    with suppress(ImportError, ValueError, OSError):  # where the system has no such limit, the clock must do
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY_BYTES, MAX_MEMORY_BYTES))
    _judge("1/2", ("0.5",))  # whatever is imported and compiled on first use
    with suppress(BrokenPipeError):
        os.write(replies, b"ready\n")
        for line in sys.stdin.buffer:
            # The parent kills what is late. This alarm is for the worker whose parent is gone: its default
            # action ends the process in the midst of a C call too.
            signal.setitimer(signal.ITIMER_REAL, timeout_s + _GRACE_S)
            reference, answers = json.loads(line)
            reply = json.dumps(_judge(reference, answers)).encode() + b"\n"
            signal.setitimer(signal.ITIMER_REAL, 0)
            os.write(replies, reply)


def _judge(reference: str, answers: Sequence[str]) -> _Reply:
    *others, answer = answers
    if not all(_equal(answer, other) for other in others):
        return "ambiguous", ""
    canonical = _canonical(reference)
    if _equal(reference, answer):
        return "correct", canonical
    own = _canonical(answer)
    return "wrong", own if own != canonical else _plain(answer)


def _equal(reference: str, answer: str) -> bool:
    """Equal as strings or by math-verify. Words are strings only: math-verify multiplies their letters."""
    plain = _plain(reference), _plain(answer)
    if plain[0] == plain[1]:
        return True
    if all(map(_is_words, plain)):
        return False
    gold, value = _value(reference), _value(answer)
    if gold is None or value is None:
        return False

    from math_verify import verify

    return bool(verify(gold, value, timeout_seconds=None))


def _canonical(answer: str) -> str:
    """A string that equal answers share: the evaluated value as sympy writes it, or else the plain text."""
    plain, value = _plain(answer), _value(answer)
    if value is None or _is_words(plain):
        return plain

    from sympy import Eq, Float, Rational  # type: ignore[import-untyped]

    try:
        value = value.doit()
        if isinstance(value, Eq) and value.lhs.is_Symbol:
            value = value.rhs
        return str(value.xreplace({number: Rational(str(number)) for number in value.atoms(Float)}))
    except Exception:  # sympy raises anything here, a number of too many digits among it; the text will do
        return plain


@lru_cache(maxsize=1024)
def _value(answer: str) -> Any:
    """The sympy value of an answer; None where math-verify reads none."""
    from math_verify import LatexExtractionConfig, parse

    boxed_only = [LatexExtractionConfig(boxed_match_priority=0)]
    # In the box that math-verify looks for first, plain answers like 1/2 and 10% are read as LaTeX is.
    values = parse(rf"\boxed{{{_clean(answer)}}}", boxed_only, fallback_mode="no_fallback", parsing_timeout=None)
    return values[0] if values else None


_SPACE = re.compile(r"(?<!\\)\\[,;:! ]|~|\s+")
_THOUSANDS = re.compile(r"(?<=\d) +(?=\d{3}(?![\d/]))")
_MIXED = re.compile(r"(?<![\d.])(\d+) +(\d+)/(\d+)(?![\d.])")
_TEXT = re.compile(r"\\(?:text(?:bf|it|rm|normal)?|math(?:rm|bf|it|sf)|mbox|operatorname|underline) *\{([^{}]*)\}")
_WORDS = re.compile(r"[^\W\d_]+(?:[ '’,-]+[^\W\d_]+)*")
_WORD = re.compile(r"[^\W\d_]{4}")


def _clean(answer: str) -> str:
    """The answer without its delimiters, LaTeX's spaces, and spaces or a `\\,` between thousands."""
    answer = (traces.boxed(answer) or (answer,))[-1].replace(r"\$", "")
    answer = _THOUSANDS.sub("", _SPACE.sub(" ", answer))
    answer = _MIXED.sub(r"\1\\frac{\2}{\3}", answer)  # math-verify reads 3 1/2 as (3 + 1)/2
    return _bare(_bare(answer).removeprefix(r"\(").removesuffix(r"\)"))


def _plain(answer: str) -> str:
    """The answer without text commands, in lower case if it is words, without spaces if it is not."""
    plain, found = _clean(answer), 1
    while found:
        plain, found = _TEXT.subn(r"\1", plain)
    plain = _bare(plain)
    return plain.casefold() if _is_words(plain) else plain.replace(" ", "")


def _bare(answer: str) -> str:
    return answer.lstrip("$* ").rstrip("$*. ")


def _is_words(plain: str) -> bool:
    return bool(_WORDS.fullmatch(plain) and _WORD.search(plain))
