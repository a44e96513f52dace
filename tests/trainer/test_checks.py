"""What is known before the first evaluation, and before the weights are loaded where it can be."""

import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from serving.fault_server import Reply, free_url, serving
from stepalign import cli, config, models
from stepalign.config import machine
from stepalign.config.recipe import Recipe
from stepalign.critics import sample
from stepalign.critics.files import critique_all
from stepalign.critics.openai import OpenAICritic
from stepalign.critics.schema import compose, num_sections
from stepalign.data import load
from stepalign.errors import StepalignError
from stepalign.launch import train
from stepalign.records import Verdict
from stepalign.rewards.math import MathGrader
from stepalign.trace import final_answers, parse
from stepalign.trainer import checks
from stepalign.trainer.failure_limit import FailureLimit

pytestmark = pytest.mark.usefixtures("no_figures")

MakeRecipe = Callable[..., Recipe]


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the weights are loaded")

    monkeypatch.setattr(models, "load_policy", refuse)


def served(*urls: str) -> str:
    bases = ", ".join(f'"{url}"' for url in urls)
    return f'critic={{ kind = "openai", base_url = [{bases}], model = "m", max_retries = 0, timeout_s = 5 }}'


def mended(mender: str) -> str:
    return f'critic={{ kind = "locate-mend", mender = {{ {mender} }} }}'


def copied(prompt: str) -> str:
    """The critique of a right solution."""
    attempt = prompt.partition("Student's Solution Begin ===\n")[2].partition("\n=== Student's")[0]
    verdicts = [Verdict(step=step, correct=True) for step in range(1, num_sections(parse(attempt)) + 1)]
    return compose("A", verdicts, attempt) if attempt else "yes"


@pytest.mark.parametrize(
    "override",
    [
        served("http://me:hunter2@host/v1"),
        mended('kind = "openai", model = "m", base_url = "http://me:hunter2@host/v1"'),
        "context.template=hunter2.txt",
        "model.dtype=float16",
    ],
)
def test_what_a_run_must_not_begin_with_leaves_no_folder(override: str, make_recipe: MakeRecipe) -> None:
    settings = make_recipe(override)
    with pytest.raises(
        StepalignError, match=r"critic\.(mender\.)?base_url|no template|dtype = 'float16': .* allowed: 'bf"
    ):
        train(settings)
    assert not settings.folder.exists()


@pytest.mark.usefixtures("no_weights")
def test_a_tracker_that_is_not_installed_is_an_error_and_leaves_no_folder(
    make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    settings = make_recipe('tracking.report_to=["tensorboard", "wandb"]')
    with pytest.raises(StepalignError, match=r"tracking\.report_to: wandb is not installed"):
        train(settings)
    assert not settings.folder.exists()
    machine.check(make_recipe('tracking.report_to=["tensorboard"]'), "tracking")


@pytest.mark.usefixtures("no_weights")
@pytest.mark.parametrize(
    ("reply", "said"),
    [
        (None, r"no critic endpoint works \(http.*Connect.*Start it, then the same command"),
        (Reply(status=404, body='{"error": "no model m"}'), r"answers 404 .*no model m.*critic\.model"),
        (Reply(status=401, body="{}"), r"answers 401 .*STEPALIGN_CRITIC_API_KEY"),
        (Reply(status=403, body="{}"), "answers 403 "),
        (Reply(status=301, headers={"Location": "/"}), "answers 301 "),
        (Reply(status=502, body="<html>"), "no critic endpoint works .*answers 502"),
        (Reply(status=200, body="<html>Welcome</html>"), "no critic endpoint works .*not a chat completion"),
        (Reply(drop=True), "no critic endpoint works"),
    ],
)
def test_a_server_that_can_serve_nobody_is_known_before_the_weights_are_loaded(
    reply: Reply | None, said: str, make_recipe: MakeRecipe
) -> None:
    start = time.perf_counter()
    with serving(reply or Reply()) as server, pytest.raises(StepalignError, match=said):
        train(make_recipe(served(server.url if reply else free_url()[0])))
    assert time.perf_counter() - start < 10


def test_one_server_of_two_is_enough(make_recipe: MakeRecipe, caplog: pytest.LogCaptureFixture) -> None:
    dead, _ = free_url()
    with serving(Reply(copied)) as server:
        train(make_recipe(served(server.url, dead), "training.max_steps=1", "problems.holdout=0"))
    assert f"critic: {dead}: Client" in caplog.text


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        (Reply("Looks good to me!"), r"all 3 of its first attempts, .* \(3 parse\)\. For example: the answer has none"),
        (Reply(status=400, body="context too long"), r"\(3 refused\)\. For example: .*context too long"),
        (Reply("I think", finish="length"), r"\(3 truncated\)"),
    ],
)
def test_a_critic_that_fails_on_its_first_attempts_stops_the_run_before_the_first_evaluation(
    reply: Reply, said: str, make_recipe: MakeRecipe
) -> None:
    settings = make_recipe(served("http://url"), "training.max_steps=1")
    with serving(choose=lambda request: Reply("yes") if request["max_tokens"] == 1 else reply) as server:
        settings = make_recipe(served(server.url))
        with pytest.raises(StepalignError, match=said):
            train(settings)
    assert not (settings.folder / "evaluations").exists()
    assert not (settings.folder / "rollouts").exists()


def test_a_sampler_s_server_that_was_never_started_ends_the_run_at_once(make_recipe: MakeRecipe) -> None:
    start = time.perf_counter()
    with pytest.raises(StepalignError, match=r"no sampler endpoint works \(http.*Connect"):
        train(make_recipe(f'sampler={{ kind = "vllm-server", base_url = "{free_url()[0]}" }}', "problems.holdout=0"))
    assert time.perf_counter() - start < 30


def test_a_command_that_critiques_a_file_waits_for_no_server(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    settings = make_recipe(served(free_url()[0]))
    with pytest.raises(StepalignError, match="no critic endpoint works"):
        critique_all(
            OpenAICritic(settings.critic, MathGrader(), tmp_path), [(sample.PROBLEM, sample.ROLLOUT)], tmp_path / "c"
        )


def test_a_model_without_room_for_the_message_is_no_critic(make_recipe: MakeRecipe) -> None:
    settings = make_recipe("critic.kind=self", "critic.max_tokens=900")
    with pytest.raises(StepalignError, match=r"\(3 no room\)\. For example: a message of \d+ tokens"):
        train(settings)
    assert not (settings.folder / "evaluations").exists()


def test_a_run_that_is_done_needs_no_server(make_recipe: MakeRecipe) -> None:
    keys = ("training.max_steps=1", "problems.holdout=0")
    with serving(Reply(copied)) as server:
        train(make_recipe(served(server.url), *keys))
    train(make_recipe(served(server.url), *keys))


def test_any_problem_makes_an_attempt_that_is_right() -> None:
    problems = [sample.PROBLEM, *load(config.SumsConfig(count=3)).problems]
    for problem, rollout in checks.trial_attempts(problems):
        assert parse(rollout.text).formatted
        assert final_answers(rollout) == (problem.answer,)


def test_a_cut_attempt_lacks_its_end() -> None:
    ((problem, rollout),) = checks.trial_attempts([sample.PROBLEM], cut=True)
    assert (rollout.correct, rollout.finish) == (False, "length")
    assert rollout.text
    assert final_answers(rollout) == ()
    assert checks.trial_attempts([problem])[0][1].text.startswith(rollout.text)


def test_a_served_mender_that_refuses_begun_replies_stops_the_run_at_once(make_recipe: MakeRecipe) -> None:
    with serving(choose=lambda body: Reply("yes") if body["max_tokens"] == 1 else Reply(status=400)) as server:
        mender = f'kind = "openai", base_url = "{server.url}", model = "m", max_retries = 0, num_samples = 1'
        settings = make_recipe(mended(mender))
        with pytest.raises(StepalignError, match=r"on all 3 of its first attempts, .*\(3 mender: refused\)"):
            train(settings)
    with pytest.raises(StepalignError, match=r"no critic\.mender endpoint works"):
        train(make_recipe(mended(mender)))


def test_a_mender_without_replies_fails_a_step_and_a_bad_one_does_not(tmp_path: Path) -> None:
    limit = FailureLimit(config.LocateMendCriticConfig(max_failed_steps=1), tmp_path)
    bad = replace(sample.CRITIQUE, mended_by="program", retried=("final_answer", "timeout"))
    limit.check(1, [bad])
    with pytest.raises(StepalignError, match="mender: timeout"):
        limit.check(2, [replace(bad, retried=faults) for faults in (("server", "timeout"), ("timeout",), ("parse",))])


BROKEN = ["{{ problem.statement.text }}", "{% if %}", "{{ unknown }}", None]


@pytest.mark.parametrize("text", BROKEN)
@pytest.mark.parametrize(
    "override",
    [
        *(f"{key}=mine.txt" for key in ("critic.prompt", "context.template", "context.fallback_template",
                                        "prompts.solver")),
        *(mended(f'prompt = "mine.txt", {mender}') for mender in (
            'kind = "self"', 'kind = "openai", model = "m", base_url = "http://localhost/v1"')),
    ],
)  # fmt: skip
def test_a_dry_run_finds_a_template_that_cannot_be_rendered(
    override: str, text: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if text is not None:
        (tmp_path / "mine.txt").write_text(text)
    (tmp_path / "recipe.toml").write_text(
        'name = "n"\nmodel.name_or_path = "a/model"\nproblems.train.source = "sums"\n'
        'critic = { kind = "openai", base_url = "http://localhost/v1", model = "m" }\n'
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["stepalign", "train", "recipe.toml", override, "--dry-run"])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    printed = capsys.readouterr()
    assert (stopped.value.code, printed.out) == (2, "")
    assert "mine.txt" in printed.err
