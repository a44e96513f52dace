"""What a set of critiques is worth: cases, failures by reason, checks, fidelity, tokens, cost.

Fidelity is what the check `verbatim` measured on the critique as its critic wrote it, before any repair. Left out:
whether a critique finds the true error, which takes labels (`evaluation.critics`).
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from stepalign.critics import counts
from stepalign.records import Critique, CritiqueFailure

QUANTILES = {"min": 0.0, "1%": 0.01, "5%": 0.05, "25%": 0.25, "median": 0.5}


@dataclass(frozen=True, kw_only=True)
class Prices:
    """What a million tokens cost, in any currency."""

    prompt: float = 0.0
    completion: float = 0.0

    def of(self, prompt_tokens: int, completion_tokens: int) -> float:
        """The cost of so many tokens."""
        return (self.prompt * prompt_tokens + self.completion * completion_tokens) / 1e6


@dataclass(frozen=True, kw_only=True)
class FidelityReport:
    """A set of answers in numbers."""

    answers: int
    critiques: int
    cases: dict[str, int]
    failures: dict[str, int]
    """By reason."""
    checks: dict[str, dict[str, int]]
    """For each check, or other reason of a failure, how often each outcome came (`critics.counts`)."""
    fidelity: dict[str, float] = Field(default_factory=dict)
    """The share that is `exact`, the mean, and quantiles. Empty where nothing was copied."""
    prompt_tokens: int
    completion_tokens: int
    seconds: float
    """The sum of the answers' own times; those that overlap count each."""
    cost: float | None = None


def summarize(answers: Sequence[Critique | CritiqueFailure], prices: Prices | None = None) -> FidelityReport:
    """The report on a critic's answers."""
    critiques = [answer for answer in answers if isinstance(answer, Critique)]
    failures = [answer for answer in answers if isinstance(answer, CritiqueFailure)]
    copied: list[float] = []
    for answer in answers:
        measured = [check.measure for check in answer.checks if check.name == "verbatim"]
        copied += measured or ([answer.fidelity] if isinstance(answer, Critique) else [])
    prompt_tokens = sum(answer.prompt_tokens for answer in answers)
    completion_tokens = sum(answer.completion_tokens for answer in answers)
    return FidelityReport(
        answers=len(answers),
        critiques=len(critiques),
        cases=_counted(critique.case for critique in critiques),
        failures=_counted(failure.reason for failure in failures),
        checks={name: dict(outcome) for name, outcome in counts.outcomes(answers).items()},
        fidelity=_spread(copied),
        prompt_tokens=prompt_tokens,
        completion_tokens=completion_tokens,
        seconds=round(sum(answer.seconds for answer in answers), 3),
        cost=None if prices is None else prices.of(prompt_tokens, completion_tokens),
    )


def table(report: FidelityReport) -> str:
    """The report as lines to read."""
    lines = [f"{'answers':<14}{report.answers}", f"{'critiques':<14}{report.critiques}{_in_words(report.cases)}"]
    lines.append(f"{'failures':<14}{report.answers - report.critiques}{_in_words(report.failures)}")
    if report.fidelity:
        shown = ", ".join(f"{name} {value:.4f}" for name, value in report.fidelity.items() if name != "exact")
        lines.append(f"{'fidelity':<14}{report.fidelity['exact']:.1%} exact; {shown}")
    lines.append(
        f"{'tokens':<14}{report.prompt_tokens:,} read, {report.completion_tokens:,} written"
        + ("" if report.cost is None else f"; cost {report.cost:,.4f}")
    )
    if report.checks:
        width = max(14, *(len(name) + 2 for name in report.checks))
        lines += ["", " " * width + "".join(f"{outcome:>11}" for outcome in counts.OUTCOMES)]
        for name, outcome in report.checks.items():
            lines.append(f"{name:<{width}}" + "".join(f"{outcome.get(key, 0) or '':>11}" for key in counts.OUTCOMES))
    return "\n".join(lines)


def _counted(names: Iterable[str]) -> dict[str, int]:
    return dict(sorted(Counter(names).items(), key=lambda item: (-item[1], item[0])))


def _in_words(counted: Mapping[str, int]) -> str:
    return f"  ({', '.join(f'{count} {name}' for name, count in counted.items())})" if counted else ""


def _spread(values: Sequence[float]) -> dict[str, Any]:
    if not values:
        return {}
    array = np.array(values)
    exact = {"exact": float((array == 1).mean()), "mean": float(array.mean())}
    return exact | {name: float(np.quantile(array, share)) for name, share in QUANTILES.items()}
