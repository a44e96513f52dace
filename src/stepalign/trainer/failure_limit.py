"""Limit of failing critiques: a run whose critic fails on nearly everything would teach the fallback alone."""

from collections.abc import Sequence
from pathlib import Path

from stepalign import config
from stepalign.errors import StepalignError
from stepalign.records import CriticResult
from stepalign.trainer.checks import count_reasons, failed


class FailureLimit:
    """Count of the steps running in which more critiques failed than `critic.max_failure_share`."""

    def __init__(self, critic: config.CriticConfig | None, folder: Path) -> None:
        """Begin with none. `folder` is the run's, for the message."""
        self._critic, self._folder = critic, folder
        self._failed_steps = 0

    def check(self, step: int, critiques: Sequence[CriticResult]) -> None:
        """Count a step's critiques.

        Raises:
            StepalignError: `critic.max_failed_steps` are reached; with the reasons and an example.
        """
        if self._critic is None or not critiques:
            return
        failures = failed(critiques)
        too_many = len(failures) > self._critic.max_failure_share * len(critiques)
        self._failed_steps = self._failed_steps + 1 if too_many else 0
        if self._failed_steps >= self._critic.max_failed_steps:
            before = self._failed_steps - 1
            earlier = f", as in the {before} steps before" if before else ""
            raise StepalignError(
                f"{self._folder}, step {step}: {len(failures)} of {len(critiques)} critiques failed "
                f"({count_reasons(failures)}){earlier}. For example rollout "
                f"{failures[0].rollout_id}: {failures[0].detail or failures[0].reason}. Another critic or prompt? "
                "critic.max_failure_share = 1 never stops a run"
            )
