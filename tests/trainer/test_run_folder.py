"""A run's folder: whose it is, who may write to it, and what is taken up again."""

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from stepalign.config import Recipe
from stepalign.errors import StepalignError
from stepalign.evaluation.metrics import score
from stepalign.io import to_json
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
        run.check_resumed(PROBLEMS[1:], PROBLEMS[2:], {})


BATCH = [PROBLEMS[0], PROBLEMS[1], PROBLEMS[0]]
"""A problem may come twice, at the seam of two epochs."""
IDS = [f"step-000001/{name}" for name in ("p0/0", "p0/1", "p1/0", "p1/1", "p0/2", "p0/3")]


def of_step(rollout_id: str) -> Rollout:
    return replace(rollout(0), id=rollout_id, problem_id=rollout_id.split("/")[1])


def result(rollout_id: str) -> CritiqueFailure | Critique:
    if rollout_id.endswith("0"):
        return Critique(rollout_id=rollout_id, critic="program", case="A", verdicts=(), correct_part="ab", text="good")
    return CritiqueFailure(rollout_id=rollout_id, critic="program", reason="parse")


def test_rollouts_and_critiques_of_a_step_come_back_as_they_were(run: RunFolder) -> None:
    assert run.rollouts(1, BATCH, 2) is None
    assert run.critiques(1, BATCH, 2) is None
    rollouts, answers = [of_step(name) for name in IDS], [result(name) for name in IDS]
    run.save_rollouts(1, rollouts)
    run.save_critiques(1, answers)
    assert run.rollouts(1, BATCH, 2) == rollouts
    assert run.critiques(1, BATCH, 2) == answers
    assert run.rollouts(2, BATCH, 2) is None
    assert run.second_turns(1, ["a/second"]) is None
    second = [replace(of_step(IDS[0]), id="a/second", turn=2)]
    run.save_second_turns(1, second)
    assert run.second_turns(1, ["a/second"]) == second
    with pytest.raises(StepalignError, match=r"1 lines for 1 rollouts: 1 missing \(b/second"):
        run.second_turns(1, ["b/second"])


@pytest.mark.parametrize("room", ["rollouts", "critiques"])
@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda lines: lines[:-1], r"5 lines for 6 rollouts: 1 missing \(step-000001/p0/3 …\)"),
        (lambda lines: [], r"0 lines for 6 rollouts: 6 missing"),
        (lambda lines: lines[:2] + lines[1:], r"7 lines .* 1 twice or more \(step-000001/p0/1 …\)"),
        (lambda lines: [lines[1], *lines[1:]], r"6 lines .* 1 missing \(step-000001/p0/0 …\), 1 twice or more"),
        (
            lambda lines: [line.replace("step-000001", "step-000009") for line in lines],
            r"6 missing .* 6 of no rollout of this step \(step-000009/",
        ),
        (lambda lines: lines[::-1], "in another order"),
        (lambda lines: [lines[0].replace('"ab"', '"aX"'), *lines[1:]], ""),
    ],
)
def test_missing_doubled_and_altered_lines_are_found_and_the_remedy_is_said(
    room: str, known: bool, change: Callable[[list[str]], list[str]], fault: str, settings: Recipe
) -> None:
    """With the file's checksum, and in the folder of an earlier release, which has none."""
    run = RunFolder(settings)
    run.save_rollouts(1, [of_step(name) for name in IDS])
    run.save_critiques(1, [result(name) for name in IDS])
    run.close()
    file = settings.folder / room / "step-000001.jsonl"
    file.write_text("".join(change(file.read_text().splitlines(keepends=True))))
    if not known:
        (settings.folder / "checksums.jsonl").unlink()
    run = RunFolder(settings)
    try:
        if not known and not fault:
            assert getattr(run, room)(1, BATCH, 2), "a change that only a checksum shows"
            return
        expected = rf"{room}/step-000001\.jsonl: damaged, its checksum is not" if known else fault
        with pytest.raises(StepalignError, match=expected) as raised:
            getattr(run, room)(1, BATCH, 2)
        command = str(raised.value).partition("To make it again: `")[2].partition("`")[0]
        subprocess.run(command, shell=True, check=True)
        assert getattr(run, room)(1, BATCH, 2) is None
        assert run.critiques(1, BATCH, 2) is None
    finally:
        run.close()


def test_a_file_written_again_has_the_new_checksum(settings: Recipe) -> None:
    for text in ("one", "two"):
        run = RunFolder(settings)
        run.save_critiques(1, [replace(result(name), critic=text) for name in IDS])
        run.close()
    log = settings.folder / "checksums.jsonl"
    log.write_text(log.read_text() + '{"file": "rollouts/st')  # killed while it wrote
    run = RunFolder(settings)
    assert [answer.critic for answer in run.critiques(1, BATCH, 2) or ()] == ["two"] * 6
    run.close()


def test_an_evaluation_comes_back_as_it_was(run: RunFolder) -> None:
    rollouts = [rollout(0), rollout(1)]
    evaluation = score(rollouts, n=2, resamples=10, seed=0, step=4)
    assert run.evaluation(4) is None
    run.save_evaluation(evaluation, rollouts)
    assert run.evaluation(4) == evaluation
    file = run.folder / "evaluations" / "step-000004.json"
    file.with_suffix(".jsonl").stat()
    file.rename(file.with_name("step-000005.json"))
    with pytest.raises(StepalignError, match=r"step-000005\.json: an evaluation of step 4"):
        run.evaluation(5)
    file.write_text(to_json(evaluation).replace("0.0", "0.5", 1) + "\n")
    with pytest.raises(StepalignError, match=r"evaluations/step-000004\.json: damaged"):
        run.evaluation(4)


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
    run.drop_metrics_after(0)
    assert not file.read_text()


@pytest.mark.parametrize("line", ["[]", "{}", '{"step": null}', '{"step": "2"}', "not JSON", "3", ""])
@pytest.mark.parametrize("name", ["metrics.jsonl", "timeline.jsonl"])
def test_a_damaged_line_that_no_kill_leaves_is_named(name: str, line: str, run: RunFolder) -> None:
    (run.folder / name).write_text('{"step": 1}\n' + line + '\n{"step": 3}\n')
    with pytest.raises(StepalignError, match=rf"{name}, line 2: not a step's: .*; delete this line"):
        run.drop_metrics_after(3)


def test_a_damaged_rollout_file_is_an_error_that_names_the_line(run: RunFolder) -> None:
    file: Path = run.folder / "rollouts" / "step-000001.jsonl"
    file.parent.mkdir()
    file.write_text(to_json(of_step(IDS[0])) + '\n{"id": "r1"}\n')  # of an earlier release, without a checksum
    with pytest.raises(StepalignError, match=r"step-000001\.jsonl, line 2: not a Rollout"):
        run.rollouts(1, BATCH, 2)


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
