"""A probe's measures as a record: what reports read and the probe writes (`docs/probe.md` defines each measure)."""

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from stepalign.evaluation.stats import Interval


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class CreditMeasures:
    """Measures of credit by context and measure, each with its interval over problems."""

    contexts: dict[str, dict[str, Interval]] = Field(default_factory=dict)
    """By the context's name, then the measure's. A measure that these rollouts do not allow is absent."""
    baselines: dict[str, dict[str, Interval]] = Field(default_factory=dict)
    """`chance` and `length`, for the measures of credit as a process reward."""
    resamples: int = 0
    """Bootstrap resamples behind each interval."""
