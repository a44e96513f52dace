"""A critic of a locator and a mender: scripted samples, a server, and a real (tiny) model that babbles."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from serving.fault_server import Reply, serving
from stepalign import config
from stepalign.chat import Chat, load_chat
from stepalign.config import Recipe, registry
from stepalign.critics import stats
from stepalign.critics.chat_completions import ChatCompletions
from stepalign.critics.files import critique_all
from stepalign.critics.own_model import OwnModel
from stepalign.errors import StepalignError
from stepalign.policy import Policy
from stepalign.prompts.conversation import Turn
from stepalign.records import Critique, CritiqueFailure, Grade, Problem, Rollout
from stepalign.rewards.math import MathGrader
from stepalign.rollouts import Completion, Request
from stepalign.rollouts.generate import open_solver

PROBLEM = Problem(
    id="p",
    statement="A shop sells 24 red pens and 15 blue pens for 3 dollars each. What does it take?",
    answer="117",
    solution="It sells 24 + 15 = 39 pens in all.\nFor them it takes 39 * 3 = 117 dollars.",
)
GRADER = MathGrader(num_workers=1)  # plain arithmetic decides every answer here: no worker starts
STEPS = "### Step 1: Pens\n24 + 15 = 39\n\n### Step 2: Takings\n39 - 3 = 36\n\n### Final Answer:\n\\boxed{36}"
GOOD = " Takings\nThree dollars for each: 3 * 39 = 117\n\n### Final Answer:\n\\boxed{117}"
WRONG = " Takings\n39 + 3 = 42\n\n### Final Answer:\n\\boxed{42}"
FALSE = " Takings\n39 * 3 = 118\n\n### Final Answer:\n\\boxed{117}"


@pytest.fixture(scope="module")
def chat(tiny_llama: Path) -> Chat:
    return load_chat(config.ModelConfig(name_or_path=str(tiny_llama)))


def attempt(
    text: str = STEPS, *, name: str = "r", correct: bool = False, problem: Problem = PROBLEM
) -> tuple[Problem, Rollout]:
    grade = Grade(correct=correct, outcome="correct" if correct else "wrong")
    rollout = Rollout(
        id=name, problem_id="p", completion_ids=(), token_starts=(), text=text, finish="stop", grade=grade
    )
    return problem, rollout


class Scripted:
    """A sampler that says what it is told to, and remembers the prompts."""

    def __init__(self, chat: Chat, *says: str, finish: str = "stop") -> None:
        self.chat, self.says, self.finish, self.prompts = chat, list(says), finish, list[str]()

    def sample(
        self, requests: Sequence[Request], sampling: config.SamplingConfig, *, adapter: str | None
    ) -> Iterator[Completion]:
        assert adapter is None
        for request in requests:
            self.prompts.append(self.chat.decode(request.prompt_ids)[0])
            yield Completion(id=request.id, ids=self.chat.encode_text(self.says.pop(0)), finish=self.finish)  # type: ignore[arg-type]


def critiques(
    attempts: Sequence[tuple[Problem, Rollout]], own: OwnModel | None = None, folder: Path = Path(), **settings: object
) -> list[Critique | CritiqueFailure]:
    table = config.LocateMendCriticConfig.model_validate({"kind": "locate-mend"} | settings)
    critic = registry.build(table, grader=GRADER, folder=folder, own=(lambda: own) if own else None)
    return list(critic.critique(attempts))


def test_the_first_sample_that_passes_the_checks_is_kept(chat: Chat, own_model: Callable[..., OwnModel]) -> None:
    sampler = Scripted(chat, WRONG, FALSE, GOOD)
    (found,) = critiques([attempt()], own_model(chat, sampler, None), mender={"kind": "self"})
    assert isinstance(found, Critique)
    assert (found.case, found.first_error, found.mended_by) == ("D", 2, "self")
    assert found.correct_part == "### Step 1: Pens\n24 + 15 = 39"
    assert found.corrected_step == "### Step 2: Takings\nThree dollars for each: 3 * 39 = 117"
    assert found.retried == ("final_answer", "true_equations")
    assert not found.mender_failed
    assert all(check.passed for check in found.checks)
    assert all(prompt.endswith("### Step 1: Pens\n24 + 15 = 39\n\n### Step 2:") for prompt in sampler.prompts)
    assert "For them it takes 39 * 3 = 117 dollars." in sampler.prompts[0]
    assert found.completion_tokens == sum(len(chat.encode_text(text)) for text in (WRONG, FALSE, GOOD))


@pytest.mark.parametrize(("finish", "fault"), [("stop", "final_answer"), ("length", "truncated")])
def test_without_a_good_sample_the_program_corrects(
    chat: Chat, finish: str, fault: str, own_model: Callable[..., OwnModel]
) -> None:
    sampler = Scripted(chat, WRONG, WRONG, finish=finish)
    (found,) = critiques([attempt()], own_model(chat, sampler, None), mender={"kind": "self", "num_samples": 2})
    assert isinstance(found, Critique)
    assert (found.mended_by, found.retried) == ("program", (fault, fault))
    assert "39 * 3 = 117" in found.corrected_step
    report = stats.summarize([found])
    assert (report.mended, report.mender_failed) == ({"program": 1}, 1)
    assert "(1 program); 1 by the program after the mender failed" in stats.table(report)
    assert report.checks[fault]["retried"] == 2


def test_a_rollout_without_room_is_left_to_the_program(chat: Chat, own_model: Callable[..., OwnModel]) -> None:
    (found,) = critiques([attempt()], own_model(chat, Scripted(chat), 64), mender={"kind": "self", "num_samples": 1})
    assert isinstance(found, Critique)
    assert (found.mended_by, found.retried) == ("program", ("no room",))


def test_right_answers_need_no_model(chat: Chat) -> None:
    right = STEPS.replace("39 - 3 = 36", "39 * 3 = 117").replace("{36}", "{117}")
    false = right.replace("39 * 3 = 117", "39 * 3 = 116 + 1 = 117").replace("24 + 15 = 39", "24 + 15 = 38 = 39")
    whole, repaired = critiques([attempt(right, correct=True), attempt(false, name="f", correct=True)])
    assert isinstance(whole, Critique)
    assert (whole.case, whole.mended_by, whole.first_error) == ("A", "", None)
    assert isinstance(repaired, Critique)
    assert (repaired.case, repaired.mended_by, repaired.mender_failed) == ("B", "", False)
    assert stats.summarize([whole, repaired]).mended == {}
    assert repaired.prompt_tokens == 0


@pytest.mark.parametrize(
    ("text", "problem", "locator", "reason"),
    [
        (STEPS, PROBLEM, "equations", "not located"),
        (STEPS, Problem(id="p", statement=PROBLEM.statement, answer="117"), "derivation", "no way to the answer"),
    ],
)
def test_what_cannot_be_located_or_mended_fails(text: str, problem: Problem, locator: str, reason: str) -> None:
    (found,) = critiques([attempt(text, problem=problem)], locator={"kind": locator})
    assert isinstance(found, CritiqueFailure)
    assert found.reason == reason


@pytest.mark.parametrize("trace_format", ["paragraphs", "code"])
def test_a_wrong_rollout_of_another_format_fails_before_anything_is_asked(
    chat: Chat, own_model: Callable[..., OwnModel], trace_format: str
) -> None:
    problem, rollout = attempt()
    other = replace(rollout, id="other", trace_format=trace_format)
    sampler = Scripted(chat, GOOD)
    failed, mended = critiques(
        [(problem, other), (problem, rollout)], own_model(chat, sampler, None), mender={"kind": "self"}
    )
    assert isinstance(failed, CritiqueFailure)
    assert (failed.rollout_id, failed.reason) == ("other", "no steps")
    assert failed.detail == f"the problem's trace_format is {trace_format!r}, and only 'steps' is read"
    assert isinstance(mended, Critique)
    assert (mended.rollout_id, len(sampler.prompts)) == ("r", 1)


def test_a_served_mender_continues_the_begun_reply_and_its_replies_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with serving(Reply(WRONG), Reply(GOOD)) as server:
        mender = {"kind": "openai", "base_url": server.url, "model": "m"}
        (found,) = critiques([attempt()], folder=tmp_path, mender=mender)
    asked = server.requests
    for body in asked:
        assert body["messages"][-1] == {"role": "assistant", "content": "### Step 1: Pens\n24 + 15 = 39\n\n### Step 2:"}
        assert (body["continue_final_message"], body["add_generation_prompt"]) == (True, False)
    assert isinstance(found, Critique)
    assert (found.mended_by, found.retried, len({body["seed"] for body in asked})) == ("m", ("final_answer",), 2)
    (again,) = critiques([attempt()], folder=tmp_path, mender=mender)  # without the server
    assert isinstance(again, Critique)
    assert again.text == found.text


@pytest.mark.parametrize(("finish", "fault"), [("length", "truncated"), ("content_filter", "unfinished")])
def test_a_served_sample_that_is_not_whole_is_not_kept(
    finish: str, fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with serving(Reply(GOOD, finish=finish), Reply(GOOD)) as server:
        mender = {"kind": "openai", "base_url": server.url, "model": "m"}
        (found,) = critiques([attempt()], folder=tmp_path, mender=mender)
    assert isinstance(found, Critique)
    assert (found.mended_by, found.retried) == ("m", (fault,))


def test_a_served_mender_reads_worked_examples_by_one_client_and_is_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    clients: list[ChatCompletions] = []
    enter = ChatCompletions.__aenter__

    async def counted(self: ChatCompletions) -> ChatCompletions:
        clients.append(self)
        return await enter(self)

    monkeypatch.setattr(ChatCompletions, "__aenter__", counted)
    before = (Turn("user", "1 + 1"), Turn("assistant", "2"))
    with serving(Reply(WRONG), Reply(WRONG), Reply(GOOD)) as server:
        mender = {"kind": "openai", "base_url": server.url, "model": "m", "max_concurrency": 1}
        table = config.LocateMendCriticConfig.model_validate({"mender": mender})
        critic = registry.build(table, grader=GRADER, folder=tmp_path, own=None, before=before)
        critic.check_servers()
        found = list(critic.critique([attempt(), attempt(name="s")]))
    assert [one.mended_by for one in found] == ["m", "m"]
    check, *asked = server.requests
    assert (check["max_tokens"], check["continue_final_message"]) == (1, True)
    assert [turn["content"] for turn in asked[0]["messages"][:2]] == ["1 + 1", "2"]
    assert len(clients) == 2  # the check's, and that of all samples
    with pytest.raises(StepalignError, match=r"no critic\.mender endpoint"):
        critic.check_servers()


def test_a_mender_in_process_reads_worked_examples(chat: Chat, own_model: Callable[..., OwnModel]) -> None:
    sampler = Scripted(chat, GOOD)
    table = config.LocateMendCriticConfig.model_validate({"mender": {"kind": "self"}})
    before = (Turn("user", "1 + 1 = ?"), Turn("assistant", "it is 2"))
    critic = registry.build(table, grader=GRADER, folder=Path(), own=lambda: own_model(chat, sampler), before=before)
    (found,) = critic.critique([attempt()])
    assert found.mended_by == "self"
    assert sampler.prompts[0].index("it is 2") < sampler.prompts[0].index("A shop sells")


def test_a_model_locates_as_well(chat: Chat, policy: Policy, own_model: Callable[..., OwnModel]) -> None:
    own = own_model(chat, Scripted(chat), None, policy)
    parts = [{"kind": "equations"}, {"kind": "verdicts"}]
    (found,) = critiques([attempt()], own, locator={"kind": "combined", "locators": parts})
    assert isinstance(found, Critique)
    assert found.first_error in (1, 2)
    assert found.prompt_tokens > 0
    (credited,) = critiques([scored(chat)], own, locator={"kind": "credit"})
    assert isinstance(credited, Critique)
    assert credited.first_error in (1, 2)
    problem, rollout = scored(chat)
    unsolved = replace(problem, id="unsolved", solution=""), replace(rollout, id="unsolved", problem_id="unsolved")
    without = critiques([unsolved, attempt()], own, locator={"kind": "credit"})  # the second has no token ids
    assert [(one.reason, one.detail) for one in without if isinstance(one, CritiqueFailure)] == [
        ("not located", "no credit: no reference solution."),
        ("not located", "no credit: no tokens of this model."),
    ]


RIGHT = Reply("right", finish="length", logprobs={"right": -0.1, "wrong": -3.0})
WRONG_STEP = Reply("wrong", finish="length", logprobs={"right": -3.0, "wrong": -0.1})


def judging(url: str) -> dict[str, object]:
    """A served locator without patience."""
    served = {"kind": "openai_verdicts", "base_url": url, "model": "m", "threshold": -1.0}
    return served | {"timeout_s": 0.3, "max_retries": 0, "cooldown_s": 0.1, "max_outage_s": 1.0}


def unhelped(reply: Reply) -> Callable[[dict[str, Any]], Reply]:
    """A server's replies: this one about the first step, a verdict about the others."""
    return lambda body: reply if "Is Step 1" in body["messages"][0]["content"] else RIGHT


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (Reply(status=400, body="no"), "locator: refused"),
        (Reply(status=500, body="no"), "locator: server"),
        (Reply(wait_s=1.0), "locator: timeout"),
    ],
)
@pytest.mark.parametrize("rule", ["alone", "first", "vote"])
def test_a_locator_without_an_answer_fails_and_no_guess_takes_its_place(
    reply: Reply, reason: str, rule: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    unfinished = "### Step 1: Pens\n24 + 15 = 39\n\n### Step 2: Pens\nThat is all.\n\n### Final Answer:\n\\boxed{39}"
    with serving(choose=unhelped(reply)) as server:
        locator = judging(server.url)
        if rule != "alone":
            locator = {"kind": "combined", "rule": rule, "locators": [{"kind": "derivation"}, locator]}
        (found,) = critiques([attempt(unfinished)], folder=tmp_path, locator=locator)
    assert isinstance(found, CritiqueFailure)
    assert found.reason == reason
    assert found.detail
    assert found.prompt_tokens == 22  # the verdicts that came


def test_a_locator_without_an_answer_is_asked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    path, replies = tmp_path / "critiques.jsonl", [RIGHT, Reply(status=500, body="no")]
    with serving(choose=lambda body: replies[1 if "Is Step 2" in body["messages"][0]["content"] else 0]) as server:
        table = config.LocateMendCriticConfig.model_validate({"locator": judging(server.url)})
        critic = registry.build(table, grader=GRADER, folder=tmp_path, own=None)
        (failed,) = critique_all(critic, [attempt()], path)
        replies[1] = WRONG_STEP
        (found,) = critique_all(critic, [attempt()], path)
        count = len(server.requests)
        assert critique_all(critic, [attempt()], path) == [found]
        assert len(server.requests) == count
    assert isinstance(failed, CritiqueFailure)
    assert isinstance(found, Critique)
    assert found.first_error == 2


@pytest.mark.parametrize("solution", [PROBLEM.solution, ""])
def test_a_mender_without_a_reply_is_asked_again(
    solution: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The program's critique, or its failure, is not the last word."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    path, replies = tmp_path / "critiques.jsonl", [Reply(GOOD), Reply(status=500, body="no")]
    one = attempt(STEPS.replace("39 - 3 = 36", "39 - 3 = 42"), problem=replace(PROBLEM, solution=solution))
    with serving(choose=lambda body: replies[0] if body["max_tokens"] == 1 else replies[-1]) as server:
        mender = {"kind": "openai", "base_url": server.url, "model": "m", "num_samples": 2, "max_retries": 0}
        table = config.LocateMendCriticConfig.model_validate({"locator": {"kind": "equations"}, "mender": mender})
        critic = registry.build(table, grader=GRADER, folder=tmp_path, own=None)
        (failed,) = critique_all(critic, [one], path)
        assert failed.retried == ("server", "server")
        assert isinstance(failed, Critique if solution else CritiqueFailure)
        replies.pop()
        (found,) = critique_all(critic, [one], path)
        count = len(server.requests)
        assert critique_all(critic, [one], path) == [found]
        assert len(server.requests) == count
    assert isinstance(found, Critique)
    assert (found.mended_by, found.retried) == ("m", ())


def scored(chat: Chat) -> tuple[Problem, Rollout]:
    """The attempt with token ids."""
    problem, rollout = attempt()
    ids = chat.completion_ids(rollout.text)
    return problem, replace(rollout, completion_ids=ids, token_starts=chat.decode(ids)[1])


def test_a_locator_of_the_benchmark_alone_is_refused() -> None:
    with pytest.raises(ValueError, match="allowed: equations, origins, derivation, verdicts"):
        config.LocateMendCriticConfig.model_validate({"locator": {"kind": "step_values"}})


def test_the_solvers_own_base_mends_in_process(make_recipe: Callable[..., Recipe]) -> None:
    recipe = make_recipe()
    with open_solver(recipe, None) as solver:
        engine = OwnModel.of(solver, make_recipe("sampler={ kind = 'vllm', max_model_len = 99 }"))
        assert (engine.context_limit, engine.sampling_limit) == (1024, 99)
        own = OwnModel.of(solver, recipe)
        assert own.sampling_limit == own.context_limit
        mender = {"kind": "self", "num_samples": 2, "max_tokens": 8}
        found = critiques([attempt(), attempt(name="s")], own, mender=mender)
    assert [one.mended_by for one in found if isinstance(one, Critique)] == ["program"] * 2
    assert json.dumps([len(one.retried) for one in found]) == "[2, 2]"


def test_self_mending_needs_a_solver() -> None:
    with pytest.raises(StepalignError, match="no solver is loaded"):
        critiques([attempt()], mender={"kind": "self"})
