"""A gate: a measured value with its interval, a threshold, a verdict, and the keys to change where it fails."""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from stepalign.evaluation.stats import Interval

Unit = Literal["%", "points", "nats", "times", "hours"]
GateVerdict = Literal["pass", "fail", "undecided"]


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Gate:
    """One gate."""

    name: str
    title: str
    measured: Interval
    threshold: float
    at_least: bool
    """True where the value may not be lower than the threshold; else it may not be higher."""
    unit: Unit
    remedy: str
    """The keys to change where it fails."""
    detail: str = ""

    @property
    def verdict(self) -> GateVerdict:
        """Pass or fail where the whole interval is on one side of the threshold."""
        ends = (self.measured.low, self.measured.high)
        worst, best = ends if self.at_least else ends[::-1]
        return "pass" if self._is_good(worst) else "undecided" if self._is_good(best) else "fail"

    def _is_good(self, value: float) -> bool:
        return value >= self.threshold if self.at_least else value <= self.threshold

    @property
    def value(self) -> str:
        """The value with its interval, in its unit."""
        one = self.measured
        if one.low == one.high:
            return self._format(one.value)
        return f"{self._format(one.value)} [{self._format(one.low, False)}, {self._format(one.high, False)}]"

    @property
    def bound(self) -> str:
        """The threshold in words."""
        return f"{'at least' if self.at_least else 'at most'} {self._format(self.threshold)}"

    def _format(self, value: float, unit: bool = True) -> str:
        scale, spec = {"%": (100, ".0f"), "points": (100, "+.1f")}.get(self.unit, (1, ".2f"))
        number = format(scale * value, spec).replace("-", "−")
        return f"{number} {self.unit}" if unit else number


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Preflight:
    """All gates of a recipe. One JSON file."""

    name: str
    gates: tuple[Gate, ...]
    not_measured: Mapping[str, str] = Field(default_factory=dict)
    """Gates without a value, with the reason."""
    sides: Mapping[str, Mapping[str, Interval]] = Field(default_factory=dict)
    """Measures of attempts by name: `solver`, `teacher` and `difference` on the same problems."""
    reasons: Mapping[str, int] = Field(default_factory=dict)
    """Reasons for a missing critique or a missing example."""
    hours: float | None = None
    """Estimate of the whole run on this machine; None where no stage was timed."""
    manifest: Mapping[str, Any] = Field(default_factory=dict)

    @property
    def shortfall(self) -> str:
        """The reasons in words; empty where there is none."""
        reasons = sorted(self.reasons.items(), key=lambda pair: -pair[1])
        counts = ", ".join(f"{count} {reason}" for reason, count in reasons)
        return f"without a critique or an example: {counts}" if counts else ""

    @property
    def verdict(self) -> GateVerdict:
        """`fail` where any gate fails, `undecided` where none fails and not all pass."""
        verdicts = {gate.verdict for gate in self.gates}
        return "fail" if "fail" in verdicts else "undecided" if "undecided" in verdicts else "pass"

    def named(self, name: str) -> Gate | None:
        """Return a gate by its name; None where it was not measured."""
        return next((gate for gate in self.gates if gate.name == name), None)
