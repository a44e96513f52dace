"""Reading of responses: sections with exact spans, the final answer, and the tokens of a span.

A `TraceFormat` reads one way to write a solution; `parse_rollout` takes the rollout's own. `parse` is the paper's
format, numbered steps under headings.
"""

from stepalign.trace.base import Section, Trace, TraceFormat, boxed, step_spans, token_span
from stepalign.trace.code import CodeFormat
from stepalign.trace.formats import FORMATS, final_answers, parse_rollout, trace_format
from stepalign.trace.paragraphs import ParagraphFormat
from stepalign.trace.steps import StepFormat, parse, write_steps
from stepalign.trace.thoughts import response_start

__all__ = [
    "FORMATS",
    "CodeFormat",
    "ParagraphFormat",
    "Section",
    "StepFormat",
    "Trace",
    "TraceFormat",
    "boxed",
    "final_answers",
    "parse",
    "parse_rollout",
    "response_start",
    "step_spans",
    "token_span",
    "trace_format",
    "write_steps",
]
