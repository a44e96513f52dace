"""Which problems, in which order."""

from collections.abc import Callable

import pytest

from stepalign.chat import load_chat
from stepalign.config import Recipe, registry
from stepalign.errors import StepalignError
from stepalign.prompts.conversation import SolverPrompt
from stepalign.records import Problem
from stepalign.trainer.batches import batches, with_teacher_room


def test_an_epoch_shows_every_problem_once_in_an_order_of_its_own() -> None:
    problems = [Problem(id=str(i), statement=f"{i}?", answer="1") for i in range(5)]
    stream = batches(problems, 2, seed=0)
    shown = [problem.id for _ in range(5) for problem in next(stream)]
    assert sorted(shown[:5]) == sorted(shown[5:]) == ["0", "1", "2", "3", "4"]
    assert shown[:5] != shown[5:]


def test_no_problems_are_an_error_rather_than_an_endless_search() -> None:
    with pytest.raises(StepalignError, match="no problems to draw batches from"):
        next(batches([], 2, seed=0))


def test_a_problem_whose_teacher_prompt_leaves_no_room_is_left_out(make_recipe: Callable[..., Recipe]) -> None:
    keys = "context.template=refsol", "teacher.max_length=2000", "sampling.max_new_tokens=100"
    short = Problem(id="short", statement="1 + 1?", answer="2", solution="It is 2.")
    long = Problem(id="long", statement="1 + 1? " * 1000, answer="2", solution="It is 2.")

    def fitting(kind: str, *problems: Problem) -> list[Problem]:
        recipe = make_recipe(*keys, f"algorithm.kind={kind}")
        chat, prompt = load_chat(recipe.model), SolverPrompt(recipe.prompts)
        algorithm = registry.build(recipe.algorithm, recipe=recipe, chat=chat, prompt=prompt, context_limit=None)
        return with_teacher_room(problems, algorithm)

    assert fitting("seq-kd", short, long) == [short]
    assert fitting("sft", short, long) == [short, long]
    with pytest.raises(
        StepalignError, match=r"no problem leaves room for sampling\.max_new_tokens in teacher\.max_len"
    ):
        fitting("seq-kd", long)
