"""A critic that reads its critiques from a file: an earlier run's, a person's, planted ones.

    [critic]
    kind = "replay"
    path = "planted/critiques.jsonl"

Critiques belong to rollouts by id. Left out: matching by text. Whoever names a file says that its ids mean these
rollouts; the checks find a critique of another text wherever it copies anything.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path

from stepalign import config
from stepalign.critics.validation import CheckedCritic, Rules
from stepalign.errors import StepalignError
from stepalign.io import read_jsonl
from stepalign.records import CriticResult, Critique, CritiqueFailure, Problem, Rollout
from stepalign.rewards.math import Grader

MISSING = "missing"


class ReplayCritic:
    """Answers each attempt with what the file says of it. Its answers keep the name of the critic that wrote them."""

    name = "replay"

    def __init__(self, path: Path) -> None:
        """Read the whole file.

        Raises:
            StepalignError: naming the line that is no critic's answer, or a rollout that is answered twice.
        """
        self._path = path
        self._answers: dict[str, Critique | CritiqueFailure] = {}
        answers: list[Critique | CritiqueFailure] = read_jsonl(path, CriticResult)  # type: ignore[arg-type]
        for answer in answers:
            if answer.rollout_id in self._answers:
                raise StepalignError(f"{path}: rollout {answer.rollout_id} is answered twice")
            self._answers[answer.rollout_id] = answer

    @classmethod
    def from_config(cls, settings: config.ReplayCriticConfig, *, grader: Grader, **_: object) -> CheckedCritic:
        """Build the critic of a recipe, with its checks."""
        return CheckedCritic(cls(settings.path), Rules(settings, grader))

    def critique(self, attempts: Iterable[tuple[Problem, Rollout]]) -> Iterator[Critique | CritiqueFailure]:
        """Yield one answer an attempt, in the order in which they come."""
        for _, rollout in attempts:
            answer = self._answers.get(rollout.id)
            if answer is None:
                detail = f"{self._path} has no critique of it"
                answer = CritiqueFailure(rollout_id=rollout.id, critic=self.name, reason=MISSING, detail=detail)
            yield answer
