"""Verdicts of a model: read from logits of a real (tiny) model, and from a server's log-probabilities."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from serving.fault_server import Reply, serving
from stepalign import config
from stepalign.chat import Chat, load_chat
from stepalign.config import registry
from stepalign.critics.llm import ModelReply
from stepalign.critics.location import Location, first_wrong
from stepalign.critics.own_model import OwnModel
from stepalign.critics.verdicts import served_log_odds
from stepalign.errors import StepalignError
from stepalign.policy import Policy
from stepalign.prompts.conversation import Turn
from stepalign.records import Grade, Problem, Rollout

PROBLEM = Problem(id="p", statement="Add 24, 15 and 3.", answer="42", solution="24 + 15 = 39, and 39 + 3 = 42.")
TEXT = "### Step 1: Two\n24 + 15 = 39\n\n### Step 2: Three\n39 + 3 = 41\n\n### Final Answer:\n\\boxed{41}"


def rollout(text: str = TEXT, *, correct: bool = False, finish: str = "stop") -> Rollout:
    grade = Grade(correct=correct, outcome="correct" if correct else "wrong")
    return Rollout(
        id="r", problem_id="p", completion_ids=(), token_starts=(), text=text, finish=finish, grade=grade  # type: ignore[arg-type]
    )  # fmt: skip


@pytest.fixture(scope="module")
def chat(tiny_llama: Path) -> Chat:
    return load_chat(config.ModelConfig(name_or_path=str(tiny_llama)))


def located(own: OwnModel, one: Rollout, **settings: object) -> Location:
    locator = registry.build(config.VerdictsLocatorConfig.model_validate(settings), own=lambda: own)
    (found,) = locator.locate([(PROBLEM, one)])
    return found  # type: ignore[no-any-return]


def test_a_score_is_the_log_odds_of_two_words_behind_the_question_under_the_base(
    chat: Chat, policy: Policy, own_model: Callable[..., OwnModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    policy.train()
    asked: list[str] = []
    encode = chat.prompt_ids

    def prompt_ids(turns: list[Turn]) -> tuple[int, ...]:
        asked.append(turns[0].content)
        return encode(turns)

    monkeypatch.setattr(chat, "prompt_ids", prompt_ids)
    found = located(own_model(chat, None, None, policy), rollout())
    assert policy.training
    assert [text.count("### Step") for text in asked] == [1, 2, 2]
    assert "Is Step 2 right or wrong?" in asked[1]
    ids = [[chat.encode_text(word)[0] for word in words] for words in (("right", "Right"), ("wrong", "Wrong"))]
    policy.eval()
    for text, score in zip(asked, found.scores, strict=True):
        prompt = encode([Turn("user", text)])
        with torch.no_grad(), policy.model.disable_adapter():  # type: ignore[operator]
            logits = policy.base(torch.tensor([prompt])).logits[0, -1].log_softmax(-1)
        assert score == pytest.approx(float(logits[ids[0]].logsumexp(0) - logits[ids[1]].logsumexp(0)), abs=1e-4)
    assert (
        0 < found.prompt_tokens < sum(len(encode([Turn("user", text)])) for text in asked)
    )  # a beginning is read once
    assert found.completion_tokens == 0


def test_the_model_is_told_what_the_recipe_says(
    chat: Chat, policy: Policy, own_model: Callable[..., OwnModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    encode = chat.prompt_ids
    monkeypatch.setattr(chat, "prompt_ids", lambda turns: asked.append(turns[0].content) or encode(turns))
    own = own_model(chat, None, None, policy)
    for told in ([], ["answer"], ["grade", "solution"]):
        located(own, rollout(), told=told)
    shown = [("39 + 3 = 42." in text, "answer: 42" in text, "is wrong." in text) for text in asked[::3]]
    assert shown == [(False, False, False), (False, True, False), (True, False, True)]


def test_questions_without_room_are_a_fault_and_no_verdict(
    chat: Chat, policy: Policy, own_model: Callable[..., OwnModel]
) -> None:
    found = located(own_model(chat, None, 50, policy), rollout())
    assert (found.step, found.scores) == (None, ())
    assert "do not fit" in found.reason


@pytest.mark.parametrize(
    ("scores", "threshold", "text", "finish", "expected"),
    [
        ((1.0, -2.0, -9.0), None, TEXT, "stop", (2, False)),  # the final answer is wrong in any wrong solution
        ((1.0, -2.0, -9.0), -1.0, TEXT, "stop", (2, False)),
        ((-1.5, -2.0, -9.0), -1.0, TEXT, "stop", (1, False)),
        ((1.0, -2.0, -9.0), -5.0, TEXT, "stop", (3, False)),
        ((1.0, 0.5, 2.0), -5.0, TEXT, "stop", (2, True)),
        ((1.0,), -5.0, TEXT[:40], "length", (2, False)),
        ((), None, "no steps", "stop", (1, False)),
    ],
)
def test_the_first_wrong_section_follows_from_scores(
    scores: tuple[float, ...], threshold: float | None, text: str, finish: str, expected: tuple[int, bool]
) -> None:
    assert first_wrong(rollout(text, finish=finish), scores, threshold) == expected


def test_a_right_solution_has_no_wrong_section(chat: Chat, policy: Policy, own_model: Callable[..., OwnModel]) -> None:
    found = located(own_model(chat, None, None, policy), rollout(correct=True), threshold=100.0)
    assert found.step is None
    assert len(found.scores) == 3


def served(url: str, folder: Path, **settings: object) -> Location:
    table = config.ServedVerdictsLocatorConfig.model_validate({"base_url": url, "model": "m"} | settings)
    (found,) = registry.build(table, folder=folder).locate([(PROBLEM, rollout())])
    return found  # type: ignore[no-any-return]


def test_a_servers_likeliest_tokens_give_the_same_odds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    replies = [
        Reply("right", finish="length", logprobs={"right": -0.5, " Right": -1.5, "wrong": -2.0, "The": -8.0}),
        Reply("wrong", finish="length", logprobs={"wrong": -0.1, "The": -4.0}),
        Reply("wrong", finish="length", logprobs={"Wrong": -0.1, "right": -3.0}),
    ]
    with serving(choose=lambda body: replies[body["messages"][0]["content"].count("###") - 1]) as server:
        found = served(server.url, tmp_path, threshold=0.0)
    assert all(
        (body["max_tokens"], body["logprobs"], body["top_logprobs"]) == (1, True, 20) for body in server.requests
    )
    assert found.scores == pytest.approx((-0.5 + 0.313262 + 2.0, -3.9, -2.9), abs=1e-4)
    assert (found.step, found.prompt_tokens, found.completion_tokens) == (2, 33, 21)
    again = served(server.url, tmp_path, threshold=0.0)  # from the cache
    assert again == found


@pytest.mark.parametrize(
    ("top", "expected"),
    [
        ({"right": 0.0, "wrong": -9999.0}, 9999.0),
        ({"right": -9999.0, "Wrong": -1.0, "wrong": -9999.0}, -9998.0),
        ({"right": -800.0, "Right": -800.0, "wrong": -801.0, "The": 0.0}, 1.693147),
        ({"right": 0.0, "The": -9999.0}, 9999.0),
    ],
)
def test_odds_of_words_that_are_all_but_impossible_are_finite(top: dict[str, float], expected: float) -> None:
    assert served_log_odds(ModelReply(text="", top_logprobs=top)) == expected


def test_nothing_to_locate_loads_no_model() -> None:
    def own() -> OwnModel:
        raise AssertionError("loaded")

    locator = registry.build(config.VerdictsLocatorConfig(), own=own)
    assert list(locator.locate([])) == []


def test_a_server_that_gives_log_probabilities_later_is_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    replies = [Reply("right", finish="length", logprobs={"right": -0.1}), Reply("right", finish="length")]
    with serving(choose=lambda _: replies[-1]) as server:
        with pytest.raises(StepalignError, match="no log-prob"):
            served(server.url, tmp_path)
        replies.pop()
        assert len(served(server.url, tmp_path).scores) == 3


def test_what_a_server_does_not_say_is_a_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with serving(Reply("hm", finish="length", logprobs={"hm": -0.1})) as server:
        found = served(server.url, tmp_path, cache="off")
    assert (found.scores, found.step, found.reason) == ((), None, "neither word is among the likeliest tokens.")
    assert not found.unanswered
    with serving(Reply("right", finish="length")) as server, pytest.raises(StepalignError, match="no log-prob"):
        served(server.url, tmp_path, cache="off")
    with serving(Reply(status=400, body="no")) as server:
        found = served(server.url, tmp_path, cache="off", max_retries=0)
    assert (found.step, found.unanswered) == (None, "refused")
    assert "no" in found.reason
