"""A probe's measures as a record: what reports read and the probe writes (`docs/probe.md` defines each measure)."""

from pathlib import Path

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from stepalign.errors import StepalignError
from stepalign.evaluation.stats import Interval
from stepalign.io import explain


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class CreditMeasures:
    """Measures of credit by context and measure, each with its interval over problems."""

    contexts: dict[str, dict[str, Interval]] = Field(default_factory=dict)
    """By the context's name, then the measure's. A measure that these rollouts do not allow is absent."""
    baselines: dict[str, dict[str, Interval]] = Field(default_factory=dict)
    """`chance` and `length`, for the measures of credit as a process reward."""
    resamples: int = 0
    """Bootstrap resamples behind each interval."""


def read(path: Path) -> CreditMeasures:
    """Read a file of measures.

    Raises:
        StepalignError: it is missing, or holds something else.
    """
    try:
        return TypeAdapter(CreditMeasures).validate_json(path.read_bytes())
    except OSError as error:
        raise StepalignError(f"{path}: {error.strerror}") from None
    except ValidationError as error:
        raise StepalignError(f"{path}: {explain(error)}") from None
