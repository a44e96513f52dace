"""A Python function as a grader, in this process.

    grader = FunctionGrader(lambda problem, rollout: rollout.text.count("[") == rollout.text.count("]"))

Left out: a time limit, because a function of one's own can have one inside.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from stepalign.errors import StepalignError
from stepalign.records import Grade, Problem, Rollout
from stepalign.rewards import Grader
from stepalign.rewards.math_answers import final_answers

GradingFunction = Callable[[Problem, Rollout], bool | float | Grade]


class FunctionGrader(Grader):
    """Grade with a function of problem and rollout."""

    def __init__(
        self,
        function: GradingFunction,
        *,
        threshold: float = 0.5,
        equal: Callable[[str, str], bool] = lambda reference, answer: reference.strip() == answer.strip(),
    ) -> None:
        """Wrap a function.

        Args:
            function: returns true or false, a score, or a whole `Grade`.
            threshold: the lowest score of a correct rollout.
            equal: compares a reference with an answer, for `same`.
        """
        self._function, self._threshold, self._equal = function, threshold, equal

    def grade(self, rollouts: Sequence[Rollout], problems: Mapping[str, Problem]) -> list[Rollout]:
        """Return the rollouts with their grades (see `Grader.grade`).

        Raises:
            StepalignError: naming the rollout whose problem is missing, or for which the function failed.
        """
        return [replace(rollout, grade=self._grade(rollout, problems)) for rollout in rollouts]

    def same(self, pairs: Sequence[tuple[str, str]]) -> list[bool]:
        """Compare the two answers of each pair, the first as the reference."""
        return [self._equal(reference, answer) for reference, answer in pairs]

    def close(self) -> None:
        """Do nothing, because nothing is held."""

    def _grade(self, rollout: Rollout, problems: Mapping[str, Problem]) -> Grade:
        if rollout.problem_id not in problems:
            raise StepalignError(f"rollout {rollout.id}: there is no problem {rollout.problem_id!r}")
        try:
            score = self._function(problems[rollout.problem_id], rollout)
        except Exception as error:
            raise StepalignError(f"rollout {rollout.id}: the grading function failed: {error!r}") from error
        if isinstance(score, Grade):
            return score
        correct = score >= self._threshold
        points = "" if isinstance(score, bool) else f" (score {score:g})"
        return Grade(
            correct=correct,
            outcome="correct" if correct else "wrong",
            final_answer=(final_answers(rollout.text) or ("",))[-1],
            feedback=f"The solution is {'correct' if correct else 'wrong'}{points}.",
        )
