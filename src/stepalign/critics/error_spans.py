"""The place of a rollout's first error, by the rollout's trace format."""

from stepalign.critics.code.error_span import program_error_span
from stepalign.critics.first_error import ErrorSpan, first_error_span
from stepalign.records import Critique, Rollout
from stepalign.trace import parse_rollout


def rollout_error_span(rollout: Rollout, critique: Critique) -> ErrorSpan | None:
    """Find where a rollout first goes wrong; None where its critique finds no error, or only something missing."""
    trace = parse_rollout(rollout)
    return (program_error_span if trace.is_program else first_error_span)(trace, critique)
