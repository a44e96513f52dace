"""Critic of programs without a model: the tests say what is wrong, the reference how it is mended.

    [critic]
    kind = "unit-tests"

A program that passes is case A. Any other is case C where it was cut off, else D. The first wrong step is the first
that the mended program changes. Candidates for it (`mend`) are graded by the same tests, and the first that passes is
taken: small repairs of the solver's own program before the reference's lines, and among those the line first at which
the program goes wrong (`locate`). Steps after it are correct where the mended program keeps them. Hidden tests decide,
and nothing of them is said but an exception's type.

Left out: case B, because a program that passes has nothing to justify.
"""

import difflib
import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import islice
from time import perf_counter

from stepalign import config
from stepalign.critics.code.locate import first_failure, wrong_line
from stepalign.critics.code.mend import mends
from stepalign.critics.code.units import Source, source_of
from stepalign.critics.right_answers import case_a
from stepalign.critics.schema import compose, original, place_of, trim
from stepalign.critics.validation import ValidatedCritic
from stepalign.records import Case, CriticResult, Critique, CritiqueFailure, Problem, Rollout, Verdict
from stepalign.rewards import Grader
from stepalign.trace import Trace, parse_rollout, trace_format
from stepalign.trace.code import UNCLOSED, lines_of
from stepalign.unit_tests import UnitTestResult

NAME = "unit-tests"
_MAX_REASON = 200
"""Characters of a reason."""
_AT_A_TIME = 4
"""Candidates that are graded together."""


class UnitTestCritic:
    """Critic that grades mended programs with the run's own grader."""

    name = NAME

    def __init__(self, grader: Grader) -> None:
        self._grader = grader

    @classmethod
    def from_config(cls, settings: config.UnitTestCriticConfig, *, grader: Grader, **_: object) -> ValidatedCritic:
        """Build the critic of a recipe, with its checks."""
        return ValidatedCritic(cls(grader), settings, grader)

    def critique(self, attempts: Iterable[tuple[Problem, Rollout]]) -> Iterator[CriticResult]:
        """Yield one result an attempt, in their order."""
        for problem, rollout in attempts:
            start = perf_counter()
            yield replace(self._critique(problem, rollout), seconds=perf_counter() - start)

    def _critique(self, problem: Problem, rollout: Rollout) -> CriticResult:
        """Criticize one graded rollout.

        A failure's reason is `no reference` without a reference program, `reference fails` where not even that
        passes the tests, and `no program` for a problem of another trace format.
        """
        trace = parse_rollout(rollout)
        if not trace.is_program:
            return self._fail(rollout, "no program", f"the problem's trace_format is {trace.format!r}")
        if rollout.correct:
            return case_a(rollout, NAME)
        if not problem.solution:
            return self._fail(rollout, "no reference", "the problem has no reference program")
        text = self._mended(problem, rollout, trace)
        if text is None:
            return self._fail(rollout, "reference fails", "the reference program fails the problem's tests")
        case: Case = "C" if rollout.finish == "length" and (not trace.steps or UNCLOSED in trace.faults) else "D"
        k, kept = _first_changed(trace, text), _kept_lines(trace, text)
        if k > len(trace.steps) > 0 and UNCLOSED not in trace.faults:
            k = len(trace.steps)  # what is added behind the last step completes it, because the fence is closed
        corrected, continuation = _split(trace, text, k)
        reason = (
            "it is unfinished." if case == "C" else reason_of(first_failure(rollout.grade) if rollout.grade else None)
        )
        reasons = {k: reason}
        for later in range(k + 1, len(trace.steps) + 1):
            first, last = lines_of(trace, trace.steps[later - 1])
            if not kept.issuperset(range(first, last + 1)):
                reasons[later] = f"it rests on Step {k}."
        count = max(len(trace.steps), k)
        verdicts = tuple(_verdict(trace, step, reasons.get(step)) for step in range(1, count + 1))
        return _critique(rollout, case, verdicts, original(trace, k), corrected, continuation)

    def _mended(self, problem: Problem, rollout: Rollout, trace: Trace) -> str | None:
        """Return the response with the first candidate that passes the tests."""
        if not trace.steps:
            written = trace_format(trace.format).write(problem.solution, "")
            candidates = iter([written] if written else [])
        else:
            source, tests = source_of(trace), problem.tests
            line = wrong_line(problem, rollout, self._grader)
            programs = mends(source, problem.solution, tests.entry_point if tests else "", line)
            candidates = (_with_program(trace, source, program) for program in programs)
        seen: set[str] = set()
        new = (text for text in candidates if text not in seen and not seen.add(text))  # type: ignore[func-returns-value]
        while batch := list(islice(new, _AT_A_TIME)):
            attempts = [
                replace(rollout, text=text, completion_ids=(), token_starts=(), sampler_logprobs=None, grade=None)
                for text in batch
            ]
            for graded in self._grader.grade(attempts, {problem.id: problem}):
                if graded.correct:
                    return graded.text
        return None

    def _fail(self, rollout: Rollout, reason: str, detail: str) -> CritiqueFailure:
        return CritiqueFailure(rollout_id=rollout.id, critic=NAME, reason=reason, detail=detail)


def reason_of(failure: UnitTestResult | None) -> str:
    """Say in a line how a program fails; of a hidden test the exception's type alone."""
    if failure is None:
        return "there is no program that can be run."
    where = "a hidden test" if failure.hidden else f"`{' '.join(failure.source.split())}`"
    match failure.outcome:
        case "failed" if failure.actual or failure.expected:
            text = f"in {where} the program gives {failure.actual}, expected is {failure.expected}."
        case "error":
            message = f": {failure.message}" if failure.message else ""
            text = f"it raises {failure.exception}{message} in {where}."
        case "timeout":
            text = f"the program does not end in {where}."
        case "killed" | "not run":
            text = f"the program ends its process in {where}."
        case _:
            text = f"{where} fails."
    text = " ".join(text.split())
    return text if len(text) <= _MAX_REASON else f"{text[:_MAX_REASON]}…"


def _verdict(trace: Trace, k: int, reason: str | None = None) -> Verdict:
    return Verdict(step=k, correct=reason is None, reason=reason or "", place=place_of(trace, k))


def _critique(
    rollout: Rollout,
    case: Case,
    verdicts: tuple[Verdict, ...],
    correct_part: str,
    corrected_step: str,
    continuation: str,
) -> Critique:
    return Critique(
        rollout_id=rollout.id,
        critic=NAME,
        case=case,
        verdicts=verdicts,
        correct_part=correct_part,
        corrected_step=corrected_step,
        continuation=continuation,
        text=compose(case, verdicts, correct_part, corrected_step, continuation),
    )


def _with_program(trace: Trace, source: Source, program: list[str]) -> str:
    """Return the response with another program, up to its closing fence."""
    before = trace.text[: trace.steps[0].start]
    mark = re.findall(r"[`~]{3,}", before)[-1]
    body = "".join(program)
    end = "" if body.endswith(("\n", "\r")) else source.newline
    return f"{before}{body}{end}{source.fence_indent}{mark}"


def _first_changed(trace: Trace, text: str) -> int:
    """Return the first step that the other response does not begin with; one more than there are where it has all."""
    changed = (k for k, step in enumerate(trace.steps, start=1) if not text.startswith(trace.text[: step.end]))
    return next(changed, len(trace.steps) + 1)


def _kept_lines(trace: Trace, text: str) -> set[int]:
    """Return the lines of the program that the other has too, in their order."""
    if not trace.steps:
        return set()
    own, other = (
        source_of(each).lines for each in (trace, trace_format(trace.format).parse(text, trace.response_start))
    )
    blocks = difflib.SequenceMatcher(None, own, other, autojunk=False).get_matching_blocks()
    blank = {number for number, line in enumerate(own, start=1) if not line.strip()}
    return blank | {block.a + k + 1 for block in blocks for k in range(block.size)}


def _split(trace: Trace, text: str, k: int) -> tuple[str, str]:
    """Divide the other response's text from step `k` on into the corrected step and the continuation."""
    start = trace.steps[k - 1].start if k <= len(trace.steps) else trace.steps[-1].end if trace.steps else 0
    steps = trace_format(trace.format).parse(text, trace.response_start).steps
    least = (
        trace.steps[-1].end if k == len(trace.steps) and text.startswith(trace.text[: trace.steps[-1].end]) else start
    )
    end = next((step.end for step in steps if step.end > least), len(text)) if start else len(text)
    return trim(text[start:end]), trim(text[end:])
