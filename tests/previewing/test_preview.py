"""The preview shows the very ids that a run trains on."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

import stepalign
from stepalign import StepalignError, cli, models
from stepalign.chat import load_chat
from stepalign.config import Recipe
from stepalign.critics.right_answers import case_a
from stepalign.io import read_jsonl, write_jsonl
from stepalign.previewing import Preview, display
from stepalign.previewing.views import RolloutPreview, ViewPreview, ViewToken
from stepalign.records import CritiqueFailure, Grade, Problem, Rollout

MakeRecipe = Callable[..., Recipe]


@pytest.fixture
def no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the weights are loaded")

    monkeypatch.setattr(models, "load_policy", refuse)


def named(one: RolloutPreview, name: str) -> ViewPreview:
    return next(view for view in one.views if view.name == name)


def loss_ids(view: ViewPreview) -> list[int]:
    return [token.id for token in view.tokens if token.in_loss]


def test_the_views_are_those_of_a_runs_first_step(finished_run: Recipe, tmp_path: Path) -> None:
    sampled = read_jsonl(finished_run.folder / "rollouts" / "step-000001.jsonl", Rollout)
    shown = stepalign.preview(finished_run, limit=3).rollouts
    assert [one.rollout for one in shown] == sampled[:3]
    chat = load_chat(finished_run.model)
    for one in shown:
        if one.views:
            student, teacher = named(one, "student"), named(one, "teacher")
            assert student.ids == (*one.rollout.prompt_ids, *one.rollout.completion_ids)
            assert loss_ids(student) == loss_ids(teacher) == list(one.rollout.completion_ids)
            assert one.problem.statement in teacher.text
            assert len(teacher.ids) > len(student.ids)
            controls = [token for token in student.tokens if token.is_control]
            assert [token.id for token in controls] == [id for id in student.ids if id in chat.control_ids]
            assert all(token.text for token in controls)
    assert any(one.views for one in shown)


@pytest.mark.usefixtures("no_weights")
def test_a_failed_critique_has_its_reason_in_the_title() -> None:
    rollout = Rollout(id="r", problem_id="p", completion_ids=(2,), text="two", token_starts=(0,), finish="stop")
    failure = CritiqueFailure(rollout_id="r", critic="own", reason="parse", detail="verdicts: Field required")
    problem = Problem(id="p", statement="1 + 1", answer="2")
    one = RolloutPreview(problem=problem, rollout=rollout, critique=failure, views=())
    assert "no critique: parse (verdicts: Field required)" in display.title(one)


def test_a_notebook_shows_the_views_and_print_the_outcomes() -> None:
    rollout = Rollout(id="r<1>", problem_id="p", completion_ids=(2,), text="two", token_starts=(0,), finish="stop")
    texts = [("<s>", True, True, False), ("1 + 1", False, True, False), ("two", False, False, True)]
    tokens = tuple(
        ViewToken(id=id, text=text, is_control=control, is_prompt=prompt, in_loss=loss)
        for id, (text, control, prompt, loss) in enumerate(texts)
    )
    views = (ViewPreview(name="student", tokens=tokens), ViewPreview(name="critic", message="Judge it."))
    problem = Problem(id="p", statement="1 + 1", answer="2")
    shown = RolloutPreview(problem=problem, rollout=rollout, critique=None, views=views)
    previewed = Preview(rollouts=(shown,), outcomes={"trained": 1}, failures={})
    assert str(previewed) == "1 rollout shown; a step on these rollouts: 1 trained"
    page = previewed._repr_html_()
    for part in ("1 trained", "r&lt;1&gt;", '<span class="loss" title="2">two</span>', "&lt;s&gt;", "Judge it."):
        assert part in page
    assert "<html" not in page


def test_given_rollouts_need_no_weights(finished_run: Recipe, tmp_path: Path) -> None:
    problems = read_jsonl(finished_run.folder / "problems" / "train.jsonl", Problem)
    problem = next(one for one in problems if len(one.solution.split("###")) > 3)
    wrong = "### Step 1: Add 1 and 1\n1 + 1 = 3\n\n### Final Answer:\n\\boxed{3}"
    ids = load_chat(finished_run.model).completion_ids(wrong)
    text, starts = load_chat(finished_run.model).decode(ids)
    rollout = Rollout(
        id="mine", problem_id=problem.id, completion_ids=ids, text=text, token_starts=starts, finish="stop"
    )
    write_jsonl(tmp_path / "mine.jsonl", [rollout])
    settings = finished_run.model_copy(
        update={"algorithm": finished_run.algorithm.model_copy(update={"loss_span": "until_first_error"})}
    )
    (one,) = stepalign.preview(settings, rollouts=tmp_path / "mine.jsonl").rollouts
    student = named(one, "student")
    marked = "".join(token.text for token in student.tokens if token.in_loss)
    assert wrong.startswith(marked)
    assert 0 < len(marked) < len(wrong)
    assert "correct" in named(one, "teacher").text.lower()


@pytest.mark.usefixtures("no_weights")
def test_a_limit_leaves_groups_whole(finished_run: Recipe, tmp_path: Path) -> None:
    problem, other, *_ = read_jsonl(finished_run.folder / "problems" / "train.jsonl", Problem)
    chat, rollouts = load_chat(finished_run.model), []
    for number, (one, answer) in enumerate([(problem, "1"), (other, "2"), (problem, problem.answer)]):
        text, starts = chat.decode(ids := chat.completion_ids(f"It is \\boxed{{{answer}}}"))
        named_so = {"id": f"r{number}", "problem_id": one.id, "sample": number}
        rollouts.append(Rollout(**named_so, completion_ids=ids, text=text, token_starts=starts, finish="stop"))
    write_jsonl(tmp_path / "mine.jsonl", rollouts)
    settings = finished_run.replace(context="sibling", critic=None, num_generations=2)
    previewed = stepalign.preview(settings, rollouts=tmp_path / "mine.jsonl", limit=1)
    (one,) = previewed.rollouts
    assert f"It is \\boxed{{{problem.answer}}}" in named(one, "teacher").text
    assert (previewed.outcomes["trained"], previewed.outcomes["masked"]) == (1, 2)


@pytest.mark.parametrize("command", [stepalign.preview, stepalign.preflight])
@pytest.mark.usefixtures("no_weights")
def test_problems_that_all_lack_room_for_a_completion_are_an_error(
    make_recipe: MakeRecipe, command: Callable[[Recipe], object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    message = r"problems.train: no problem leaves room for sampling.max_new_tokens = 1000 .* 1024 tokens"
    with pytest.raises(StepalignError, match=message):
        command(make_recipe("sampling.max_new_tokens=1000"))


OPENAI = '{ kind = "openai", base_url = "http://127.0.0.1:9/v1", model = "m" }'


@pytest.mark.parametrize(
    ("overrides", "correct", "asked_tokens", "is_encoded"),
    [
        (['critic={ kind = "self" }'], False, 0, True),
        ([f"critic={OPENAI}"], False, 0, False),
        ([f"critic={OPENAI}"], True, 0, False),
        (['critic={ kind = "self" }'], True, 0, None),  # the program's
        (['critic={ kind = "self" }'], True, 9, True),  # the program could not
        (['critic={ kind = "self" }', 'context.template="refsol"'], False, 0, None),
    ],
)
@pytest.mark.usefixtures("no_weights")
def test_the_critics_message_is_a_view_where_it_is_sent(
    finished_run: Recipe,
    make_recipe: MakeRecipe,
    overrides: list[str],
    correct: bool,
    asked_tokens: int,
    is_encoded: bool | None,
    tmp_path: Path,
) -> None:
    # The critiques are there, so nobody is asked.
    folder = tmp_path / "rollouts"
    (rollout, *_) = read_jsonl(finished_run.folder / "rollouts" / "step-000001.jsonl", Rollout)
    rollout = replace(rollout, grade=Grade(correct=correct, outcome="correct" if correct else "wrong"))
    write_jsonl(folder / "rollouts.jsonl", [rollout])
    write_jsonl(folder / "critiques.jsonl", [replace(case_a(rollout, "own"), prompt_tokens=asked_tokens)])
    write_jsonl(folder / "problems.jsonl", read_jsonl(finished_run.folder / "problems" / "train.jsonl", Problem))
    (one,) = stepalign.preview(make_recipe(*overrides), rollouts=folder).rollouts
    if is_encoded is None:
        assert all(view.name != "critic" for view in one.views)
        return
    view = named(one, "critic")
    assert one.rollout.text.split("\n")[0] in view.text
    assert one.problem.answer in view.text
    assert bool(view.tokens) == is_encoded


def test_the_page_hides_nothing_and_runs_nothing(finished_run: Recipe, tmp_path: Path) -> None:
    out = tmp_path / "page.html"
    (one, *_) = stepalign.preview(finished_run, limit=1).rollouts
    tokens = named(one, "student").tokens if one.views else ()
    hostile = ViewPreview(name="student", tokens=(*tokens, replace(tokens[0], text="<script>\u202e")))
    display.write(finished_run, [replace(one, views=(hostile,))], "1 trained", out)
    page = out.read_text()
    assert "<script>" not in page
    assert "U+202E" in page
    assert f'title="{tokens[0].id}"' in page
    assert "http" not in page.replace('http-equiv="Content-Security-Policy"', "")


def test_the_command_prints_views_and_ids(
    finished_run: Recipe, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["stepalign", "preview", str(finished_run.folder / "recipe.toml"), "--ids",
                                     "--limit", "1", "--out", str(tmp_path / "page.html")])  # fmt: skip
    with pytest.raises(SystemExit):
        cli.main()
    printed = capsys.readouterr().out
    assert "‹<|im_start|>›" in printed
    sampled = read_jsonl(finished_run.folder / "rollouts" / "step-000001.jsonl", Rollout)
    assert " ".join(map(str, sampled[0].prompt_ids[:3])) in printed
    assert (tmp_path / "page.html").exists()
