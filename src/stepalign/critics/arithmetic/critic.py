"""Critic without a model: check the arithmetic, copy the correct steps, repair the first wrong one.

For rollouts whose steps hold equations: generated sums, word problems like GSM8K's. The case follows arXiv 2606.11173,
Appendix B: a right answer without a false equation is A, with one B; a truncated rollout is C, a wrong answer D.
`correct` finds the rest of the solution. Every critique ends in the reference answer and never quotes the wrong step.
A rollout without such a critique is a failure.

Verdicts: the steps before the first error are correct, that step is not, and each later step is judged by its own
arithmetic alone, as in the paper's example, except that a wrong final answer is never correct.
"""

from collections.abc import Iterable, Iterator
from time import perf_counter

from stepalign import config
from stepalign.critics.arithmetic.correct import Attempt, Correction, correct, justify
from stepalign.critics.schema import compose, prefix, trim
from stepalign.critics.validation import ValidatedCritic
from stepalign.records import Case, CriticResult, Critique, CritiqueFailure, Problem, Rollout, Verdict
from stepalign.rewards import Grader

NAME = "program"


class ProgramCritic:
    """Critic that answers each attempt at once, in the order of the attempts."""

    name = NAME

    @classmethod
    def from_config(cls, settings: config.ProgramCriticConfig, *, grader: Grader, **_: object) -> ValidatedCritic:
        """Build the critic of a recipe, with its checks."""
        return ValidatedCritic(cls(), settings, grader)

    def critique(self, attempts: Iterable[tuple[Problem, Rollout]]) -> Iterator[CriticResult]:
        """Yield one answer per attempt."""
        return (critique(problem, rollout) for problem, rollout in attempts)


def critique(problem: Problem, rollout: Rollout) -> CriticResult:
    """Criticize one graded rollout.

    A failure's reason is `no way to the answer`, or `not silent` where the critique would have to quote the wrong step.
    """
    start, attempt = perf_counter(), Attempt(problem, rollout)
    case: Case = "A"
    correction = None
    if not rollout.correct or (attempt.is_usable and attempt.false_links):
        case = "B" if rollout.correct else "C" if attempt.is_truncated else "D"
        correction = justify(attempt) if case == "B" else correct(attempt)
        if correction is None:
            detail = "neither its own steps nor a reference solution lead there"
            return _failure(rollout, "no way to the answer", detail)
    answer = to_critique(attempt, case, correction, seconds=perf_counter() - start)
    if correction is None or correction.step > attempt.num_complete:
        return answer  # an unfinished step is not wrong: the completed step may begin with it
    if trim(attempt.texts[correction.step - 1]).strip() in answer.text:
        return _failure(rollout, "not silent", f"step {correction.step} would be quoted")
    return answer


def to_critique(
    attempt: Attempt, case: Case, correction: Correction | None, *, critic: str = NAME, seconds: float = 0.0
) -> Critique:
    """Write the critique of an attempt. Without a correction (case A) every step is correct."""
    correct_part, corrected_step, continuation = trim(attempt.rollout.text), "", ""
    if correction is not None:
        correct_part = prefix(attempt.trace, correction.step) if attempt.is_usable else ""
        corrected_step, *rest = map(trim, correction.pieces)
        separator = attempt.texts[0][len(trim(attempt.texts[0])) :] if len(attempt.texts) > 1 else ""
        continuation = (separator or "\n\n").join(rest)
    verdicts = _verdicts(attempt, correction)
    text = compose(case, verdicts, correct_part, corrected_step, continuation)
    return Critique(
        rollout_id=attempt.rollout.id, critic=critic, case=case, verdicts=verdicts, correct_part=correct_part,
        corrected_step=corrected_step, continuation=continuation, text=text, seconds=seconds,
    )  # fmt: skip


def _failure(rollout: Rollout, reason: str, detail: str) -> CritiqueFailure:
    return CritiqueFailure(rollout_id=rollout.id, critic=NAME, reason=reason, detail=detail)


def _verdicts(attempt: Attempt, correction: Correction | None) -> tuple[Verdict, ...]:
    reasons: dict[int, str] = {}
    if correction is not None:
        reasons[correction.step] = correction.reason
        for k in range(correction.step + 1, len(attempt.sections) + 1):
            if attempt.sections[k - 1].kind == "answer" and not attempt.rollout.correct:
                reasons[k] = f"it rests on Step {correction.step}."
            elif k > attempt.num_complete:
                reasons[k] = "it is unfinished."
            elif k in attempt.false_links:
                reasons[k] = "an equation in it does not hold."
    count = max(len(attempt.sections), *reasons, 1)
    return tuple(Verdict(step=k, correct=k not in reasons, reason=reasons.get(k, "")) for k in range(1, count + 1))
