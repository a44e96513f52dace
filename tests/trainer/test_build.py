"""A run that goes on has the prompts that it began with: the words of its templates, and the date they show."""

import datetime
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from transformers import AutoTokenizer

from stepalign import api
from stepalign.config import Recipe
from stepalign.errors import StepalignError
from stepalign.io import read_jsonl
from stepalign.launch import train
from stepalign.records import Rollout

MakeRecipe = Callable[..., Recipe]


@pytest.fixture
def dated(tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Overrides: templates of one's own, one within another, and a chat template that shows the date."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "hint.txt").write_text("A hint: {{ answer }}.\nThink of it.\n")
    (tmp_path / "own" / "context.txt").write_text("{{ problem }}\n{% include 'hint.txt' %}\n")
    (tmp_path / "own" / "solver.txt").write_text("{{ problem }}\n")
    template = "{{ strftime_now('%d %b %Y') }}" + AutoTokenizer.from_pretrained(tiny_llama).chat_template
    (tmp_path / "own" / "chat.jinja").write_text(template)
    return [
        "context.template=own/context.txt",
        "prompts.solver=own/solver.txt",
        "model.chat_template_path=own/chat.jinja",
        "training.save_steps=1",
        "training.eval_steps=9",
    ]


def days(tokenizer: Path, rollouts: Path) -> set[str]:
    chat = AutoTokenizer.from_pretrained(tokenizer)
    return {chat.decode(r.prompt_ids).partition("<")[0] for r in read_jsonl(rollouts, Rollout)}


@pytest.mark.slow
def test_a_run_that_goes_on_another_day_shows_the_day_on_which_it_began(
    dated: list[str], make_recipe: MakeRecipe, tiny_llama: Path, tmp_path: Path
) -> None:
    train(make_recipe(*dated, "training.max_steps=1"))
    settings = make_recipe(*dated, "training.max_steps=2")
    manifest = json.loads((settings.folder / "manifest.json").read_text())
    assert manifest["date"] == str(datetime.date.today())
    (settings.folder / "manifest.json").write_text(json.dumps({**manifest, "date": "2024-07-26"}))
    train(settings)
    first, second = (settings.folder / "rollouts" / f"step-{step:06d}.jsonl" for step in (1, 2))
    assert days(tiny_llama, first) == {datetime.date.today().strftime("%d %b %Y")}
    assert days(tiny_llama, second) == {"26 Jul 2024"}
    api.sample(settings, tmp_path / "out.jsonl", adapter=settings.folder / "checkpoints" / "step-000002")
    assert days(tiny_llama, tmp_path / "out.jsonl") == {"26 Jul 2024"}, "an adapter is evaluated as it was trained"


CHANGES = [
    ("own/context.txt", "own/context.txt", "-{{ problem }}\n  +{{ problem }} Hm."),
    ("own/hint.txt", "own/hint.txt", "-A hint: {{ answer }}.\n  +Hm.A hint"),
    ("own/solver.txt", "own/solver.txt", "+{{ problem }} Hm."),
    ("own/chat.jinja", "chat-template.jinja", "+Hm."),
]
"""File, its name among the kept ones, and what the message says of it."""


@pytest.mark.slow
def test_words_that_change_are_refused_with_the_difference(
    dated: list[str], make_recipe: MakeRecipe, tmp_path: Path
) -> None:
    settings = make_recipe(*dated, "training.max_steps=1")
    train(settings)
    for file, kept, difference in CHANGES:
        before = (tmp_path / file).read_text()
        assert (settings.folder / "prompts" / kept).read_text() == before
        after = before.replace("{{ problem }}", "{{ problem }} Hm.")
        (tmp_path / file).write_text(after if after != before else "Hm." + before)
        with pytest.raises(StepalignError, match=f"^{kept}: its words are no longer those") as caught:
            train(settings)
        assert difference in str(caught.value)
        (tmp_path / file).write_text(before)
    train(settings)


@pytest.mark.usefixtures("no_figures")
def test_the_critics_words_are_kept_too(make_recipe: MakeRecipe) -> None:
    critic = "critic={kind='self', max_tokens=8, on_failure='drop', max_failure_share=1}"
    settings = make_recipe(critic, "training.max_steps=1")
    train(settings)
    kept = {str(path.relative_to(settings.folder / "prompts")) for path in settings.folder.glob("prompts/**/*.*")}
    assert {"critic.txt", "critic-again.txt", "stepalign.txt", "solver.txt", "chat-template.jinja"} <= kept
    changed = settings.folder / "prompts" / "critic.txt"
    changed.write_text(changed.read_text() + "Be kind.\n")
    with pytest.raises(StepalignError, match=r"^critic\.txt: its words are no longer those(.|\n)*-Be kind\."):
        train(settings)


@pytest.mark.usefixtures("no_figures")
def test_a_tracker_gets_the_keys_of_the_recipe(make_recipe: MakeRecipe) -> None:
    settings = make_recipe('tracking.report_to=["tensorboard"]', "training.max_steps=1", "optimizer.lr=0.25")
    train(settings)
    (file,) = settings.folder.glob("trackers/stepalign/*/hparams.yml")
    kept = yaml.safe_load(file.read_text())
    assert kept["optimizer.lr"] == 0.25
    assert kept["problems.train.source"] == "sums"
    assert not any(isinstance(value, dict | list) for value in kept.values())
