"""Measure of how much of a program's wrong step its correction repeats, line by line, indentation included."""

from stepalign.records import Critique, Problem
from stepalign.trace import Trace

_QUOTE_LENGTH = 8
"""Characters from which a line counts as quoted in a reason."""


def repetition(critique: Critique, problem: Problem, trace: Trace) -> tuple[float, str]:
    """Return the share of the wrong step's own lines in the corrected step, and how it is quoted; empty if it is not.

    Lines that stand before the step or in the problem are not its own. A corrected step that adds to all of them
    quotes nothing: then what was missing is the error.
    """
    k = critique.first_error or 0
    if not 1 <= k <= len(trace.steps):
        return 0.0, ""
    step = trace.section(k)
    known = {*_lines(trace.text[: step.start]), *_lines(problem.statement)}
    own = [line for line in _lines(trace.content(step)) if line not in known]
    corrected = _lines(critique.corrected_step)
    repeated = [line for line in own if line in corrected]
    measure = sum(map(len, repeated)) / max(sum(map(len, own)), 1)
    reasons = [verdict.reason for verdict in critique.verdicts if verdict.reason]
    if any(len(line.strip()) >= _QUOTE_LENGTH and line.strip() in reason for line in own for reason in reasons):
        return measure, "quoted in a reason"
    return measure, "quoted" if measure == 1 and set(corrected) <= {*known, *own} else ""


def _lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.splitlines() if line.strip()]
