"""Validation: what becomes of a critique that was checked, by the recipe's `[critic.validation]`.

A critique is accepted, repaired, asked for again, or replaced by a fallback, as the table says for each check. Repair
is splicing: the program puts the solver's own text where the critic should have copied it, removes reasons that quote
the wrong step, and composes the text anew. A repaired critique is checked once more; a check that still fails then
counts as one to ask again for.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from stepalign import config
from stepalign.critics import Critic, schema
from stepalign.critics.checks import Checker
from stepalign.records import Check, Critique, CritiqueFailure, Problem, Rollout, Verdict
from stepalign.rewards import Grader
from stepalign.trace import parse


@dataclass(frozen=True, kw_only=True)
class Rejection:
    """A critique that no teacher may be shown, and what the recipe does about it."""

    reason: str
    detail: str
    retry: bool = False
    """True where the critic is asked again, within `critic.max_attempts`."""
    fallback: config.Fallback | None = None
    """The fallback instead of the critique; None: `critic.on_failure`."""
    checks: tuple[Check, ...] = ()

    def failure(self, rollout: Rollout, critic: str) -> CritiqueFailure:
        """Return the rejection as the critic's result."""
        return CritiqueFailure(
            rollout_id=rollout.id,
            critic=critic,
            reason=self.reason,
            detail=self.detail,
            fallback=self.fallback,
            checks=self.checks,
        )


class Validator:
    """A recipe's checks, and what follows where one fails."""

    def __init__(self, settings: config.CriticConfig, grader: Grader) -> None:
        self.checker = Checker(settings.checks, grader)
        self._actions = settings.validation

    def validate(self, critique: Critique, problem: Problem, rollout: Rollout) -> Critique | Rejection:
        """Check a critique, and repair it where the recipe says so."""
        checks = self.checker.check(critique, problem, rollout)
        failed = self._failed(checks)
        if not failed:
            return replace(critique, checks=checks)
        if getattr(self._actions, failed[0].name) == "repair":
            repaired = splice(critique, rollout, checks)
            after = self.checker.check(repaired, problem, rollout)
            if not (still_failed := self._failed(after)):
                passed = {check.name for check in after if check.passed}
                names = tuple(check.name for check in checks if not check.passed and check.name in passed)
                return replace(repaired, checks=checks, repaired=names)
            failed = still_failed
        return self.reject(failed[0].name, "; ".join(check.detail for check in failed), checks)

    def reject(self, reason: str, detail: str, checks: tuple[Check, ...] = ()) -> Rejection:
        """Reject a reply for a reason that the recipe's table has: a failed check, `parse` or `truncated`."""
        action = getattr(self._actions, reason)
        return Rejection(
            reason=reason,
            detail=detail,
            retry=action in ("retry", "repair"),
            fallback=action if action in ("refsol", "drop") else None,
            checks=checks,
        )

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
            if isinstance(result, CritiqueFailure):
                yield result
            else:
                validated = self._validator.validate(result, problem, rollout)
                yield validated.failure(rollout, result.critic) if isinstance(validated, Rejection) else validated


def splice(critique: Critique, rollout: Rollout, checks: tuple[Check, ...]) -> Critique:
    """Replace the copied part of a critique by the solver's own text.

    Where the wrong step is quoted, the verdicts' reasons are removed as well.
    """
    verdicts = critique.verdicts
    if any(check.name == "error_not_quoted" and not check.passed for check in checks):
        verdicts = tuple(Verdict(step=verdict.step, correct=verdict.correct) for verdict in verdicts)
    own = schema.original(parse(rollout.text), critique.first_error)
    spliced = replace(critique, verdicts=verdicts, correct_part=own, fidelity=1.0)
    try:
        return replace(spliced, text=schema.text_of(spliced))
    except ValueError:  # case and verdicts contradict each other, which the check of the case reports
        return spliced
