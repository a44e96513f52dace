"""The wrong lines of a program's wrong step: those that its correction does not have."""

import difflib
from os.path import commonprefix

from stepalign.critics.first_error import ErrorSpan
from stepalign.records import Critique
from stepalign.trace import Trace


def program_error_span(trace: Trace, critique: Critique) -> ErrorSpan | None:
    """Find the wrong lines of a program; None where its critique finds no error, or only something missing.

    The span runs from the first to the last line of the wrong step that the correction lacks, without indentation. It
    is the whole step where the correction has them all. The departure is where the first of them parts from the line
    of the correction that is most like it.
    """
    if critique.first_error is None or critique.first_error > len(trace.steps):
        return None
    step = trace.section(critique.first_error)
    corrected = [line.rstrip() for line in f"{critique.corrected_step}\n{critique.continuation}".split("\n")]
    start, lines = step.start, list[tuple[int, str]]()
    for line in trace.content(step).splitlines(keepends=True):
        if line.strip() and line.rstrip() not in corrected:
            lines.append((start, line.rstrip()))
        start += len(line)
    if not lines:
        return ErrorSpan(critique.first_error, step.start, step.end, None)
    (first, line), (last, last_line) = lines[0], lines[-1]
    indent = len(line) - len(line.lstrip())
    own = critique.corrected_step.split("\n")
    counterpart = max(own, key=lambda other: difflib.SequenceMatcher(None, line, other, autojunk=False).ratio())
    same = len(commonprefix([line.strip(), counterpart.strip()]))
    return ErrorSpan(
        critique.first_error,
        first + indent,
        last + len(last_line),
        first + indent + min(same, len(line) - indent - 1),
    )
