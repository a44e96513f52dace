"""Graders: a rollout's response against its problem, as a reward and as feedback text.

Three implementations: mathematical answers (`rewards.math`), unit tests (`rewards.unit_tests`) and any Python function:

    grader = FunctionGrader(lambda problem, rollout: rollout.text.count("[") == rollout.text.count("]"))

Left out: rewards from a learned model, because every condition here is graded by something that can be checked; a time
limit of a function, because it can have one inside.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from math import nan
from typing import Protocol, Self, runtime_checkable

from stepalign.errors import StepalignError
from stepalign.records import Grade, Problem, Rollout
from stepalign.trace import final_answers

GradingFunction = Callable[[Problem, Rollout], bool | float | Grade]


@runtime_checkable
class Grader(Protocol):
    """Compare final answers. Use it as a context manager, or call `close` at the end."""

    warning: str = ""
    """A protection that is missing here. A run's report begins with it."""

    def grade(self, rollouts: Sequence[Rollout], problems: Mapping[str, Problem]) -> list[Rollout]:
        """Return the rollouts, in their order, each with its `Grade`.

        `Grade.score` is the reward, and `Grade.correct` where there is no score. `Grade.feedback` says in words what
        was extracted and what is wrong with it, without the reference answer, so that a teacher may read it. An old
        grade is replaced.

        Raises:
            StepalignError: naming the rollout whose problem is not in `problems`, by id.
        """

    def same(self, pairs: Sequence[tuple[str, str]]) -> list[bool]:
        """Compare the two answers of each pair, the first as the reference. In doubt they are not equal."""

    def close(self) -> None:
        """Release processes and files. Grading again acquires new ones."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def problem_of(rollout: Rollout, problems: Mapping[str, Problem]) -> Problem:
    """Return a rollout's problem, or raise an error that names the rollout."""
    if rollout.problem_id not in problems:
        raise StepalignError(f"rollout {rollout.id}: there is no problem {rollout.problem_id!r}")
    return problems[rollout.problem_id]


class FunctionGrader(Grader):
    """Grade with a function of problem and rollout."""

    def __init__(
        self,
        function: GradingFunction,
        *,
        threshold: float = 0.5,
        equal: Callable[[str, str], bool] = lambda reference, answer: reference.strip() == answer.strip(),
    ) -> None:
        """Wrap a function that returns true or false, a score from 0 to 1, or a whole `Grade`.

        A score is the reward, and correct from `threshold` on.
        `equal` compares a reference with an answer, for `same`.
        """
        self._function, self._threshold, self._equal = function, threshold, equal

    def grade(self, rollouts: Sequence[Rollout], problems: Mapping[str, Problem]) -> list[Rollout]:
        """Grade each rollout. An error of the function names the rollout."""
        return [replace(rollout, grade=self._grade(rollout, problems)) for rollout in rollouts]

    def same(self, pairs: Sequence[tuple[str, str]]) -> list[bool]:
        """Compare the two answers of each pair."""
        return [self._equal(reference, answer) for reference, answer in pairs]

    def close(self) -> None:
        """Release nothing: the function holds what it holds."""

    def _grade(self, rollout: Rollout, problems: Mapping[str, Problem]) -> Grade:
        problem = problem_of(rollout, problems)
        try:
            score = self._function(problem, rollout)
        except Exception as error:
            raise StepalignError(f"rollout {rollout.id}: the grading function failed: {error!r}") from error
        if isinstance(score, Grade):
            return score
        try:
            number = float(score)
        except (TypeError, ValueError):
            number = nan
        if not 0 <= number <= 1:
            raise StepalignError(
                f"rollout {rollout.id}: the grading function returned {score!r:.80}; true or false, a score from 0 "
                "to 1 or a Grade is wanted"
            )
        correct = number >= self._threshold
        points = "" if isinstance(score, bool) else f" (score {number:g})"
        return Grade(
            correct=correct,
            outcome="correct" if correct else "wrong",
            final_answer=(final_answers(rollout) or ("",))[-1],
            feedback=f"The solution is {'correct' if correct else 'wrong'}{points}.",
            score=None if isinstance(score, bool) else number,
        )
