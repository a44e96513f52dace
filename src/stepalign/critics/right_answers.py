"""Critiques of right answers without a model: case A, or B where an equation on the way does not hold.

So such a critique costs no tokens, copies exactly, and cannot contradict the grade. Left out: other gaps in a right
solution (an unjustified step), because no program sees them.
"""

from dataclasses import replace

from stepalign.critics.arithmetic import critic as arithmetic
from stepalign.critics.schema import compose, num_sections, place_of, trim
from stepalign.critics.validation import Validator
from stepalign.records import Critique, CritiqueFailure, Problem, Rollout, Verdict
from stepalign.trace import parse_rollout


def case_a(rollout: Rollout, critic: str) -> Critique:
    """Call every step of a right solution correct."""
    trace, correct_part = parse_rollout(rollout), trim(rollout.text)
    verdicts = tuple(
        Verdict(step=k, correct=True, place=place_of(trace, k)) for k in range(1, max(num_sections(trace), 1) + 1)
    )
    return Critique(
        rollout_id=rollout.id,
        critic=critic,
        case="A",
        verdicts=verdicts,
        correct_part=correct_part,
        text=compose("A", verdicts, correct_part, "", ""),
    )


def critique_right(problem: Problem, rollout: Rollout, critic: str, validator: Validator) -> Critique | CritiqueFailure:
    """Critique a right answer, and validate the critique. `critic` is the name in the record.

    A failure's reason is a check's, or one of the program critic's (`arithmetic.critic.critique`).
    """
    is_text = rollout.trace_format == "steps"
    result = arithmetic.critique(problem, rollout) if is_text else case_a(rollout, critic)
    if isinstance(result, CritiqueFailure):
        return validator.reject(rollout, critic, result.reason, result.detail)
    return validator.validate(replace(result, critic=critic), problem, rollout)
