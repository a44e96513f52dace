"""A critic that reads its critiques from a file: an earlier run's, a person's, planted ones.

    [critic]
    kind = "replay"
    path = "planted/critiques.jsonl"

Critiques belong to rollouts by id. Left out: matching by text, because the checks reject a critique of another text
wherever it copies anything.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path

from stepalign import config
from stepalign.critics.validation import ValidatedCritic
from stepalign.errors import StepalignError
from stepalign.io import read_jsonl
from stepalign.records import CriticResult, Critique, CritiqueFailure, Problem, Rollout
from stepalign.rewards import Grader


class ReplayCritic:
    """The results in a file. Each keeps the name of the critic that wrote it."""

    name = "replay"

    def __init__(self, path: Path) -> None:
        self._path = path
        self._results: dict[str, Critique | CritiqueFailure] = {}
        for result in read_jsonl(path, CriticResult):  # type: ignore[var-annotated, arg-type]
            if result.rollout_id in self._results:
                raise StepalignError(f"{path}: rollout {result.rollout_id} is answered twice")
            self._results[result.rollout_id] = result

    @classmethod
    def from_config(cls, settings: config.ReplayCriticConfig, *, grader: Grader, **_: object) -> ValidatedCritic:
        """Build the critic of a recipe, with its validation."""
        return ValidatedCritic(cls(settings.path), settings, grader)

    def critique(self, attempts: Iterable[tuple[Problem, Rollout]]) -> Iterator[Critique | CritiqueFailure]:
        """Yield one result an attempt, in the order of the attempts."""
        for _, rollout in attempts:
            detail = f"{self._path} has no critique of it"
            yield self._results.get(rollout.id) or CritiqueFailure(
                rollout_id=rollout.id, critic=self.name, reason="missing", detail=detail
            )
