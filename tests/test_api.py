"""Each stage alone, on a tiny model and on the files of a real run."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import stepalign
from stepalign import api, cli, precision
from stepalign.config import Recipe
from stepalign.config.benchmarks import benchmark
from stepalign.errors import StepalignError
from stepalign.evaluation.metrics import Evaluation
from stepalign.io import read_json, read_jsonl
from stepalign.records import Rollout
from stepalign.rewards.math import MathGrader
from stepalign.rollouts.generate import Solver

MakeRecipe = Callable[..., Recipe]


@pytest.fixture
def checkpoint(finished_run: Recipe) -> Path:
    return finished_run.folder / "checkpoints" / "step-000004"


def test_sampling_draws_graded_rollouts_of_every_training_problem(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    out = tmp_path / "rollouts.jsonl"
    rollouts = stepalign.sample(make_recipe(), out, samples=2)
    assert read_jsonl(out, Rollout) == rollouts
    assert len(rollouts) == 2 * 9
    assert len({rollout.problem_id for rollout in rollouts}) == 9
    assert all(rollout.grade is not None for rollout in rollouts)


def test_sampling_with_an_adapter_draws_something_else(
    make_recipe: MakeRecipe, checkpoint: Path, tmp_path: Path
) -> None:
    settings = make_recipe("problems.train.count=6")
    base = stepalign.sample(settings, tmp_path / "base.jsonl")
    adapted = stepalign.sample(settings, tmp_path / "adapted.jsonl", adapter=checkpoint)
    assert [rollout.seed for rollout in base] == [rollout.seed for rollout in adapted]
    assert [rollout.completion_ids for rollout in base] != [rollout.completion_ids for rollout in adapted]


def test_an_interrupted_sampling_keeps_the_finished_rollouts(
    make_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, out, decode = make_recipe("problems.train.count=6"), tmp_path / "rollouts.jsonl", Solver._rollout
    whole = {rollout.id: rollout.completion_ids for rollout in stepalign.sample(settings, out)}
    out.unlink()
    calls = 0

    def interrupted(self: Solver, *arguments: Any, **options: Any) -> Rollout:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return decode(self, *arguments, **options)

    with monkeypatch.context() as patched:
        patched.setattr(Solver, "_rollout", interrupted)
        with pytest.raises(KeyboardInterrupt, match=r"2 of 3 rollouts, not graded, are in .*rollouts-partial\.jsonl"):
            stepalign.sample(settings, out)
    assert not out.exists()
    partial = read_jsonl(tmp_path / "rollouts-partial.jsonl", Rollout)
    assert len(partial) == 2
    assert all(whole[rollout.id] == rollout.completion_ids for rollout in partial)
    stepalign.sample(settings, out)
    assert not (tmp_path / "rollouts-partial.jsonl").exists()


@pytest.mark.parametrize(
    ("fault", "message"),
    [(StepalignError("no server"), r"no server; 3 of 3 rollouts, not graded"), (ValueError("odd"), "odd")],
)
def test_a_failed_sampling_keeps_the_finished_rollouts(
    fault: Exception, message: str, make_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise fault

    monkeypatch.setattr(MathGrader, "grade", fail)
    with pytest.raises(type(fault), match=message) as caught:
        stepalign.sample(make_recipe("problems.train.count=6"), tmp_path / "rollouts.jsonl")
    assert "rollouts-partial.jsonl" in "".join([str(caught.value), *getattr(caught.value, "__notes__", [])])
    assert len(read_jsonl(tmp_path / "rollouts-partial.jsonl", Rollout)) == 3


def test_rollouts_are_written_before_they_are_scored(
    make_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise MemoryError

    monkeypatch.setattr("stepalign.evaluation.run.score", fail)
    with pytest.raises(MemoryError):
        stepalign.evaluate(make_recipe("evaluation.num_samples=1"), tmp_path / "evaluation.json")
    assert len(read_jsonl(tmp_path / "evaluation-rollouts.jsonl", Rollout)) == 3


@pytest.mark.parametrize("step", [0, 4])
def test_evaluating_a_checkpoint_gives_the_numbers_of_the_run(
    step: int, finished_run: Recipe, checkpoint: Path, tmp_path: Path
) -> None:
    out = tmp_path / "evaluation.json"
    evaluation = stepalign.evaluate(finished_run, out, adapter=checkpoint if step else None)
    in_the_run = read_json(finished_run.folder / "evaluations" / f"step-{step:06d}.json", Evaluation)
    assert evaluation.measures == in_the_run.measures
    assert read_json(out, Evaluation) == evaluation
    theirs = read_jsonl(finished_run.folder / "evaluations" / f"step-{step:06d}.jsonl", Rollout)
    mine = read_jsonl(out.with_name(f"{out.stem}-rollouts.jsonl"), Rollout)
    assert [rollout.completion_ids for rollout in mine] == [rollout.completion_ids for rollout in theirs]


def test_there_must_be_something_to_evaluate_on(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    with pytest.raises(StepalignError, match="nothing to evaluate on"):
        stepalign.evaluate(make_recipe("problems.holdout=0"), tmp_path / "evaluation.json")
    with pytest.raises(StepalignError, match="the recipe evaluates on others: give `evaluation_problems`"):
        stepalign.evaluate(make_recipe('problems.evaluation={source="sums"}'), problems=[{"statement": "1 + 1"}])


def test_a_benchmark_replaces_the_recipe_s_own_evaluation_problems(
    make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    monkeypatch.setattr(api, "load_evaluation", lambda source: seen.append(source) or [])
    own = 'problems.evaluation={ source = "gsm8k", split = "test", limit = 2 }'
    with pytest.raises(StepalignError, match="nothing to evaluate on"):
        stepalign.evaluate(make_recipe("problems.holdout=0", own), benchmark="gsm8k")
    assert seen == [benchmark("gsm8k").source]


def test_a_selection_attempts_every_problem_once_and_says_what_its_filter_left(
    make_recipe: MakeRecipe, tmp_path: Path
) -> None:
    settings = make_recipe("selection.num_attempts=2", "problems.train.count=6")
    # The tiny model writes no format at all, so nothing is left.
    with pytest.raises(StepalignError, match="format"):
        stepalign.select(settings, tmp_path / "selection")
    settings_file = tmp_path / "selection" / "settings.json"
    kept = json.loads(settings_file.read_text())
    assert kept["words"].keys() == {"solver.txt", "format.txt", "chat-template.jinja"}
    settings_file.write_text(json.dumps({**kept, "date": "2024-07-26"}))  # it goes on another day
    attempts = tmp_path / "selection" / "attempts.jsonl"
    before = attempts.read_bytes()
    assert len(read_jsonl(attempts, Rollout)) == 2 * 6
    with pytest.raises(StepalignError, match="format"):
        stepalign.select(settings.replace(**{"grader.num_workers": 1}), tmp_path / "selection")
    assert attempts.read_bytes() == before


def test_a_selection_goes_on_with_its_grader_s_code_and_the_precision_it_measured(
    make_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = make_recipe(
        "selection.num_attempts=1", "problems.train.count=2", "problems.holdout=0",
        "model.float32_matmul_precision=auto",
    )  # fmt: skip

    def graded_by(bound: int, speedup: float) -> Path:
        monkeypatch.setattr(precision, "medium_speedup", lambda: speedup)
        return stepalign.select(settings, tmp_path, grader=lambda problem, rollout: len(rollout.text) > bound)

    with pytest.raises(StepalignError, match="none of 2 problems passed"):
        graded_by(3, speedup=1.0)
    kept = json.loads((tmp_path / "settings.json").read_text())
    assert kept["model"]["float32_matmul_precision"] == "highest"
    with pytest.raises(StepalignError, match="none of 2 problems passed"):
        graded_by(3, speedup=9.0)
    with pytest.raises(
        StepalignError, match=r"what differs:\n  words\.grader\.function\..*<lambda>\.py: '\w+' → '\w+'$"
    ):
        graded_by(4, speedup=1.0)


# ── adapters of any origin ────────────────────────────────────────────────────────────────────────────────────


def damaged(checkpoint: Path, folder: Path, damage: str, tiny_llama: Path) -> Path:
    shutil.copytree(checkpoint, folder)
    file = folder / "adapter_model.safetensors"
    if damage == "half":
        file.write_bytes(file.read_bytes()[:-50])
    elif damage == "missing":
        file.unlink()
    elif damage == "lacks weights":
        weights = load_file(file)
        save_file(dict(list(weights.items())[1:]), file)
    elif damage == "another shape":
        other = get_peft_model(
            AutoModelForCausalLM.from_pretrained(tiny_llama), LoraConfig(r=7, target_modules=["q_proj"])
        )
        other.save_pretrained(folder / "other")
        shutil.copy(folder / "other" / "adapter_model.safetensors", file)
    return folder


@pytest.mark.filterwarnings("ignore:Found missing adapter keys")  # what PEFT only warns of is an error of ours
@pytest.mark.parametrize("damage", ["half", "missing", "lacks weights", "another shape"])
def test_a_damaged_adapter_is_an_error(
    damage: str, make_recipe: MakeRecipe, checkpoint: Path, tiny_llama: Path, tmp_path: Path
) -> None:
    adapter = damaged(checkpoint, tmp_path / "adapter", damage, tiny_llama)
    with pytest.raises(StepalignError, match=r"adapter: not a PEFT adapter for this model"):
        stepalign.sample(make_recipe(), tmp_path / "rollouts.jsonl", adapter=adapter)
    assert not (tmp_path / "rollouts.jsonl").exists()


def test_a_folder_without_an_adapter_is_an_error(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    with pytest.raises(StepalignError, match=r"adapter '.*nowhere': no such folder"):
        stepalign.sample(make_recipe(), tmp_path / "rollouts.jsonl", adapter=tmp_path / "nowhere")


def test_no_problem_with_room_is_an_error_before_sampling(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    with pytest.raises(
        StepalignError, match=r"problems.train: no problem leaves room for sampling.max_new_tokens = 1000 in 1024"
    ):
        stepalign.sample(make_recipe("sampling.max_new_tokens=1000"), tmp_path / "rollouts.jsonl")


def test_problems_without_room_are_left_out_and_counted(
    make_recipe: MakeRecipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"statement": "1 + 1", "answer": "2"}, {"statement": "1 + " * 600, "answer": "2"}]
    settings = make_recipe("problems.holdout=0")
    assert [one.problem_id for one in stepalign.sample(settings, problems=rows)] == ["problem-1"]
    assert stepalign.evaluate(settings, evaluation_problems=rows).problem_ids == ("evaluation-1",)
    with pytest.raises(StepalignError, match="none of 1 problems passed"):
        stepalign.select(settings, tmp_path, problems=rows)
    assert {one.problem_id for one in read_jsonl(tmp_path / "attempts.jsonl", Rollout)} == {"problem-1"}
    said = capsys.readouterr().err
    for name in ("problems.train", "evaluation problems"):
        assert f"{name}: 1 of 2 left out: longer than the model's context, 1024 tokens" in said


def test_verifying_names_the_references_that_fail_their_own_tests(
    make_recipe: MakeRecipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        {"statement": "Add.", "tests": "assert add(1, 2) == 3", "solution": "def add(a, b):\n    return a + b"},
        {"statement": "Subtract.", "tests": "assert sub(1, 2) == 1", "solution": "def sub(a, b):\n    return a - b"},
        {"statement": "Unknown.", "tests": "assert f(1) == 1", "solution": ""},
    ]
    path = tmp_path / "code.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    problems = {"train": {"source": "code_file", "path": str(path)}}
    settings = make_recipe().model_dump(mode="json", exclude={"problems", "grader"})
    wrong = stepalign.verify(
        Recipe.model_validate({**settings, "problems": problems, "grader": {"kind": "unit-tests"}})
    )
    assert [rollout.problem_id for rollout in wrong] == ["code-2"]
    assert wrong[0].grade is not None
    recipe = tmp_path / "code.toml"
    recipe.write_text(
        f'extends = "quickstart"\n[problems]\ntrain = {{ source = "code_file", path = "{path}" }}\nholdout = 1\n'
        '[grader]\nkind = "unit-tests"\n'
    )
    cli.verify(recipe)
    said = capsys.readouterr().out
    assert "reference solutions: 2 verified, 1 not correct; problems without one: 1" in said
    assert "assert sub(1, 2) == 1\nfails: the program gives -1, expected is 1." in wrong[0].grade.feedback
