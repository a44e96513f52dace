"""Reading of responses: sections with exact spans, the final answer, and the tokens of a span.

A `TraceFormat` reads one way to write a solution. `parse` is the paper's format, numbered steps under headings.
"""

from stepalign.trace.base import Section, Trace, TraceFormat, boxed, step_spans, token_span
from stepalign.trace.paragraphs import ParagraphFormat
from stepalign.trace.steps import StepFormat, parse, write_steps
from stepalign.trace.thoughts import response_start

__all__ = [
    "ParagraphFormat",
    "Section",
    "StepFormat",
    "Trace",
    "TraceFormat",
    "boxed",
    "parse",
    "response_start",
    "step_spans",
    "token_span",
    "write_steps",
]
