"""From rollouts and critiques to examples: their context, and the counted outcomes."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from stepalign import config, contexts, models
from stepalign.algorithms.base import StepExamples
from stepalign.algorithms.distillation_loss import DistillationExample
from stepalign.algorithms.self_distillation import SelfDistillation
from stepalign.chat import Chat, load_chat
from stepalign.collate import Batch, collate
from stepalign.config import DistillationConfig, Recipe
from stepalign.errors import StepalignError
from stepalign.prompts.conversation import SolverPrompt
from stepalign.records import Critique, CritiqueFailure, Grade, Problem, Rollout, Verdict

MakeRecipe = Callable[..., Recipe]

PROBLEM = Problem(id="p", statement="Compute 2 + 3 + 4.", answer="9", solution="Two and three are five, nine in all.")
TEXT = "### Step 1: Add\n2 + 3 = 6\n\n### Step 2: Add\n6 + 4 = 10\n\n### Final Answer:\n\n\\boxed{10}"


@pytest.fixture
def chat(make_recipe: MakeRecipe) -> Chat:
    return load_chat(make_recipe().model)


def teaching(chat: Chat, settings: Recipe, context_limit: int | None = None) -> SelfDistillation:
    objective = settings.algorithm
    assert isinstance(objective, DistillationConfig)
    prompt = SolverPrompt(settings.prompts)
    return SelfDistillation.from_config(
        objective, recipe=settings, chat=chat, prompt=prompt, context_limit=context_limit
    )


def rollout(chat: Chat, number: int = 0) -> Rollout:
    ids = (*chat.encode_text(TEXT), min(chat.eos_ids))
    text, starts = chat.decode(ids)
    return Rollout(
        id=f"r{number}",
        problem_id="p",
        sample=number,
        prompt_ids=(1, 87, 85),
        completion_ids=ids,
        text=text,
        token_starts=starts,
        finish="stop",
        grade=Grade(correct=False, outcome="wrong", final_answer="10"),
    )


def critique(number: int = 0, first_error: int = 1) -> Critique:
    return Critique(
        rollout_id=f"r{number}",
        critic="program",
        case="D",
        verdicts=(Verdict(step=first_error, correct=False, reason="2 + 3 is 5."),),
        correct_part="",
        text="The first step is wrong: mend the sum.",
    )


def failure(number: int) -> CritiqueFailure:
    return CritiqueFailure(rollout_id=f"r{number}", critic="program", reason="parse")


def teach(
    made: SelfDistillation, chat: Chat, *answers: Critique | CritiqueFailure
) -> StepExamples[DistillationExample]:
    """Teach as many rollouts as there are answers."""
    rollouts = [rollout(chat, number) for number in range(len(answers))]
    return made.build_examples(rollouts, {"p": PROBLEM}, {answer.rollout_id: answer for answer in answers})


def shown(chat: Chat, step: StepExamples[DistillationExample], place: int) -> str:
    return str(chat.tokenizer.decode(step.examples[place].teacher.prompt_ids))


def test_a_critique_is_shown_and_the_solution_is_not(chat: Chat, make_recipe: MakeRecipe) -> None:
    step = teach(teaching(chat, make_recipe()), chat, critique(0))
    assert critique().text in shown(chat, step, 0)
    assert PROBLEM.solution not in shown(chat, step, 0)
    assert step.examples[0].student.prompt_ids == (1, 87, 85)
    assert dict(step.outcomes) == {"trained": 1, "fallback": 0, "cut": 0}
    assert dict(step.cases) == {"D": 1}


def test_a_failed_critique_falls_back_to_the_reference_solution_and_is_counted(
    chat: Chat, make_recipe: MakeRecipe
) -> None:
    made = teaching(chat, make_recipe("critic.on_failure=refsol"))
    step = teach(made, chat, critique(0), failure(1))
    assert critique().text in shown(chat, step, 0)
    assert PROBLEM.solution in shown(chat, step, 1)
    assert dict(step.outcomes) == {"trained": 2, "fallback": 1, "cut": 0}
    assert dict(step.failures) == {"parse": 1}
    assert dict(step.cases) == {"D": 1}


def test_a_failed_critique_drops_its_rollout_where_the_recipe_says_so(chat: Chat, make_recipe: MakeRecipe) -> None:
    step = teach(teaching(chat, make_recipe("critic.on_failure=drop")), chat, failure(0), critique(1))
    assert [example.rollout_id for example in step.examples] == ["r1"]
    assert dict(step.outcomes) == {"trained": 1, "dropped": 1, "fallback": 0, "cut": 0}
    assert dict(step.failures) == {"parse": 1}


def test_the_policy_of_a_failure_goes_before_the_last_resort(chat: Chat, make_recipe: MakeRecipe) -> None:
    failures = failure(0), replace(failure(1), fallback="refsol"), replace(failure(2), fallback="drop")
    step = teach(teaching(chat, make_recipe("critic.validation.final_answer=refsol")), chat, *failures)
    assert [example.rollout_id for example in step.examples] == ["r1"]
    assert PROBLEM.solution in shown(chat, step, 0)
    step = teach(teaching(chat, make_recipe("critic.on_failure=refsol")), chat, *failures)
    assert [example.rollout_id for example in step.examples] == ["r0", "r1"]


def test_a_context_without_critique_teaches_every_rollout(chat: Chat, make_recipe: MakeRecipe) -> None:
    settings = make_recipe("context.template=refsol").model_copy(update={"critic": None})
    made = teaching(chat, settings)
    assert not made.needs_critique
    step = made.build_examples([rollout(chat, 0), rollout(chat, 1)], {"p": PROBLEM}, {})
    assert dict(step.outcomes) == {"trained": 2, "fallback": 0, "cut": 0}
    assert PROBLEM.solution in shown(chat, step, 0)


def test_a_critic_is_not_needed_where_nothing_shows_a_critique(chat: Chat, make_recipe: MakeRecipe) -> None:
    assert not teaching(chat, make_recipe("context.template=refsol")).needs_critique
    assert teaching(
        chat, make_recipe("context.template=refsol", "algorithm.loss_span=until_first_error")
    ).needs_critique


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["context.template=stepalign"], "context.template = 'stepalign' shows a critique, but .* no .critic."),
        (
            ["context.template=refsol", "algorithm.loss_span=until_first_error"],
            "algorithm.loss_span = 'until_first_error' needs a critique .* no .critic.",
        ),
    ],
)
def test_what_needs_a_critique_without_a_critic_is_an_error(
    overrides: list[str], message: str, chat: Chat, make_recipe: MakeRecipe
) -> None:
    settings = make_recipe(*overrides).model_copy(update={"critic": None})
    with pytest.raises(StepalignError, match=message):
        teaching(chat, settings)


def test_the_horizon_ends_with_the_first_wrong_step_and_the_fallback_has_none(
    chat: Chat, make_recipe: MakeRecipe
) -> None:
    made = teaching(chat, make_recipe("algorithm.loss_span=until_first_error", "critic.on_failure=refsol"))
    step = teach(made, chat, critique(0, first_error=1), critique(1, first_error=2), failure(2))
    stops = [example.student.loss_stop for example in step.examples]
    whole = rollout(chat)
    ends = [TEXT.index("### Step 2"), TEXT.index("### Final")]
    assert stops[:2] == [sum(start < end for start in whole.token_starts) for end in ends]
    assert stops[2] == len(whole.completion_ids)


@pytest.mark.parametrize(
    ("overrides", "needs_solution"),
    [
        (["context.template=refsol"], True),
        (["context.template=stepalign", "critic.on_failure=refsol"], True),
        (["context.template=stepalign", "critic.on_failure=drop"], False),
    ],
)
def test_problems_without_the_solution_that_would_be_shown_are_an_error(
    overrides: list[str], needs_solution: bool, chat: Chat, make_recipe: MakeRecipe
) -> None:
    made = teaching(chat, make_recipe(*overrides))
    made.check_problems([PROBLEM])
    unsolved = Problem(id="bare", statement="1 + 1?", answer="2")
    if needs_solution:
        with pytest.raises(StepalignError, match=r"'refsol' shows the reference solution, but 1 of 2 .*first: bare"):
            made.check_problems([PROBLEM, unsolved])
    else:
        made.check_problems([PROBLEM, unsolved])


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        (["critic.on_failure=refsol"], "critic.on_failure"),
        (["critic.on_failure=drop", "critic.validation.parse=refsol"], "critic.validation.parse"),
    ],
)
def test_a_fallback_to_solutions_that_are_not_there_names_its_key(
    overrides: list[str], key: str, chat: Chat, make_recipe: MakeRecipe
) -> None:
    made = teaching(chat, make_recipe("context.template=stepalign", *overrides))
    message = rf"1 of 1 problems have none .*: {key} = 'refsol' shows it in place of a critique; 'drop' is allowed"
    with pytest.raises(StepalignError, match=message):
        made.check_problems([Problem(id="bare", statement="1 + 1?", answer="2")])


def test_a_lesson_that_does_not_fit_is_dropped_and_counted_once(chat: Chat, make_recipe: MakeRecipe) -> None:
    made = teaching(chat, make_recipe("teacher.max_length=60", "critic.on_failure=refsol"))
    step = teach(made, chat, critique(0), failure(1))
    assert not step.examples
    assert dict(step.outcomes) == {"dropped": 2}
    assert dict(step.failures) == {"teacher prompt too long": 2, "parse": 1}


def test_a_teachers_pass_stays_within_the_bound_of_a_micro_batch(
    chat: Chat, make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The student's views are short, the teacher's prompts long: both passes are bounded."""
    settings = make_recipe("context.template=refsol", "training.max_tokens_per_micro_batch=700")
    algorithm = teaching(chat, settings)
    policy = models.load_policy(settings.model, settings.lora, 0, torch.device("cpu"))
    step = algorithm.build_examples([rollout(chat, number) for number in range(4)], {"p": PROBLEM}, {})
    lengths = [len(example.teacher.input_ids) for example in step.examples]
    assert sum(lengths) > 700 > max(lengths)
    policy.__dict__["shares_prefixes"] = False  # equal prompts would be one row
    sizes, forward = [], policy.forward_base

    def measured(batch: Batch) -> torch.Tensor:
        sizes.append(batch.input_ids.numel())
        return forward(batch)

    monkeypatch.setattr(policy, "forward_base", measured)
    batch = collate([example.student for example in step.examples])
    hidden = algorithm.reference_forward(policy, step.examples, batch)
    assert max(sizes) <= 700
    assert sum(sizes) == sum(lengths)
    torch.testing.assert_close(hidden, forward(collate([example.teacher for example in step.examples])))


@pytest.mark.parametrize("by", ["the recipe", "the model"])
def test_a_context_that_is_too_long_is_cut_and_counted(by: str, chat: Chat, make_recipe: MakeRecipe) -> None:
    long = critique(0).__class__(**{**vars(critique(0)), "text": "mend the sum " * 200})
    made = teaching(chat, make_recipe())
    whole = teach(made, chat, critique(0)).examples[0].teacher
    limit = len(whole.prompt_ids) + len(whole.completion_ids) + 100
    if by == "the recipe":
        made = teaching(chat, make_recipe(f"teacher.max_length={limit}"), context_limit=10_000)
    else:
        made = teaching(chat, make_recipe("teacher.max_length=20000"), context_limit=limit)
    step = teach(made, chat, long)
    assert step.outcomes["cut"] == 1
    view = step.examples[0].teacher
    assert len(view.prompt_ids) + len(view.completion_ids) <= limit


def test_a_rollout_without_a_counted_token_is_dropped(chat: Chat, make_recipe: MakeRecipe) -> None:
    step = teach(teaching(chat, make_recipe("algorithm.num_loss_tokens_to_skip=1000")), chat, critique(0))
    assert not step.examples
    assert step.outcomes["dropped"] == 1
    assert dict(step.failures) == {"no token in the loss": 1}


def test_shuffled_shows_another_problems_critique_and_keeps_the_own_horizon(
    chat: Chat, make_recipe: MakeRecipe
) -> None:
    settings = make_recipe("context.shuffled=true", "algorithm.loss_span=until_first_error")
    other = replace(PROBLEM, id="q")
    rollouts = [rollout(chat, 0), replace(rollout(chat, 1), problem_id="q"), rollout(chat, 2)]
    answers = {
        f"r{number}": replace(critique(number, first_error=number + 1), text=f"Feedback on attempt {number}.")
        for number in range(3)
    }
    step = teaching(chat, settings).build_examples(rollouts, {"p": PROBLEM, "q": other}, answers)
    shown = [example.message.partition("Feedback on attempt ")[2][0] for example in step.examples]
    assert shown == ["1", "2", "1"]
    stops = [example.student.loss_stop for example in step.examples]
    assert stops[0] < stops[1] < stops[2]


def test_shuffled_needs_another_problem(chat: Chat, make_recipe: MakeRecipe) -> None:
    settings = make_recipe("context.shuffled=true")
    step = teaching(chat, settings).build_examples([rollout(chat)], {"p": PROBLEM}, {"r0": critique()})
    assert not step.examples
    assert step.failures == {"no other problem's critique": 1}


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["context.template=stepalign"], "refsol"),
        (["context.template=lab/stepalign"], "lab/refsol"),
        (["context.template=lab/stepalign", "context.fallback_template=refsol"], "refsol"),
    ],
)
def test_the_fallback_is_worded_as_the_recipes_prompts_are(
    overrides: list[str], expected: str, chat: Chat, make_recipe: MakeRecipe
) -> None:
    settings = make_recipe(*overrides, "critic.on_failure=refsol")
    step = teach(teaching(chat, settings), chat, failure(0))
    given = contexts.ContextInput(problem=PROBLEM, rollout=rollout(chat))
    assert step.examples[0].message == contexts.load(expected).render(given)
    assert f'fallback_template = "{expected}"' in config.dump(settings)  # what --dry-run prints


def test_a_fallback_that_cannot_stand_in_is_an_error_at_the_start(chat: Chat, make_recipe: MakeRecipe) -> None:
    for name, message in (
        ("verdicts", "fallback_template = 'verdicts' shows a critique"),
        ("gone", "no template 'gone'"),
    ):
        with pytest.raises(StepalignError, match=message):
            teaching(chat, make_recipe(f"context.fallback_template={name}", "critic.on_failure=refsol"))


# ── contexts from more than one rollout ───────────────────────────────────────────────────────────────────────


def group(chat: Chat, *correct: bool) -> list[Rollout]:
    """A problem's rollouts with different texts."""
    graded = []
    for number, right in enumerate(correct):
        grade = Grade(correct=right, outcome="correct" if right else "wrong", feedback=f"Graded {number}.")
        graded.append(replace(rollout(chat, number), text=f"TEXT {number} {TEXT}"[: len(TEXT)], grade=grade))
    return graded


SIBLINGS = ("critic.on_failure=drop", "training.rollouts_per_step=4", "training.num_generations=4")


def test_a_sibling_teaches_and_a_rollout_without_one_is_masked_and_counted(chat: Chat, make_recipe: MakeRecipe) -> None:
    made = teaching(chat, make_recipe("context.template=sibling", *SIBLINGS))
    assert not made.needs_critique
    assert not made.one_by_one, "a sibling may still be sampled"
    step = made.build_examples(group(chat, False, True, False), {"p": PROBLEM}, {})
    assert [example.rollout_id for example in step.examples] == ["r0", "r2"]
    for example in step.examples:
        assert "TEXT 1" in example.message
        assert f"TEXT {example.rollout_id[1]}" not in example.message
    assert dict(step.outcomes) == {"trained": 2, "dropped": 1, "masked": 1, "fallback": 0, "cut": 0}
    assert dict(step.failures) == {"nothing to show: no sibling": 1}
    assert step.views == [example.student for example in step.examples], "a masked rollout is in no mean"


def test_feedback_stands_in_where_there_is_no_sibling(chat: Chat, make_recipe: MakeRecipe) -> None:
    made = teaching(chat, make_recipe("context.template=sdpo", *SIBLINGS))
    step = made.build_examples(group(chat, False, True), {"p": PROBLEM}, {})
    assert "TEXT 1" in step.examples[0].message
    assert "Graded" not in step.examples[0].message
    assert "Graded 1." in step.examples[1].message
    assert step.outcomes["dropped"] == 0


def test_a_template_masks_a_rollout_by_an_empty_message(chat: Chat, make_recipe: MakeRecipe, tmp_path: Path) -> None:
    template = tmp_path / "wrong-only.txt"
    template.write_text("{% if not correct %}{{ problem }} {{ solution }}{% endif %}")
    step = teaching(chat, make_recipe(f"context.template={template}", *SIBLINGS)).build_examples(
        group(chat, False, True), {"p": PROBLEM}, {}
    )
    assert [example.rollout_id for example in step.examples] == ["r0"]
    assert step.outcomes["masked"] == step.failures["nothing to show"] == 1


def test_siblings_without_groups_are_refused_before_a_run(chat: Chat, make_recipe: MakeRecipe) -> None:
    with pytest.raises(StepalignError, match=r"context 'sdpo' shows another rollout .* training\.num_generations = 1"):
        teaching(chat, make_recipe("context.template=sdpo", "training.num_generations=1"))


def test_a_long_sibling_is_cut_and_the_problem_is_not(chat: Chat, make_recipe: MakeRecipe) -> None:
    one, two = group(chat, False, True)
    long = replace(two, text="y" * 4000)
    made = teaching(chat, make_recipe("context.template=sibling", "teacher.max_length=500", *SIBLINGS))
    (example,) = made.build_examples([one, long], {"p": PROBLEM}, {}).examples
    assert example.cut
    assert PROBLEM.statement in example.message
    assert len(example.teacher.prompt_ids) + len(one.completion_ids) <= 500
