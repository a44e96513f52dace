"""Problems in, graded rollouts out, on a tiny real model."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from stepalign.chat import Chat, load_chat
from stepalign.config import Recipe, SamplingConfig
from stepalign.prompts.conversation import SolverPrompt
from stepalign.records import Problem, Rollout
from stepalign.rewards.math import MathGrader
from stepalign.rollouts import Completion
from stepalign.rollouts.generate import Solver
from stepalign.rollouts.transformers import TransformersSampler

PROBLEMS = [Problem(id=f"p{i}", statement=f"Compute {i} + 2.", answer=str(i + 2)) for i in range(4)]


@pytest.fixture
def solver(tiny_llama: Path, make_recipe: Callable[..., Recipe]) -> Iterator[Solver]:
    settings = make_recipe()
    chat = load_chat(settings.model)
    sampler = TransformersSampler(AutoModelForCausalLM.from_pretrained(tiny_llama), eos_ids=chat.eos_ids, batch_size=3)
    with MathGrader.from_config(settings.grader) as grader:
        yield Solver(chat, sampler, grader, SolverPrompt(settings.prompts))


def attempt(solver: Solver, problems: list[Problem], samples: int = 2, seed: int = 1) -> list[Rollout]:
    return solver.generate_rollouts(
        problems, samples, SamplingConfig(max_new_tokens=10), adapter=None, policy_step=7, seed=seed, prefix="try"
    )


def test_rollouts_come_in_the_order_of_problems_and_carry_what_was_sampled(solver: Solver) -> None:
    rollouts = attempt(solver, PROBLEMS)
    assert [rollout.id for rollout in rollouts] == [f"try/p{i}/{sample}" for i in range(4) for sample in range(2)]
    for rollout in rollouts:
        problem = PROBLEMS[int(rollout.problem_id[1:])]
        assert rollout.prompt_ids == solver.prompt_ids(problem, thinking=False)
        assert (rollout.text, rollout.token_starts) == solver.chat.decode(rollout.completion_ids)
        assert (rollout.finish == "stop") == (rollout.completion_ids[-1] in solver.chat.eos_ids)
        assert rollout.policy_step == 7
        assert rollout.grade is not None
    assert len({rollout.seed for rollout in rollouts}) == len(rollouts)


def test_a_problem_named_twice_has_its_samples_numbered_on(solver: Solver) -> None:
    rollouts = attempt(solver, [PROBLEMS[0], PROBLEMS[1], PROBLEMS[0]])
    assert [rollout.id for rollout in rollouts] == [
        *("try/p0/0", "try/p0/1"),
        *("try/p1/0", "try/p1/1"),
        *("try/p0/2", "try/p0/3"),
    ]
    assert len({rollout.completion_ids for rollout in rollouts}) == 6


def test_a_problems_attempts_do_not_depend_on_the_other_problems(solver: Solver) -> None:
    together = [rollout for rollout in attempt(solver, PROBLEMS) if rollout.problem_id == "p2"]
    assert attempt(solver, [PROBLEMS[2]]) == together
    assert attempt(solver, [PROBLEMS[2]], seed=2) != together


def test_each_completion_is_reported_as_it_ends(solver: Solver) -> None:
    seen: list[Rollout] = []
    rollouts = solver.generate_rollouts(
        PROBLEMS,
        1,
        SamplingConfig(max_new_tokens=10),
        adapter=None,
        policy_step=0,
        seed=1,
        prefix="try",
        on_rollout=seen.append,
    )
    assert {rollout.id: rollout.completion_ids for rollout in seen} == {
        rollout.id: rollout.completion_ids for rollout in rollouts
    }


def test_the_thinking_switch_reaches_the_prompt(solver: Solver) -> None:
    assert solver.prompt_ids(PROBLEMS[0], thinking=True) != solver.prompt_ids(PROBLEMS[0], thinking=False)


@pytest.mark.parametrize(
    ("opening", "completion", "outcome"),
    [
        ("<think>\n", "so \\boxed{2} hmm", "missing"),
        ("<think>\n", "so \\boxed{7} hmm</think>\n\\boxed{2}", "correct"),
        ("<|begin_of_thought|>\n\n", "so \\boxed{2} hmm", "missing"),
        ("<deep_think>", "so \\boxed{2}", "missing"),
        ("<deep_think>", "so</deep_think>\\boxed{2}", "correct"),
        ("<think></think>", "so \\boxed{2}", "correct"),
        ("", "\n <think>so \\boxed{2}", "missing"),
        ("", "so \\boxed{2}", "correct"),
    ],
)
def test_a_box_in_a_thought_that_never_ends_is_not_paid_wherever_the_thought_began(
    solver: Solver, monkeypatch: pytest.MonkeyPatch, opening: str, completion: str, outcome: str
) -> None:
    tokenizer = solver.chat.tokenizer
    known = "{# <deep_think> </deep_think> #}"
    tokenizer.chat_template = known + "{% for m in messages %}{{ m.content }}{% endfor %}<|im_start|>" + opening
    chat = Chat(tokenizer, solver.chat.eos_ids)
    monkeypatch.setattr(solver, "chat", chat)
    ids = chat.encode_text(completion)
    monkeypatch.setattr(
        solver.sampler,
        "sample",
        lambda requests, *_, **__: (Completion(id=request.id, ids=ids, finish="length") for request in requests),
    )
    (rollout,) = attempt(solver, [PROBLEMS[0]], samples=1)
    assert rollout.grade is not None
    assert rollout.grade.outcome == outcome
