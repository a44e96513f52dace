"""Supervised conditions: which completions are learned, behind which prompt, and what is counted."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from stepalign.algorithms.seq_kd import SeqKD
from stepalign.algorithms.sft import SFT
from stepalign.chat import load_chat
from stepalign.config import Recipe, registry
from stepalign.errors import StepalignError
from stepalign.prompts.conversation import SolverPrompt
from stepalign.records import Grade, Problem, Rollout

MakeRecipe = Callable[..., Recipe]

PROBLEMS = {name: Problem(id=name, statement=f"Compute {name}.", answer="9", solution="It is 9.") for name in "abc"}


def build(recipe: Recipe) -> SFT | SeqKD:
    chat = load_chat(recipe.model)
    built: SFT | SeqKD = registry.build(
        recipe.algorithm, recipe=recipe, chat=chat, prompt=SolverPrompt(recipe.prompts), context_limit=None
    )
    return built


def rollout(problem: str, sample: int, correct: bool) -> Rollout:
    return Rollout(
        id=f"{problem}/{sample}",
        problem_id=problem,
        sample=sample,
        prompt_ids=(1, 2),
        completion_ids=(3, 4, 5),
        text="abc",
        token_starts=(0, 1, 2),
        finish="stop",
        grade=Grade(correct=correct, outcome="correct" if correct else "wrong"),
    )


def test_own_rollouts_are_learned_where_they_are_right(make_recipe: MakeRecipe) -> None:
    algorithm = build(make_recipe("algorithm={kind='sft', sequences='rollouts'}"))
    rollouts = [rollout("a", 0, True), rollout("a", 1, False), rollout("b", 0, False)]
    step = algorithm.build_examples(rollouts, PROBLEMS, {})
    assert [example.rollout_id for example in step.examples] == ["a/0"]
    assert (step.outcomes["trained"], step.outcomes["dropped"]) == (1, 2)
    assert dict(step.failures) == {"wrong answer": 2}
    assert algorithm.rollout_source(1) == "policy"
    assert not algorithm.second_turn(rollouts, PROBLEMS, {})


def test_only_problems_without_a_right_rollout_are_rationalized_and_learned_without_the_hint(
    make_recipe: MakeRecipe,
) -> None:
    recipe = make_recipe("algorithm={kind='sft', sequences='rollouts', rationalize=true}", "context.template=hint")
    algorithm = build(recipe)
    first = [rollout("a", 0, True), rollout("a", 1, False), *(rollout(p, n, False) for p in "bc" for n in range(2))]
    prompts = algorithm.second_turn(first, PROBLEMS, {})
    assert list(prompts) == ["b/0", "c/0"]
    text = load_chat(recipe.model).decode(prompts["b/0"])[0]
    assert "Compute b." in text
    assert "The final answer is 9." in text

    second = [
        replace(
            rollout(p, 0, correct), id=f"{p}/0/second", turn=2, prompt_ids=prompts[f"{p}/0"], completion_ids=(7, 8, 9)
        )
        for p, correct in (("b", True), ("c", False))
    ]
    step = algorithm.build_examples([*first, *second], PROBLEMS, {})
    assert [example.rollout_id for example in step.examples] == ["a/0", "b/0/second"]
    assert step.examples[1].student.input_ids == (1, 2, 7, 8), "behind the plain prompt"
    assert step.outcomes["rationalized"] == 1
    assert dict(step.failures) == {"wrong answer": 5, "wrong with a hint": 1}


def test_a_problem_without_room_for_a_hint_is_counted(make_recipe: MakeRecipe) -> None:
    keys = "algorithm={kind='sft', sequences='rollouts', rationalize=true}", "context.template=hint"
    algorithm = build(make_recipe(*keys, "teacher.max_length=2000", "sampling.max_new_tokens=100"))
    problems = {**PROBLEMS, "b": replace(PROBLEMS["b"], statement="Compute b. " * 1000)}
    first = [rollout("a", 0, False), rollout("b", 0, False), rollout("b", 1, False), rollout("c", 0, True)]
    prompts = algorithm.second_turn(first, problems, {})
    assert list(prompts) == ["a/0"]
    second = replace(rollout("a", 0, True), id="a/0/second", turn=2, prompt_ids=prompts["a/0"])
    step = algorithm.build_examples([*first, second], problems, {})
    assert dict(step.failures) == {"wrong answer": 3, "prompt with a hint too long": 1}
    assert step.outcomes["trained"] == 2


def test_references_are_learned_whatever_the_grader_says(make_recipe: MakeRecipe) -> None:
    algorithm = build(make_recipe("algorithm.kind=sft"))
    assert algorithm.rollout_source(7) == "reference"
    step = algorithm.build_examples([replace(rollout("a", 0, False), source="reference")], PROBLEMS, {})
    assert len(step.examples) == 1
    for fault, solution in {"is missing": "", "breaks the format 'steps'": "### Step 4: x\n\\boxed{9}"}.items():
        with pytest.raises(StepalignError, match=f"problem z: its reference solution {fault}"):
            algorithm.check_problems(
                [*PROBLEMS.values(), Problem(id="z", statement="?", answer="1", solution=solution)]
            )


def test_the_teachers_samples_are_learned_behind_the_solver_s_prompt(make_recipe: MakeRecipe) -> None:
    recipe = make_recipe("algorithm.kind=seq-kd", "context.template=refsol")
    algorithm, chat = build(recipe), load_chat(recipe.model)
    prompts = algorithm.teacher_prompts(list(PROBLEMS.values()))
    assert "It is 9." in chat.decode(prompts["a"])[0]
    drawn = [replace(rollout("a", n, n == 0), source="teacher", prompt_ids=prompts["a"]) for n in range(2)]
    step = algorithm.build_examples(drawn, PROBLEMS, {})
    assert len(step.examples) == 2
    plain = chat.decode(step.examples[0].student.prompt_ids)[0]
    assert "Compute a." in plain
    assert "It is 9." not in plain
    right = build(make_recipe("algorithm={kind='seq-kd', only_correct=true}", "context.template=refsol"))
    step = right.build_examples(drawn, PROBLEMS, {})
    assert [example.rollout_id for example in step.examples] == ["a/0"]
    assert dict(step.failures) == {"the teacher's answer is wrong": 1}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["algorithm.kind=seq-kd", "context.template=stepalign"],
            "shows critique, which is not known",
        ),
        (["algorithm.kind=seq-kd", "context.template=refsol", "teacher.kind=ema"], "teacher.kind = 'ema' .* cannot be"),
        (
            ["algorithm={kind='sft', sequences='rollouts', rationalize=true}", "context.template=sibling"],
            "shows sibling, which is not known",
        ),
    ],
)
def test_what_cannot_be_sampled_is_an_error(overrides: list[str], message: str, make_recipe: MakeRecipe) -> None:
    with pytest.raises(StepalignError, match=message):
        build(make_recipe(*overrides))
