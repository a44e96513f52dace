"""Validation: what becomes of a critique that was checked, by the recipe's `[critic.validation]`.

A critique is accepted, repaired, asked for again, or replaced by a fallback, as the table says for each check. Repair
is splicing: the program puts the solver's own text where the critic should have copied it, removes reasons that quote
the wrong step, and composes the text anew. A repaired critique is checked once more; a check that still fails then
counts as one to ask again for.
"""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import get_args

from stepalign import config
from stepalign.critics import Critic, schema
from stepalign.critics.checks import Checker, verbatim_remainder
from stepalign.records import Check, Critique, CritiqueFailure, Problem, Rollout
from stepalign.rewards import Grader
from stepalign.trace import parse_rollout


class Validator:
    """A recipe's checks, and what follows where one fails."""

    def __init__(self, settings: config.CriticConfig, grader: Grader) -> None:
        self.checker = Checker(settings.checks, grader)
        self._actions = settings.validation

    def validate(self, critique: Critique, problem: Problem, rollout: Rollout) -> Critique | CritiqueFailure:
        """Check a critique, and repair it where the recipe says so.

        The copied part that teaches is always the solver's own text. The checks measure the critic's copy.
        """
        checks = self.checker.check(critique, problem, rollout)
        failed = self._failed(checks)
        if not failed:
            own = splice(critique, rollout, keep_reasons=True)
            return replace(own, checks=checks, fidelity=critique.fidelity)
        if getattr(self._actions, failed[0].name) == "repair":
            quoted = any(check.name in ("error_not_quoted", "true_equations") for check in checks if not check.passed)
            repaired = splice(critique, rollout, keep_reasons=not quoted)
            after = self.checker.check(repaired, problem, rollout)
            if not (failed := self._failed(after)):
                names = tuple(old.name for old, new in zip(checks, after, strict=True) if new.passed > old.passed)
                return replace(repaired, checks=checks, repaired=names)
        detail = "; ".join(check.detail for check in failed)
        return self.reject(rollout, critique.critic, failed[0].name, detail, checks)

    def reject(
        self, rollout: Rollout, critic: str, reason: str, detail: str, checks: tuple[Check, ...] = ()
    ) -> CritiqueFailure:
        """Return the failure, with the fallback that the recipe names for its reason."""
        action = getattr(self._actions, reason, None)
        return CritiqueFailure(
            rollout_id=rollout.id, critic=critic, reason=reason, detail=detail, checks=checks,
            fallback=action if action in get_args(config.Fallback) else None,
        )  # fmt: skip

    def may_retry(self, failure: CritiqueFailure) -> bool:
        """Return whether the recipe lets the critic be asked again."""
        return getattr(self._actions, failure.reason, None) in ("retry", "repair")

    def _failed(self, checks: tuple[Check, ...]) -> list[Check]:
        return [check for check in checks if not check.passed and getattr(self._actions, check.name) != "ignore"]


class ValidatedCritic:
    """A critic that cannot be asked again (a program, a file), with its critiques validated."""

    def __init__(self, critic: Critic, settings: config.CriticConfig, grader: Grader) -> None:
        self.name = critic.name
        self._critic, self._validator = critic, Validator(settings, grader)

    def critique(self, attempts: Iterable[tuple[Problem, Rollout]]) -> Iterator[Critique | CritiqueFailure]:
        """Yield one result an attempt, in the critic's order."""
        pending: dict[str, tuple[Problem, Rollout]] = {}

        def remembered() -> Iterator[tuple[Problem, Rollout]]:
            for problem, rollout in attempts:
                pending[rollout.id] = problem, rollout
                yield problem, rollout

        for result in self._critic.critique(remembered()):
            problem, rollout = pending.pop(result.rollout_id)
            yield self._validator.validate(result, problem, rollout) if isinstance(result, Critique) else result


def splice(critique: Critique, rollout: Rollout, *, keep_reasons: bool) -> Critique:
    """Replace the copied parts of a critique by the solver's own text, and cut what stands behind its last box.

    Reasons may quote the wrong step. In case B the remainder is the solver's own as well.
    """
    verdicts = critique.verdicts
    if not keep_reasons:
        verdicts = tuple(replace(verdict, reason="") for verdict in verdicts)
    trace = parse_rollout(rollout)
    own = schema.original(trace, critique.first_error)
    corrected, continuation = critique.corrected_step, critique.continuation
    if remainder := verbatim_remainder(critique, trace):
        continuation = remainder
    elif critique.case != "A":
        corrected, continuation = schema.cut_tail(corrected, continuation)
    spliced = replace(
        critique, verdicts=verdicts, correct_part=own, corrected_step=corrected, continuation=continuation, fidelity=1.0
    )
    try:
        return replace(spliced, text=schema.text_of(spliced))
    except ValueError:  # case and verdicts contradict each other, which the check of the case reports
        return spliced
