"""What became of a critic's answers, check by check: what the metrics keep and the report shows.

For each check, and each other reason for which an answer did not teach (`parse`, `truncated`, `timeout` …):

- `passed`: as the critic wrote it;
- `repaired`: failed, and passes since the program mended it;
- `retried`: failed, and the critic was asked again (an answer that is asked for twice counts twice);
- `ignored`: failed, and teaches all the same, since the policy says so;
- `fell back`: failed, and no critique teaches. Where several checks failed, each counts.
"""

from collections import Counter
from collections.abc import Iterable

from stepalign.critics.checks import NAMES
from stepalign.records import Critique, CritiqueFailure

OUTCOMES = ("passed", "repaired", "retried", "ignored", "fell back")


def outcomes(answers: Iterable[Critique | CritiqueFailure]) -> dict[str, Counter[str]]:
    """For each check, or other reason, how often each outcome came. Checks in their order, then the rest."""
    counted: dict[str, Counter[str]] = {}
    for answer in answers:
        for name, outcome in _of(answer):
            counted.setdefault(name, Counter())[outcome] += 1
    return {name: counted[name] for name in ordered(counted)}


def ordered(names: Iterable[str]) -> list[str]:
    """Names of checks in the order in which they are made, then other reasons by alphabet."""
    return sorted(names, key=lambda name: (NAMES.index(name) if name in NAMES else len(NAMES), name))


def _of(answer: Critique | CritiqueFailure) -> list[tuple[str, str]]:
    found = [(name, "retried") for name in answer.retried]
    for check in answer.checks:
        if check.passed:
            found.append((check.name, "passed"))
        elif isinstance(answer, CritiqueFailure):
            found.append((check.name, "fell back"))
        else:
            found.append((check.name, "repaired" if check.name in answer.repaired else "ignored"))
    if isinstance(answer, CritiqueFailure) and not any(check.name == answer.reason for check in answer.checks):
        found.append((answer.reason, "fell back"))
    return found
