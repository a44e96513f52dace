"""What becomes of a critique that was checked: it teaches, is mended, is asked for again, or falls back.

The recipe's `[critic.validation]` says which, check by check. Mending is splicing: the solver's own text is put
where the critic should have copied it, a reason that quotes the wrong step is left out, and the text is composed
anew. What is
mended is checked once more; a check that still fails then counts as one to ask again for.
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
class Refusal:
    """An answer that may not teach, and what the policy says to do about it."""

    reason: str
    detail: str
    again: bool = False
    """Whether the critic is to be asked again, if it may be."""
    fallback: config.Fallback | None = None
    """What takes the critique's place; None: what `critic.on_failure` says."""
    checks: tuple[Check, ...] = ()

    def failure(self, rollout: Rollout, critic: str) -> CritiqueFailure:
        """The refusal as the critic's last word."""
        return CritiqueFailure(
            rollout_id=rollout.id,
            critic=critic,
            reason=self.reason,
            detail=self.detail,
            fallback=self.fallback,
            checks=self.checks,
        )


class Rules:
    """A recipe's checks and its policy."""

    def __init__(self, settings: config.CriticConfig, grader: Grader) -> None:
        self.checker = Checker(settings.checks, grader)
        self._policy = settings.validation

    def settle(self, critique: Critique, problem: Problem, rollout: Rollout) -> Critique | Refusal:
        """The critique with its checks, mended where the policy says so, or why it may not teach."""
        checks = self.checker.check(critique, problem, rollout)
        failed = self._failed(checks)
        if not failed:
            return replace(critique, checks=checks)
        if getattr(self._policy, failed[0].name) == "repair":
            mended = splice(critique, rollout, checks)
            after = self.checker.check(mended, problem, rollout)
            if not (still := self._failed(after)):
                passed = {check.name for check in after if check.passed}
                repaired = tuple(check.name for check in checks if not check.passed and check.name in passed)
                return replace(mended, checks=checks, repaired=repaired)
            failed = still
        return self.refuse(failed[0].name, "; ".join(check.detail for check in failed), checks)

    def refuse(self, reason: str, detail: str, checks: tuple[Check, ...] = ()) -> Refusal:
        """What the policy makes of a fault that it names: a check that failed, `parse`, `truncated`."""
        action = getattr(self._policy, reason)
        return Refusal(
            reason=reason,
            detail=detail,
            again=action in ("retry", "repair"),
            fallback=action if action in ("refsol", "drop") else None,
            checks=checks,
        )

    def _failed(self, checks: tuple[Check, ...]) -> list[Check]:
        return [check for check in checks if not check.passed and getattr(self._policy, check.name) != "ignore"]


class CheckedCritic:
    """A critic whose answers are checked, one that cannot be asked again: a program, a file."""

    def __init__(self, critic: Critic, rules: Rules) -> None:
        self.name = critic.name
        self._critic, self._rules = critic, rules

    def critique(self, attempts: Iterable[tuple[Problem, Rollout]]) -> Iterator[Critique | CritiqueFailure]:
        """Yield one answer an attempt, in the critic's order."""
        taken: dict[str, tuple[Problem, Rollout]] = {}

        def remembered() -> Iterator[tuple[Problem, Rollout]]:
            for problem, rollout in attempts:
                taken[rollout.id] = problem, rollout
                yield problem, rollout

        for answer in self._critic.critique(remembered()):
            problem, rollout = taken.pop(answer.rollout_id)
            found = self._rules.settle(answer, problem, rollout) if isinstance(answer, Critique) else answer
            yield found.failure(rollout, answer.critic) if isinstance(found, Refusal) else found


def splice(critique: Critique, rollout: Rollout, checks: tuple[Check, ...]) -> Critique:
    """The critique with the solver's own text where it is to be copied, character for character.

    Where the wrong step is not withheld, its verdicts' reasons are left out as well.
    """
    verdicts = critique.verdicts
    if any(check.name == "withheld" and not check.passed for check in checks):
        verdicts = tuple(Verdict(step=verdict.step, correct=verdict.correct) for verdict in verdicts)
    own = schema.original(parse(rollout.text), critique.first_error)
    mended = replace(critique, verdicts=verdicts, correct_part=own, fidelity=1.0)
    try:
        return replace(mended, text=schema.text_of(mended))
    except ValueError:  # case and verdicts contradict each other: the check of the case says so
        return mended
