"""The trace formats by name. A problem names its own, and each rollout of it does (`Rollout.trace_format`)."""

from stepalign.errors import StepalignError
from stepalign.records import Rollout
from stepalign.trace.base import Trace, TraceFormat
from stepalign.trace.code import CodeFormat
from stepalign.trace.paragraphs import ParagraphFormat
from stepalign.trace.steps import StepFormat

FORMATS: dict[str, TraceFormat] = {"steps": StepFormat(), "paragraphs": ParagraphFormat(), "code": CodeFormat()}


def trace_format(name: str) -> TraceFormat:
    """Return a trace format by its name.

    Raises:
        StepalignError: naming the formats that there are.
    """
    if name not in FORMATS:
        raise StepalignError(f"trace_format = {name!r}: there is no such format; allowed: {', '.join(FORMATS)}")
    return FORMATS[name]


def parse_rollout(rollout: Rollout) -> Trace:
    """Read a rollout's sections in its own format."""
    return trace_format(rollout.trace_format).parse(rollout.text, rollout.response_start)


def final_answers(rollout: Rollout) -> tuple[str, ...]:
    """Extract a rollout's answers in its own format: none, one, or several that count only if all are equal."""
    form = trace_format(rollout.trace_format)
    return form.final_answers(parse_rollout(rollout), is_cut=rollout.finish == "length")
