from typing import Any

import pytest

from stepalign.errors import StepalignError
from stepalign.records import Grade, Problem, Rollout
from stepalign.rewards import FunctionGrader, Grader, GradingFunction
from stepalign.rewards.math import MathGrader

PROBLEM = Problem(id="p", statement="Sort 3 1 2.", answer="1 2 3")
PROBLEMS = {"p": PROBLEM}


def rollout(text: str, problem_id: str = "p") -> Rollout:
    return Rollout(id=f"r-{text}", problem_id=problem_id, completion_ids=(), text=text, token_starts=(), finish="stop")


def grade(function: GradingFunction, text: str, threshold: float = 0.5) -> Grade:
    with FunctionGrader(function, threshold=threshold) as grader:
        (graded,) = grader.grade([rollout(text)], PROBLEMS)
    assert graded.text == text
    assert graded.grade is not None
    return graded.grade


def test_both_graders_fulfil_the_protocol() -> None:
    assert isinstance(FunctionGrader(lambda problem, rollout: True), Grader)
    assert isinstance(MathGrader(), Grader)


def test_a_function_of_problem_and_rollout_decides() -> None:
    def contains(problem: Problem, rollout: Rollout) -> bool:
        return problem.answer in rollout.text

    assert grade(contains, r"\boxed{1 2 3}") == Grade(
        correct=True, outcome="correct", final_answer="1 2 3", feedback="The solution is correct."
    )
    assert grade(contains, "no") == Grade(correct=False, outcome="wrong", feedback="The solution is wrong.")


@pytest.mark.parametrize(("score", "threshold", "correct"), [(0.5, 0.5, True), (0.49, 0.5, False), (0.9, 1.0, False)])
def test_a_score_is_correct_from_the_threshold_on_and_named_in_the_feedback(
    score: float, threshold: float, correct: bool
) -> None:
    found = grade(lambda problem, rollout: score, "x", threshold)
    assert (found.correct, found.outcome) == (correct, "correct" if correct else "wrong")
    assert f"score {score}" in found.feedback
    assert found.score == score


def test_a_score_is_the_reward() -> None:
    grader = FunctionGrader(lambda problem, rollout: len(rollout.text) / 10)
    graded = grader.grade([rollout("ab"), rollout("abcd")], PROBLEMS)
    assert [(r.reward, r.correct) for r in graded] == [(0.2, False), (0.4, False)]


def test_a_whole_grade_is_taken_as_it_is() -> None:
    whole = Grade(correct=False, outcome="timeout", final_answer="7", feedback="Test 3 took too long.")
    assert grade(lambda problem, rollout: whole, "x") == whole


def test_rollouts_keep_their_order_and_lose_an_old_grade() -> None:
    old = Grade(correct=True, outcome="correct")
    rollouts = [Rollout(**{**vars(rollout(text)), "grade": old}) for text in "abc"]
    graded = FunctionGrader(lambda problem, rollout: rollout.text == "b").grade(rollouts, PROBLEMS)
    assert [(r.text, r.correct) for r in graded] == [("a", False), ("b", True), ("c", False)]


def test_faults_name_the_rollout() -> None:
    grader = FunctionGrader(lambda problem, rollout: 1 / 0)
    with pytest.raises(StepalignError, match="rollout r-x: there is no problem 'q'"):
        grader.grade([rollout("x", "q")], PROBLEMS)
    with pytest.raises(StepalignError, match="rollout r-x: the grading function failed: ZeroDivisionError"):
        grader.grade([rollout("x")], PROBLEMS)


@pytest.mark.parametrize("score", [-0.1, 1.5, float("nan"), "good", None])
def test_what_is_no_score_names_the_rollout(score: Any) -> None:
    grader = FunctionGrader(lambda problem, rollout: score)
    with pytest.raises(StepalignError, match=r"rollout r-x: the grading function returned .* a score from 0 to 1"):
        grader.grade([rollout("x")], PROBLEMS)


def test_answers_are_compared_as_text_or_by_the_function_given() -> None:
    pairs = [("5", " 5"), ("5", "5.0")]
    assert FunctionGrader(lambda problem, rollout: True).same(pairs) == [True, False]
    by_value = FunctionGrader(lambda problem, rollout: True, equal=lambda a, b: float(a) == float(b))
    assert by_value.same(pairs) == [True, True]
