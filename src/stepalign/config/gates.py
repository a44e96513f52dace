"""The tables that a run is judged by: gates before it, canaries in it."""

from typing import Annotated

from pydantic import Field, NonNegativeFloat, PositiveInt

from stepalign.config.registry import Share, Table


class PreflightConfig(Table):
    """Sample and thresholds of `stepalign preflight` (docs/preflight.md)."""

    num_problems: PositiveInt = 64
    """Training problems, from the first."""
    num_samples: Annotated[int, Field(ge=2)] = 2
    """Fresh attempts of the solver at each problem, and the teacher's behind each prompt."""
    min_solve_gain: float = 0.0
    """The least by which the teacher solves more than the solver."""
    max_numbers_drop: Share = 0.05
    """The most attempts with right numbers alone that the teacher loses."""
    max_format_drop: Share = 0.05
    """The most format accuracy that the teacher loses."""
    max_length_ratio: Annotated[float, Field(ge=1)] = 1.5
    """The largest factor between the mean lengths of teacher and solver, in either direction."""
    max_correct_suppressed: Share = 0.5
    """The largest share of the tokens of correct solutions that credit pushes down."""
    min_error_contrast: float = 0.0
    """The least by which credit at the error is below credit elsewhere, in nats."""
    max_first_token_kl: NonNegativeFloat = 1.0
    """The largest KL(teacher‖student) of the first loss token, in nats."""
    max_cut: Share = 0.1
    """The largest share of teacher prompts that are shortened."""
    max_dropped: Share = 0.5
    """The largest share of rollouts that carry no gradient."""
    min_first_step: float = 0.0
    """The least first-order change of the accuracy by the first optimizer step."""
    max_hours: NonNegativeFloat = 0.0
    """The most hours of the run on this machine; 0 is no bound."""


class CanariesConfig(Table):
    """Ranges of a run's measures, relative to its first steps. A step that leaves one says so (docs/canaries.md)."""

    num_steps: PositiveInt = 4
    """The first steps, and the last ones, whose means are compared."""
    num_standard_errors: NonNegativeFloat = 3.0
    """Standard errors that a change must exceed beside the range."""
    max_accuracy_drop: Share = 0.1
    """The largest fall of the accuracy, on training problems and on held-out ones."""
    max_gap: Share = 0.15
    """The most that accuracy on training problems may gain beyond that on held-out ones."""
    max_format_drop: Share = 0.1
    """The largest fall of the format accuracy."""
    max_truncation_rise: Share = 0.1
    """The largest rise of the share of truncated rollouts."""
    max_repetition_rise: Share = 0.05
    """The largest rise of the share of repeated 8-grams."""
    max_length_ratio: Annotated[float, Field(ge=1)] = 1.5
    """The largest factor between mean lengths, in either direction."""
    max_entropy_ratio: Annotated[float, Field(ge=1)] = 4.0
    """The largest factor between mean entropies of the student, in either direction."""
