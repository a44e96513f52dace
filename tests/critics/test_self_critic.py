"""The solver's own base model as the critic: with what it says scripted, and with a real (tiny) model that babbles."""

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from stepalign import config, models
from stepalign.chat import Chat, load_chat
from stepalign.config import Recipe, registry
from stepalign.critics import schema
from stepalign.critics.own_model import OwnModel
from stepalign.critics.self_critic import SelfCritic
from stepalign.errors import StepalignError
from stepalign.io import read_jsonl
from stepalign.launch import train
from stepalign.prompts.conversation import SolverPrompt
from stepalign.records import CriticResult, Critique, CritiqueFailure, Grade, Problem, Rollout, Verdict
from stepalign.rewards.math import MathGrader
from stepalign.rollouts import Completion, Request
from stepalign.trace import parse

PROBLEM = Problem(id="p", statement="Compute 47 + 38 + 12.", answer="97", solution="47 + 38 = 85, 85 + 12 = 97.")
TEXT = "### Step 1: a\n47 + 38 = 85\n\n### Step 2: b\n85 + 12 = 98\n\n### Final Answer:\n\\boxed{98}"
VERDICTS = (
    Verdict(step=1, correct=True),
    Verdict(step=2, correct=False, reason="85 + 12 is 97."),
    Verdict(step=3, correct=False, reason="it rests on Step 2."),
)
PARTS = (schema.original(parse(TEXT), 2), "### Step 2: b\n85 + 12 = 97", "### Final Answer:\n\\boxed{97}")
GOOD = schema.compose("D", VERDICTS, *PARTS)


@pytest.fixture(scope="module")
def chat(tiny_llama: Path) -> Chat:
    return load_chat(config.ModelConfig(name_or_path=str(tiny_llama)))


def attempt(name: str = "r") -> tuple[Problem, Rollout]:
    grade = Grade(correct=False, outcome="wrong")
    rollout = Rollout(
        id=name, problem_id="p", completion_ids=(), token_starts=(), text=TEXT, finish="stop", grade=grade
    )
    return PROBLEM, rollout


class Scripted:
    """A sampler that says what it is told to, and remembers what it was asked."""

    def __init__(self, chat: Chat, *says: str, finish: str = "stop") -> None:
        self.chat, self.says, self.finish = chat, list(says), finish
        self.asked: list[list[Request]] = []
        self.prompts: list[str] = []
        self.adapters: list[str | None] = []

    def sample(
        self, requests: Sequence[Request], sampling: config.SamplingConfig, *, adapter: str | None
    ) -> Iterator[Completion]:
        self.asked.append(list(requests))
        self.adapters.append(adapter)
        for request in reversed(requests):  # the order in which they end is any
            self.prompts.append(self.chat.decode(request.prompt_ids)[0])
            yield Completion(id=request.id, ids=self.chat.encode_text(self.says.pop(0)), finish=self.finish)  # type: ignore[arg-type]


def answers(
    sampler: Scripted, attempts: Sequence[tuple[Problem, Rollout]], *, limit: int | None = None, **settings: object
) -> list[Critique | CritiqueFailure]:
    with MathGrader(num_workers=1) as grader:
        own = OwnModel(sampler.chat, sampler, SolverPrompt(config.PromptsConfig()), None, limit, lambda: None)  # type: ignore[arg-type,return-value]
        critic = SelfCritic(config.SelfCriticConfig(**settings), grader, lambda: own)
        return list(critic.critique(attempts))


def test_what_the_base_says_is_read_checked_and_composed(chat: Chat) -> None:
    sampler = Scripted(chat, f"<think>\nhm\n</think>\n{GOOD}")
    (found,) = answers(sampler, [attempt()])
    assert isinstance(found, Critique)
    assert (found.critic, found.case, found.verdicts, found.text) == ("self", "D", VERDICTS, GOOD)
    assert {check.name for check in found.checks if not check.passed} <= {"reference_overlap"}
    assert found.completion_tokens == len(chat.encode_text(f"<think>\nhm\n</think>\n{GOOD}"))
    assert found.prompt_tokens == len(sampler.asked[0][0].prompt_ids)
    assert TEXT in sampler.prompts[0]
    assert sampler.adapters == [None]


def test_splice_mode_puts_the_solvers_own_text_in(chat: Chat) -> None:
    judgement = {"case": "D", "verdicts": [v.correct for v in VERDICTS], "first_wrong_step": 2}
    said = json.dumps(judgement | {"corrected_step": PARTS[1], "continuation": PARTS[2]})
    (found,) = answers(Scripted(chat, said), [attempt()], mode="splice")
    assert isinstance(found, Critique)
    assert (found.correct_part, found.corrected_step, found.continuation) == PARTS


def test_without_an_attempt_for_the_model_nothing_is_loaded() -> None:
    def own() -> OwnModel:
        raise AssertionError("loaded")

    with MathGrader(num_workers=1) as grader:
        critic = SelfCritic(config.SelfCriticConfig(), grader, own)
        assert list(critic.critique([])) == []
        problem, wrong = attempt()
        grade = Grade(correct=True, outcome="correct")
        right = replace(wrong, text=TEXT.replace("98", "97"), grade=grade)
        assert [one.kind for one in critic.critique([(problem, right)])] == ["critique"]


def test_what_is_not_accepted_is_asked_again_with_its_fault(chat: Chat) -> None:
    sampler = Scripted(chat, "I like it.", GOOD)
    (found,) = answers(sampler, [attempt()])
    assert isinstance(found, Critique)
    assert found.retried == ("parse",)
    assert "none of the headings" in sampler.prompts[1]
    first, second = (requests[0] for requests in sampler.asked)
    assert first.seed != second.seed
    assert found.prompt_tokens == len(first.prompt_ids) + len(second.prompt_ids)
    (found,) = answers(Scripted(chat, "I like it.", "Still."), [attempt()])
    assert isinstance(found, CritiqueFailure)
    assert (found.reason, found.retried) == ("parse", ("parse",))


def test_rollouts_are_asked_about_a_batch_at_a_time(chat: Chat) -> None:
    sampler = Scripted(chat, *[GOOD] * 5)
    found = answers(sampler, [attempt(name) for name in "abcde"], max_num_seqs=2)
    assert [len(requests) for requests in sampler.asked] == [2, 2, 1]
    assert {answer.rollout_id for answer in found} == set("abcde")
    assert all(isinstance(answer, Critique) for answer in found)


def test_an_answer_that_was_cut_off_and_a_message_without_room_are_failures(chat: Chat) -> None:
    (found,) = answers(Scripted(chat, GOOD, finish="length"), [attempt()])
    assert isinstance(found, CritiqueFailure)
    assert found.reason == "truncated"
    sampler = Scripted(chat)
    (found,) = answers(sampler, [attempt()], limit=1000)
    assert isinstance(found, CritiqueFailure)
    assert found.reason == "no room"
    assert "do not fit into 1000, the model's context or sampler.max_model_len" in found.detail


def test_without_a_solver_there_is_no_such_critic() -> None:
    with pytest.raises(StepalignError, match=r"critic\.kind = 'self'"):
        registry.build(config.SelfCriticConfig(), grader=MathGrader(), folder=Path(), own=None)


@pytest.mark.usefixtures("no_figures")
def test_in_the_training_loop_it_shares_the_weights_that_are_loaded(
    make_recipe: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    loads = []
    load_base = models.load_base

    def counted(*arguments: Any, **options: Any) -> object:
        loads.append(arguments)
        return load_base(*arguments, **options)

    monkeypatch.setattr(models, "load_base", counted)
    template = tmp_path / "critic.txt"
    template.write_text("{{ attempt }}")
    settings = make_recipe(
        "critic.kind=self",
        f"critic.prompt={template}",
        "critic.max_tokens=8",
        "critic.max_attempts=1",
        "critic.max_failure_share=1",
        "problems.holdout=0",
        "training.max_steps=1",
    )
    train(settings)
    assert len(loads) == 1
    path = settings.folder / "critiques" / "step-000001.jsonl"
    found: list[Critique | CritiqueFailure] = read_jsonl(path, CriticResult)  # type: ignore[arg-type]
    assert len(found) == 4
    assert {answer.critic for answer in found} == {"self"}
    assert all(answer.completion_tokens for answer in found)


def test_a_rollout_of_full_length_without_room_is_said_beforehand(chat: Chat) -> None:
    with MathGrader(num_workers=1) as grader:

        def lack(limit: int | None) -> str:
            own = OwnModel(chat, Scripted(chat), SolverPrompt(config.PromptsConfig()), None, limit, lambda: None)  # type: ignore
            settings = config.SelfCriticConfig(max_tokens=100)
            return SelfCritic(settings, grader, lambda: own).lack_of_room([PROBLEM], 50)

        message = re.search(r"are (\d+) tokens, the model's context or sampler\.max_model_len has 200", lack(200))
        assert message
        needed = int(message[1])
        assert needed > 150
        assert (lack(needed), lack(None)) == ("", "")
        assert lack(needed - 1)
