"""A run's folder: whose it is, who may write to it, and what is taken up again."""

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from stepalign.config import Recipe
from stepalign.errors import StepalignError
from stepalign.evaluation.metrics import score
from stepalign.records import Critique, CritiqueFailure, Grade, Problem, Rollout
from stepalign.trainer.run_folder import RunFolder

MakeRecipe = Callable[..., Recipe]

PROBLEMS = [Problem(id=f"p{i}", statement=f"{i} + 1?", answer=str(i + 1)) for i in range(3)]


@pytest.fixture
def settings(make_recipe: MakeRecipe) -> Recipe:
    return make_recipe()


@pytest.fixture
def run(settings: Recipe) -> Iterator[RunFolder]:
    run = RunFolder(settings)
    yield run
    run.close()


def rollout(number: int) -> Rollout:
    return Rollout(
        id=f"r{number}",
        problem_id="p0",
        sample=number,
        completion_ids=(1, 2),
        text="ab",
        token_starts=(0, 1),
        finish="stop",
        grade=Grade(correct=False, outcome="missing"),
    )


# ── whose folder it is ────────────────────────────────────────────────────────────────────────────────────────


def test_the_same_recipe_takes_the_folder_up_again(settings: Recipe) -> None:
    begun(settings)
    before = (settings.folder / "recipe.toml").read_bytes()
    RunFolder(settings).close()
    assert (settings.folder / "recipe.toml").read_bytes() == before


def begun(settings: Recipe) -> None:
    """A run that has got as far as its manifest."""
    run = RunFolder(settings)
    run.describe(PROBLEMS, [], {})
    run.close()


def test_a_recipe_may_be_mended_as_long_as_nothing_was_computed(settings: Recipe, make_recipe: MakeRecipe) -> None:
    RunFolder(settings).close()
    RunFolder(make_recipe("optimizer.lr=0.5")).close()
    assert "lr = 0.5" in (settings.folder / "recipe.toml").read_text()


def test_another_recipe_is_an_error_that_lists_what_differs(settings: Recipe, make_recipe: MakeRecipe) -> None:
    begun(settings)
    other = make_recipe("optimizer.lr=0.5", "training.max_steps=9", "context.template=refsol")
    with pytest.raises(StepalignError) as raised:
        RunFolder(other)
    message = str(raised.value)
    assert "optimizer.lr: 0.01 → 0.5" in message
    assert "context.template: 'stepalign' → 'refsol'" in message
    assert "training.max_steps" not in message
    RunFolder(settings).close()  # the refused one holds no lock, and has changed nothing


def test_steps_and_trackers_may_differ_and_the_new_ones_are_written(settings: Recipe, make_recipe: MakeRecipe) -> None:
    begun(settings)
    RunFolder(make_recipe("training.max_steps=9", "tracking.project=other")).close()
    assert "steps = 9" in (settings.folder / "recipe.toml").read_text()


def test_memory_and_speed_may_differ_in_a_resumed_run(settings: Recipe, make_recipe: MakeRecipe) -> None:
    begun(settings)
    keys = ("training.micro_batch_size=1", "training.max_tokens_per_micro_batch=99", "training.save_steps=7")
    more = ("training.gradient_checkpointing=true", "algorithm.chunk_tokens=8", "grader.num_workers=3")
    RunFolder(make_recipe(*keys, *more, "sampler.max_num_seqs=2", "distributed.strategy=data_parallel")).close()
    with pytest.raises(StepalignError, match=r"training\.rollouts_per_step: 4 → 8"):
        RunFolder(make_recipe("training.rollouts_per_step=8"))


def test_a_run_may_go_on_with_its_critic_at_another_address(make_recipe: MakeRecipe) -> None:
    def asking(url: str, *changed: str) -> Recipe:
        return make_recipe("critic={kind='openai', base_url='" + url + "', model='m'}", *changed)

    begun(asking("http://here/v1"))
    RunFolder(
        asking("http://there/v1", "critic.max_concurrency=1", "critic.max_outage_s=9", "critic.cache=off")
    ).close()
    with pytest.raises(StepalignError, match=r"critic\.mode: 'copy' → 'splice'"):
        RunFolder(asking("http://there/v1", "critic.mode=splice"))


def test_another_process_is_locked_out_until_the_first_one_ends(settings: Recipe) -> None:
    settings.folder.mkdir(parents=True)
    hold = "import sys, filelock\nwith filelock.FileLock(sys.argv[1]):\n    print('held', flush=True)\n    input()"
    with subprocess.Popen(
        [sys.executable, "-c", hold, str(settings.folder / ".lock")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(StepalignError, match="another process is writing to this run"):
            RunFolder(settings)
        assert not (settings.folder / "recipe.toml").exists()
        holder.send_signal(signal.SIGKILL)
    RunFolder(settings).close()


def test_a_file_in_the_folders_place_is_an_error(settings: Recipe) -> None:
    settings.folder.parent.mkdir()
    settings.folder.write_text("in the way")
    with pytest.raises(StepalignError, match=r"runs/tiny: cannot be written"):
        RunFolder(settings)


# ── what is kept ──────────────────────────────────────────────────────────────────────────────────────────────


def test_problems_and_manifest_are_written_once(run: RunFolder) -> None:
    run.describe(PROBLEMS[:2], PROBLEMS[2:], {"duplicate": 3})
    manifest = (run.folder / "manifest.json").read_bytes()
    run.describe(PROBLEMS[:2], PROBLEMS[2:], {})
    assert (run.folder / "manifest.json").read_bytes() == manifest
    found = json.loads(manifest)
    assert found["problems"] == {"train": 2, "evaluation": 1, "dropped": {"duplicate": 3}}
    assert found["seed"] == 5
    assert {"stepalign", "created", "python", "platform", "packages", "hardware", "git_commit"} <= found.keys()
    assert {"torch", "transformers", "peft"} <= found["packages"].keys()
    assert {"cpu", "cores", "memory_gib", "gpus"} <= found["hardware"].keys()
    lines = (run.folder / "problems" / "train.jsonl").read_text().splitlines()
    assert [json.loads(line)["id"] for line in lines] == ["p0", "p1"]


def test_a_source_that_gives_other_problems_than_the_run_began_with_is_refused(run: RunFolder) -> None:
    run.describe(PROBLEMS[:2], PROBLEMS[2:], {})
    with pytest.raises(StepalignError, match=r"train\.jsonl: the recipe's source no longer gives the problems"):
        run.describe(PROBLEMS[1:], PROBLEMS[2:], {})


def test_rollouts_and_critiques_of_a_step_come_back_as_they_were(run: RunFolder) -> None:
    assert run.rollouts(1) is None
    assert run.critiques(1) is None
    rollouts = [rollout(0), rollout(1)]
    answers = [
        Critique(rollout_id="r0", critic="program", case="A", verdicts=(), correct_part="ab", text="good"),
        CritiqueFailure(rollout_id="r1", critic="program", reason="parse"),
    ]
    run.save_rollouts(1, rollouts)
    run.save_critiques(1, answers)
    assert run.rollouts(1) == rollouts
    assert run.critiques(1) == answers
    assert run.rollouts(2) is None


def test_no_critiques_are_not_the_same_as_none_yet(run: RunFolder) -> None:
    run.save_critiques(1, [])
    assert run.critiques(1) == []


def test_an_evaluation_comes_back_as_it_was(run: RunFolder) -> None:
    rollouts = [rollout(0), rollout(1)]
    evaluation = score(rollouts, n=2, resamples=10, seed=0, step=4)
    assert run.evaluation(4) is None
    run.save_evaluation(evaluation, rollouts)
    assert run.evaluation(4) == evaluation
    assert (run.folder / "evaluations" / "step-000004.jsonl").exists()


def test_metrics_of_steps_to_be_done_again_and_a_torn_line_are_dropped(run: RunFolder) -> None:
    run.drop_metrics_after(0)  # nothing there yet
    for step in (1, 2, 3):
        run.append_metrics({"step": step, "loss": 0.5})
    file = run.folder / "metrics.jsonl"
    file.write_text(file.read_text() + '{"step": 4, "lo')

    run.drop_metrics_after(3)
    assert [json.loads(line)["step"] for line in file.read_text().splitlines()] == [1, 2, 3]
    run.drop_metrics_after(2)
    run.append_metrics({"step": 3, "loss": 0.25})
    assert [json.loads(line)["loss"] for line in file.read_text().splitlines()] == [0.5, 0.5, 0.25]


def test_a_damaged_rollout_file_is_an_error_that_names_the_line(run: RunFolder) -> None:
    run.save_rollouts(1, [rollout(0)])
    file: Path = run.folder / "rollouts" / "step-000001.jsonl"
    file.write_text(file.read_text() + '{"id": "r1"}\n')
    with pytest.raises(StepalignError, match=r"step-000001\.jsonl, line 2: not a Rollout"):
        run.rollouts(1)


def test_a_step_in_which_nothing_ran_has_an_empty_timeline(run: RunFolder) -> None:
    """One that goes on from kept records, none of which can be learnt from."""
    run.append_timeline(1, {"answered": []})
    run.append_timeline(2, {"sample": [(5.0, 6.5)], "answered": [(6.0, 7.0)]})
    lines = [json.loads(line) for line in (run.folder / "timeline.jsonl").read_text().splitlines()]
    assert lines == [
        {"step": 1, "answered": []},
        {"step": 2, "sample": [[0.0, 1.5]], "answered": [[1.0, 2.0]]},
    ]
    run.drop_metrics_after(1)
    assert len((run.folder / "timeline.jsonl").read_text().splitlines()) == 1
