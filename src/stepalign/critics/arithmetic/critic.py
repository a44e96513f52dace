"""A critic without a model: arithmetic checked, correct steps copied, the first wrong one mended.

For rollouts whose steps hold equations: procedural sums, word problems like GSM8K's. A right answer without
a false equation is case A, with one case B; a truncated rollout is case C, a wrong answer case D (arXiv
2606.11173, Appendix B). `correction` says how the rest of the solution is found. Every critique ends in the
reference answer and never quotes the wrong step; where there is no way to such a critique, the answer is a
failure.

Verdicts: the steps before the first error are correct, that one is not, and each step after it is judged by
its own arithmetic alone, as in the paper's example, except that a wrong final answer is never correct.
"""

from collections.abc import Iterable, Iterator
from time import perf_counter

from stepalign import config
from stepalign.critics.arithmetic.correct import Attempt, Correction, correct, justify
from stepalign.critics.schema import compose, prefix, trim
from stepalign.critics.validation import ValidatedCritic
from stepalign.records import Case, Critique, CritiqueFailure, Problem, Rollout, Verdict
from stepalign.rewards.math import Grader
from stepalign.trace import parse


class ProgramCritic:
    """Answers each attempt at once, in the order in which they come."""

    name = "program"

    @classmethod
    def from_config(cls, settings: config.ProgramCriticConfig, *, grader: Grader, **_: object) -> ValidatedCritic:
        """Build the critic of a recipe, with its checks."""
        return ValidatedCritic(cls(), settings, grader)

    def critique(self, attempts: Iterable[tuple[Problem, Rollout]]) -> Iterator[Critique | CritiqueFailure]:
        """Yield one answer an attempt.

        A failure's reason is `no way to the answer`, or `not silent` where the wrong step would be quoted by
        what the critique must say.
        """
        for problem, rollout in attempts:
            start = perf_counter()
            yield self._answer(Attempt(problem, rollout, parse(rollout.text)), start)

    def _answer(self, attempt: Attempt, start: float) -> Critique | CritiqueFailure:
        rollout = attempt.rollout
        case: Case
        correction = None
        if rollout.correct and not (attempt.usable and attempt.false):
            case = "A"
        else:
            case = "B" if rollout.correct else "C" if attempt.truncated else "D"
            correction = justify(attempt) if case == "B" else correct(attempt)
            if correction is None:
                return self._failure(
                    rollout,
                    "no way to the answer",
                    "neither its own steps nor a reference solution lead there",
                )
        verdicts = _verdicts(attempt, correction)
        if correction is None:
            correct_part, corrected_step, continuation = trim(rollout.text), "", ""
        else:
            correct_part = prefix(attempt.trace, correction.step) if attempt.usable else ""
            corrected_step, *rest = map(trim, correction.pieces)
            continuation = _gap(attempt).join(rest)
        text = compose(case, verdicts, correct_part, corrected_step, continuation)
        # An unfinished step is not wrong: it may well be how the completed one begins.
        if correction is not None and correction.step <= attempt.complete:
            wrong = trim(attempt.texts[correction.step - 1]).strip()
            if wrong in text:
                return self._failure(rollout, "not silent", f"step {correction.step} would be quoted")
        return Critique(
            rollout_id=rollout.id,
            critic=self.name,
            case=case,
            verdicts=verdicts,
            correct_part=correct_part,
            corrected_step=corrected_step,
            continuation=continuation,
            text=text,
            seconds=perf_counter() - start,
        )

    def _failure(self, rollout: Rollout, reason: str, detail: str) -> CritiqueFailure:
        return CritiqueFailure(rollout_id=rollout.id, critic=self.name, reason=reason, detail=detail)


def _verdicts(attempt: Attempt, correction: Correction | None) -> tuple[Verdict, ...]:
    if correction is None:
        return tuple(Verdict(step=k, correct=True) for k in range(1, max(len(attempt.sections), 1) + 1))
    first = correction.step
    verdicts = [Verdict(step=k, correct=True) for k in range(1, first)]
    verdicts.append(Verdict(step=first, correct=False, reason=correction.reason))
    for k in range(first + 1, len(attempt.sections) + 1):
        if attempt.sections[k - 1].kind == "answer" and not attempt.rollout.correct:
            verdicts.append(Verdict(step=k, correct=False, reason=f"it rests on Step {first}."))
        elif k > attempt.complete:
            verdicts.append(Verdict(step=k, correct=False, reason="it is unfinished."))
        elif k in attempt.false:
            verdicts.append(Verdict(step=k, correct=False, reason="an equation in it does not hold."))
        else:
            verdicts.append(Verdict(step=k, correct=True))
    return tuple(verdicts)


def _gap(attempt: Attempt) -> str:
    """What the solver sets between two sections."""
    if len(attempt.texts) < 2:
        return "\n\n"
    return attempt.texts[0][len(trim(attempt.texts[0])) :] or "\n\n"
