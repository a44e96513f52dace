"""Grade programs by unit tests in sandboxes that can be killed (`stepalign.sandbox`).

A sandbox holds one program at a time; each thread here drives one. Equal programs for one problem are run once.

A grade's final answer is the program without comments and layout, so Maj@n votes among equal programs. Left out: votes
by behaviour on the shown tests, because most wrong programs behave alike there, and one right program would count for
all of them.
"""

import ast
import builtins
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from queue import SimpleQueue
from typing import Any, Literal, NamedTuple

from stepalign import config
from stepalign.errors import StepalignError
from stepalign.records import Grade, Problem, Rollout
from stepalign.rewards import Grader, problem_of
from stepalign.sandbox.launch import Sandbox, SandboxError, SandboxStartError, choose
from stepalign.trace import trace_format
from stepalign.trace.code import parse_program
from stepalign.unit_tests import UnitTestResult, UnitTests

MAX_CHARACTERS = 100_000
"""Longer programs are not run: outcome `error`."""
_ATTEMPTS = 2
"""A sandbox may die for a reason outside its program, so it is tried again."""

_Reply = dict[str, Any]


class _Judged(NamedTuple):
    """The judge's results, test by test, and the sandboxes that were lost on the way to them."""

    results: Sequence[_Reply]
    restarts: int


class UnitTestGrader(Grader):
    """Run each program on its problem's tests, in sandboxes that start when first needed."""

    def __init__(
        self,
        *,
        num_workers: int = 2,
        timeout_s: float = 10.0,
        reward: Literal["all", "share"] = "all",
        sandbox: Literal["auto", "bubblewrap", "limits"] = "auto",
        max_memory_mb: int = 1024,
    ) -> None:
        """Check which sandbox works here, and warn of what it does not confine. See `config.UnitTestGraderConfig`.

        Raises:
            StepalignError: the sandbox does not work.
        """
        self._num_workers, self._timeout_s, self._reward = num_workers, timeout_s, reward
        self._memory_bytes = max_memory_mb * 2**20
        self._kind, self.warning = choose(sandbox)
        self._open()

    @classmethod
    def from_config(cls, settings: config.UnitTestGraderConfig) -> "UnitTestGrader":
        """Build from a recipe's `[grader]`."""
        return cls(**settings.model_dump(exclude={"kind"}))

    def _open(self) -> None:
        self._owner = os.getpid()
        self._threads = ThreadPoolExecutor(self._num_workers)
        self._sandboxes = SimpleQueue[Sandbox]()
        for _ in range(self._num_workers):
            self._sandboxes.put(Sandbox(self._kind, memory_bytes=self._memory_bytes))

    def grade(self, rollouts: Sequence[Rollout], problems: Mapping[str, Problem]) -> list[Rollout]:
        """Run each rollout's program on its problem's tests. See `Grader.grade`.

        Raises:
            StepalignError: no sandbox can be started, or a problem has no tests.
        """
        # Closed, or a forked child, which has the sandboxes of its parent and none of its threads.
        if self._owner != os.getpid():
            self._open()
        programs = [(rollout.problem_id, _program(rollout)) for rollout in rollouts]
        tests = {rollout.problem_id: _tests(problem_of(rollout, problems)) for rollout in rollouts}
        runnable = [task for task in dict.fromkeys(programs) if 0 < len(task[1]) <= MAX_CHARACTERS]
        replies = self._threads.map(lambda task: self._run(task[1], tests[task[0]]), runnable)
        known = dict(zip(runnable, replies, strict=True))
        return [
            replace(rollout, grade=self._grade(task[1], tests[task[0]], known.get(task)))
            for rollout, task in zip(rollouts, programs, strict=True)
        ]

    def same(self, pairs: Sequence[tuple[str, str]]) -> list[bool]:
        """Return for each pair whether the two programs are equal, comments and layout aside."""
        return [_canonical(reference) == _canonical(answer) for reference, answer in pairs]

    def close(self) -> None:
        """Kill the sandboxes."""
        if self._owner == os.getpid():
            while not self._sandboxes.empty():
                self._sandboxes.get().close()
            self._threads.shutdown()
            self._owner = 0

    def _run(self, program: str, tests: UnitTests) -> _Judged:
        task = {
            "program": program,
            "preamble": tests.preamble,
            "setup": tests.setup,
            "tests": [*tests.shown, *tests.hidden],
            "entry_point": tests.entry_point,
        }
        sandbox, reason = self._sandboxes.get(), ""
        try:
            for lost in range(_ATTEMPTS):
                try:
                    return _Judged(sandbox.run(task, self._timeout_s)["results"], lost)
                except TimeoutError:
                    return _Judged([{"outcome": "timeout"}], lost + 1)
                except SandboxError as error:
                    reason = str(error) if isinstance(error, SandboxStartError) else ""
        finally:
            self._sandboxes.put(sandbox)
        if reason:
            raise StepalignError(f"no sandbox can be started ({reason})")
        return _Judged([{"outcome": "killed"}], _ATTEMPTS)

    def _grade(self, program: str, tests: UnitTests, judged: _Judged | None) -> Grade:
        if judged is None:
            feedback = "The program is too long to be run." if program else "The response has no program."
            score = 0.0 if self._reward == "share" else None
            return Grade(correct=False, outcome="error" if program else "missing", feedback=feedback, score=score)
        results = _results(tests, judged.results)
        outcome = _outcome(results)
        share = sum(result.outcome == "passed" for result in results) / len(results)
        return Grade(
            correct=outcome == "correct",
            outcome=outcome,
            final_answer=_canonical(program),
            feedback=feedback_of(results, self._timeout_s),
            score=share if self._reward == "share" else None,
            tests=results,
            sandbox_restarts=judged.restarts,
        )


def _tests(problem: Problem) -> UnitTests:
    if problem.tests is None:
        raise StepalignError(f"problem {problem.id}: it has no unit tests, which grader.kind = 'unit-tests' runs")
    return problem.tests


def _program(rollout: Rollout) -> str:
    form = trace_format("code")
    return "".join(form.final_answers(form.parse(rollout.text, rollout.response_start))[-1:])


def _outcome(results: Sequence[UnitTestResult]) -> Literal["correct", "timeout", "error", "wrong"]:
    outcomes = {result.outcome for result in results}
    if outcomes == {"passed"}:
        return "correct"
    if "timeout" in outcomes:
        return "timeout"
    return "error" if "killed" in outcomes else "wrong"


def _results(tests: UnitTests, replied: Sequence[_Reply]) -> tuple[UnitTestResult, ...]:
    """Make records of the judge's results, without anything of a hidden test that its author would know it by."""
    every = [(test, False) for test in tests.shown] + [(test, True) for test in tests.hidden]
    results = []
    for number, (test, hidden) in enumerate(every):
        values = {"source": test} | (replied[number] if number < len(replied) else {"outcome": "not run"})
        if hidden:
            values = {key: values[key] for key in ("outcome", "exception", "lines") if key in values}
            if values.get("exception") not in vars(builtins):  # a name of the program's could spell an argument
                values.pop("exception", None)
        results.append(UnitTestResult(**{**values, "hidden": hidden, "lines": tuple(values.get("lines", ()))}))
    return tuple(results)


def feedback_of(results: Sequence[UnitTestResult], timeout_s: float) -> str:
    """Say which tests fail and why; of hidden ones only the number that pass."""
    passed = sum(result.outcome == "passed" for result in results)
    if passed == len(results):
        return f"The program passes all {passed} tests."
    said = [f"The program passes {passed} of {len(results)} tests."]
    shown = [result for result in results if not result.hidden]
    for words in dict.fromkeys(_words(result, timeout_s) for result in shown if result.outcome != "passed"):
        said.append(words)
    hidden = Counter(result.outcome == "passed" for result in results if result.hidden)
    if hidden:
        said.append(f"Of {hidden.total()} hidden tests it passes {hidden[True]}.")
    return "\n".join(said)


def _words(result: UnitTestResult, timeout_s: float) -> str:
    match result.outcome:
        case "failed" if result.actual or result.expected:
            return f"{result.source}\nfails: the program gives {result.actual}, expected is {result.expected}."
        case "failed":
            return f"{result.source}\nfails." + (f" {result.message}" if result.message else "")
        case "error":
            where = f" at\n{result.traceback.rstrip()}" if result.traceback else "."
            message = f"{result.exception}: {result.message}" if result.message else result.exception
            return f"{result.source}\nraises {message}{where}"
        case "timeout":
            return f"{result.source}\ndoes not end within {timeout_s:g} s."
        case "killed":
            return f"{result.source}\nends the program's process."
    return f"{result.source}\nis not run."


def _canonical(program: str) -> str:
    tree = parse_program(program)
    try:
        return program.strip() if tree is None else ast.unparse(tree)
    except (ValueError, RecursionError):  # an integer of too many digits, or nesting too deep
        return program.strip()
