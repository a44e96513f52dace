"""Graders: a rollout's response against its problem, as a reward and as feedback text.

Two implementations: mathematical answers (`rewards.math`) and any Python function (`rewards.function`).
Left out: rewards from a learned model, because every condition here is graded by something that can be checked.
"""

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Protocol, Self, runtime_checkable

from stepalign.records import Problem, Rollout


@runtime_checkable
class Grader(Protocol):
    """Compare final answers. Use it as a context manager, or call `close` at the end."""

    def grade(self, rollouts: Sequence[Rollout], problems: Mapping[str, Problem]) -> list[Rollout]:
        """Return the rollouts, in their order, each with its `Grade`.

        `Grade.correct` is the reward. `Grade.feedback` says in words what was extracted and what is wrong with
        it, without the reference answer, so that a teacher may read it.

        Args:
            rollouts: what to grade; an old grade is replaced.
            problems: by id.

        Raises:
            StepalignError: naming the rollout whose problem is missing.
        """
        ...

    def same(self, pairs: Sequence[tuple[str, str]]) -> list[bool]:
        """Compare the two answers of each pair, the first as the reference. In doubt they are not equal."""
        ...

    def close(self) -> None:
        """Release processes and files. Grading again acquires new ones."""
        ...

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
