"""Reading of responses: sections with exact spans, the final answer, and the tokens of a span.

A `TraceFormat` reads one way to write a solution. `parse` is the paper's format, numbered steps under headings.
"""

from stepalign.trace.base import Section, Trace, TraceFormat, boxed, end_of_thinking, token_span
from stepalign.trace.paragraphs import ParagraphFormat
from stepalign.trace.steps import StepFormat, parse, write_steps

__all__ = [
    "ParagraphFormat",
    "Section",
    "StepFormat",
    "Trace",
    "TraceFormat",
    "boxed",
    "end_of_thinking",
    "parse",
    "token_span",
    "write_steps",
]
