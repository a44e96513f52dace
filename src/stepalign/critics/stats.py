"""Statistics of a critic's results: outcomes by check, cases, failures by reason, fidelity, tokens, cost.

For each check, and each other reason why a reply was rejected (`parse`, `truncated`, `timeout` …), an outcome is one of

- `passed`: as the critic wrote it;
- `repaired`: failed, and passes since the program repaired it;
- `retried`: failed, and the critic was asked again (each time counts);
- `ignored`: failed, and the teacher is shown it all the same, as the recipe says;
- `fell back`: failed, and there is no critique. Where several checks failed, each counts.

Fidelity is the measure of the check `exact_copy` before any repair. A critique that had nothing to copy has none: its
first step is wrong, and it is not of case B, which copies the remainder. Left out: whether a critique finds the true
error, because that takes labels (`evaluation.critic_benchmark`).
"""

import textwrap
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from stepalign.critics.checks import NAMES
from stepalign.records import Critique, CritiqueFailure

_WIDTH = 160
"""The most characters of an example."""
OUTCOMES = ("passed", "repaired", "retried", "ignored", "fell back")
_QUANTILES = {"min": 0.0, "1%": 0.01, "5%": 0.05, "25%": 0.25, "median": 0.5}


@dataclass(frozen=True, kw_only=True)
class Prices:
    """Cost of a million tokens, in any currency."""

    prompt: float = 0.0
    completion: float = 0.0


@dataclass(frozen=True, kw_only=True)
class CriticReport:
    """A set of critic results in numbers."""

    answers: int
    critiques: int
    cases: dict[str, int]
    failures: dict[str, int]
    """By reason."""
    example: str = ""
    """A failure of the most frequent reason: rollout, reason and detail."""
    mended: dict[str, int] = Field(default_factory=dict)
    """By author of the correction, where the critic has several."""
    mender_failed: int = 0
    """Those of the program because no sample of a mender passed."""
    checks: dict[str, dict[str, int]]
    """For each check, or other reason of a failure, how often each outcome came."""
    fidelity: dict[str, float] = Field(default_factory=dict)
    """The share that is `exact`, the mean, and quantiles. Empty where nothing was copied."""
    prompt_tokens: int
    completion_tokens: int
    seconds: float
    """The sum of the results' own times; those that overlap count each."""
    cost: float | None = None

    @property
    def is_sound(self) -> bool:
        """True if every rollout has a critique and only ignored checks failed."""
        names = {name for outcomes in self.checks.values() for name in outcomes}
        return self.answers == self.critiques and names <= {"passed", "ignored"}


def outcomes(results: Iterable[Critique | CritiqueFailure]) -> dict[str, Counter[str]]:
    """Count the outcomes of each check, or other reason. Checks come in their order, then the rest."""
    counts: dict[str, Counter[str]] = {}
    for name, outcome in chain.from_iterable(map(_outcomes_of, results)):
        counts.setdefault(name, Counter())[outcome] += 1
    return {name: counts[name] for name in ordered(counts)}


def ordered(names: Iterable[str]) -> list[str]:
    """Sort names: checks in the order in which they run, then other reasons by alphabet."""
    return sorted(names, key=lambda name: (NAMES.index(name) if name in NAMES else len(NAMES), name))


def summarize(results: Sequence[Critique | CritiqueFailure], prices: Prices | None = None) -> CriticReport:
    """Report on a critic's results."""
    critiques = [result for result in results if isinstance(result, Critique)]
    reasons = [result.reason for result in results if isinstance(result, CritiqueFailure)]
    fidelity: list[float] = []
    for result in results:
        if isinstance(result, Critique) and not result.correct_part and result.case != "B":
            continue
        measured = [check.measure for check in result.checks if check.name == "exact_copy"]
        fidelity += measured or ([result.fidelity] if isinstance(result, Critique) else [])
    read, written = sum(r.prompt_tokens for r in results), sum(r.completion_tokens for r in results)
    return CriticReport(
        answers=len(results),
        critiques=len(critiques),
        cases=dict(Counter(sorted(critique.case for critique in critiques)).most_common()),
        failures=dict(Counter(sorted(reasons)).most_common()),
        example=example_failure(results),
        mended=dict(Counter(sorted(critique.mended_by for critique in critiques if critique.mended_by)).most_common()),
        mender_failed=sum(critique.mender_failed for critique in critiques),
        checks={name: dict(counts) for name, counts in outcomes(results).items()},
        fidelity=_distribution(fidelity),
        prompt_tokens=read,
        completion_tokens=written,
        seconds=round(sum(result.seconds for result in results), 3),
        cost=None if prices is None else (prices.prompt * read + prices.completion * written) / 1e6,
    )


def example_failure(results: Iterable[Critique | CritiqueFailure | None]) -> str:
    """Return the first failure of the most frequent reason in a line; empty without a failure."""
    failures = [result for result in results if isinstance(result, CritiqueFailure)]
    counts = Counter(failure.reason for failure in failures)
    if not failures:
        return ""
    first = max(failures, key=lambda failure: counts[failure.reason])
    said = f"{first.rollout_id}: {first.reason}" + (f": {first.detail}" if first.detail else "")
    return textwrap.shorten(said, _WIDTH, placeholder=" …")


def table(report: CriticReport) -> str:
    """Format the report as lines of text."""
    lines = [f"{'answers':<14}{report.answers}", f"{'critiques':<14}{report.critiques}{_in_words(report.cases)}"]
    lines.append(f"{'failures':<14}{report.answers - report.critiques}{_in_words(report.failures)}")
    if report.example:
        lines.append(f"{'for example':<14}{report.example}")
    if report.mended:
        failed = f"; {report.mender_failed} by the program after the mender failed" if report.mender_failed else ""
        lines.append(f"{'mended':<14}{sum(report.mended.values())}{_in_words(report.mended)}{failed}")
    if report.fidelity:
        figures = ", ".join(f"{name} {value:.4f}" for name, value in report.fidelity.items() if name != "exact")
        lines.append(f"{'fidelity':<14}{report.fidelity['exact']:.1%} exact; {figures}")
    cost = "" if report.cost is None else f"; cost {report.cost:,.4f}"
    lines.append(f"{'tokens':<14}{report.prompt_tokens:,} read, {report.completion_tokens:,} written{cost}")
    if report.checks:
        width = max(14, *(len(name) + 2 for name in report.checks))
        lines += ["", " " * width + "".join(f"{outcome:>11}" for outcome in OUTCOMES)]
        for name, counts in report.checks.items():
            lines.append(f"{name:<{width}}" + "".join(f"{counts.get(key, 0) or '':>11}" for key in OUTCOMES))
    return "\n".join(lines)


def _outcomes_of(result: Critique | CritiqueFailure) -> Iterator[tuple[str, str]]:
    yield from ((name, "retried") for name in result.retried)
    for check in result.checks:
        if check.passed:
            yield check.name, "passed"
        elif isinstance(result, CritiqueFailure):
            yield check.name, "fell back"
        else:
            yield check.name, "repaired" if check.name in result.repaired else "ignored"
    if isinstance(result, CritiqueFailure) and not any(check.name == result.reason for check in result.checks):
        yield result.reason, "fell back"


def _in_words(counts: Mapping[str, int]) -> str:
    return f"  ({', '.join(f'{count} {name}' for name, count in counts.items())})" if counts else ""


def _distribution(values: Sequence[float]) -> dict[str, float]:
    if not values:
        return {}
    quantiles = {name: float(np.quantile(values, share)) for name, share in _QUANTILES.items()}
    return {"exact": float(np.mean(np.array(values) == 1)), "mean": float(np.mean(values)), **quantiles}
