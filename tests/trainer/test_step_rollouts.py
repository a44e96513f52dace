"""Whole runs whose steps are not the policy's rollouts alone: references, the teacher's samples, a second turn."""

import json
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from stepalign import config
from stepalign.assets import LAB_RECIPES
from stepalign.config import Recipe
from stepalign.io import read_jsonl
from stepalign.records import Problem, Rollout
from stepalign.trace import parse
from stepalign.trainer.build import build_trainer
from stepalign.trainer.run_folder import RunFolder

MakeRecipe = Callable[..., Recipe]
SHORT = ("training.max_steps=2", "training.eval_steps=0", "evaluation.num_samples=1")


def run(settings: Recipe) -> Path:
    with ExitStack() as stack:
        opened = RunFolder(settings)
        stack.callback(opened.close)
        build_trainer(settings, opened, stack).train()
    return settings.folder


def metrics(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def rollouts(folder: Path, step: int, room: str = "rollouts") -> list[Rollout]:
    return read_jsonl(folder / room / f"step-{step:06d}.jsonl", Rollout)


def adapter(folder: Path, step: int) -> bytes:
    return (folder / "checkpoints" / f"step-{step:06d}" / "adapter_model.safetensors").read_bytes()


def resumes(make_recipe: MakeRecipe, overrides: Sequence[str]) -> Path:
    """Run whole, and in parts of one step; the adapters are the same."""
    once = (*overrides, "training.save_steps=1", "training.eval_steps=0", "evaluation.num_samples=1")
    whole = run(make_recipe(*once, "name=whole"))
    run(make_recipe(*once, "name=parts", "training.max_steps=2"))
    parts = run(make_recipe(*once, "name=parts"))
    assert adapter(whole, 4) == adapter(parts, 4)
    return whole


@pytest.mark.slow
def test_lmbda_mixes_steps_on_references_and_resumes_to_the_same_adapter(make_recipe: MakeRecipe) -> None:
    overrides = ("seed=3", "algorithm.lmbda=0.5", "context.template=refsol", "sampling.max_new_tokens=200")
    folder = resumes(make_recipe, overrides)
    sources = [{rollout.source for rollout in rollouts(folder, step)} for step in (1, 2, 3, 4)]
    assert sorted(map(str, sources)) == sorted(map(str, [{"policy"}, {"reference"}] * 2)), "a draw for each whole step"
    problems = {p.id: p for p in read_jsonl(folder / "problems" / "train.jsonl", Problem)}
    for step, (source,) in enumerate(map(tuple, sources), 1):
        line = metrics(folder)[step - 1]
        assert line["on_policy"] == (source == "policy")
        if source == "reference":
            assert line["rollouts"] == 2, "one for each problem, however large the group"
            assert line["correct"] == 1
            assert line["cost"]["generated_tokens"] == 0
            for rollout in rollouts(folder, step):
                assert rollout.text == problems[rollout.problem_id].solution
                assert rollout.finish == "stop"
                assert line["loss"] > 0


def test_lmbda_of_one_and_of_zero_are_pure(make_recipe: MakeRecipe) -> None:
    common = ("context.template=refsol", "training.max_steps=2", "training.eval_steps=0")
    for lmbda, source in ((1.0, "policy"), (0.0, "reference")):
        folder = run(make_recipe(*common, f"algorithm.lmbda={lmbda}", f"name=pure-{source}"))
        assert {rollout.source for step in (1, 2) for rollout in rollouts(folder, step)} == {source}


def test_references_are_fitted(make_recipe: MakeRecipe) -> None:
    folder = run(make_recipe("algorithm.kind=sft", "sampling.max_new_tokens=200", *SHORT))
    lines = metrics(folder)
    assert lines[-1]["loss"] < lines[0]["loss"], "the cross-entropy of a reference in nats a token"
    assert all(parse(rollout.text).formatted for rollout in rollouts(folder, 1))
    assert "teacher_tokens" not in lines[0]


def test_the_teacher_s_samples_are_those_of_the_base_under_the_context(make_recipe: MakeRecipe) -> None:
    folder = run(make_recipe("algorithm.kind=seq-kd", "context.template=refsol", *SHORT))
    drawn = rollouts(folder, 2)
    assert {rollout.source for rollout in drawn} == {"teacher"}
    assert len(drawn) == 4
    assert metrics(folder)[1]["outcomes"]["trained"] == 4
    live = run(
        make_recipe("algorithm.kind=seq-kd", "context.template=refsol", "teacher.kind=live", "name=live", *SHORT)
    )
    assert [r.completion_ids for r in rollouts(live, 1)] == [r.completion_ids for r in rollouts(folder, 1)]
    assert [r.completion_ids for r in rollouts(live, 2)] != [r.completion_ids for r in drawn], "the live one has moved"


def test_another_model_s_samples_are_learned(tiny_qwen3: Path, make_recipe: MakeRecipe) -> None:
    model = f"teacher={{ kind = 'model', model = {{ name_or_path = '{tiny_qwen3}' }} }}"
    folder = run(make_recipe("algorithm.kind=seq-kd", "context.template=solver", model, *SHORT))
    ours = run(make_recipe("algorithm.kind=seq-kd", "context.template=solver", "name=base", *SHORT))
    theirs, base = rollouts(folder, 1), rollouts(ours, 1)
    assert [r.prompt_ids for r in theirs] == [r.prompt_ids for r in base], "the same prompt"
    assert [r.completion_ids for r in theirs] != [r.completion_ids for r in base], "another author"
    assert metrics(folder)[0]["loss"] > 0


@pytest.mark.slow
def test_a_second_turn_with_a_hint_is_sampled_graded_and_learned(tmp_path: Path) -> None:
    overrides = [
        "algorithm={ kind = 'sft', sequences = 'rollouts', rationalize = true }", "context.template=lab/refsol",
        "training={ max_steps = 2, rollouts_per_step = 8, num_generations = 2, save_steps = 1, eval_steps = 0 }",
        "problems.evaluation.count=2", "evaluation.num_samples=1", f"output_dir={tmp_path}",
    ]  # fmt: skip
    settings = config.load(LAB_RECIPES / "refsol.toml", [*overrides, "name=whole"])
    folder = run(settings)
    for step in (1, 2):
        first, second = rollouts(folder, step), rollouts(folder, step, "second-turns")
        solved = {rollout.problem_id for rollout in first if rollout.correct}
        assert {r.problem_id for r in second} == {r.problem_id for r in first} - solved
        assert all(rollout.turn == 2 and rollout.id.endswith("/second") for rollout in second)
        line = metrics(folder)[step - 1]
        assert line["rollouts"] == 8
        assert line["rollouts_second"] == len(second)
        right = sum(rollout.correct for rollout in second)
        assert line["outcomes"].get("rationalized", 0) == right
        assert line["outcomes"]["trained"] == right + sum(rollout.correct for rollout in first)
    parts = config.load(LAB_RECIPES / "refsol.toml", [*overrides, "name=parts", "training.max_steps=1"])
    run(parts)
    for name in ("rollouts", "second-turns"):  # as if it had been stopped before its second update
        (parts.folder / name / "step-000002.jsonl").write_bytes((folder / name / "step-000002.jsonl").read_bytes())
    run(config.load(LAB_RECIPES / "refsol.toml", [*overrides, "name=parts"]))
    assert adapter(parts.folder, 2) == adapter(folder, 2)
