"""A critic that fails again and again stops the run."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from stepalign import config
from stepalign.errors import StepalignError
from stepalign.records import CriticResult, CritiqueFailure


class FailingCritic:
    """Counter of the steps running in which too many critiques failed."""

    def __init__(self, critic: config.CriticConfig | None, folder: Path) -> None:
        self._critic, self._folder, self._steps = critic, folder, 0

    def check(self, step: int, critiques: Sequence[CriticResult]) -> None:
        """Raise a StepalignError where most critiques of several steps running have failed."""
        critic = self._critic
        if critic is None or not critiques:
            return
        failures = [result for result in critiques if isinstance(result, CritiqueFailure)]
        too_many = len(failures) > critic.max_failure_share * len(critiques)
        self._steps = self._steps + 1 if too_many else 0
        if self._steps >= critic.max_failed_steps:
            reasons = ", ".join(f"{n} {name}" for name, n in Counter(f.reason for f in failures).most_common())
            raise StepalignError(
                f"{self._folder}, step {step}: {len(failures)} of {len(critiques)} critiques failed ({reasons}), "
                f"as in the {self._steps - 1} steps before. For example rollout {failures[0].rollout_id}: "
                f"{failures[0].detail or failures[0].reason}. Another critic or prompt? critic.max_failure_share = 1 "
                "never stops a run"
            )
