"""The lab's conditions as recipes, and a small lab from the first run to its page."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from stepalign import config
from stepalign.errors import StepalignError
from stepalign.io import differences
from stepalign.lab import running
from stepalign.lab.running import settings_of
from stepalign.report.comparison import Comparison
from stepalign.report.run import read_run

TINY = [
    "training.max_steps=2",
    "training.rollouts_per_step=8",
    "training.eval_steps=1",
    "evaluation.num_samples=2",
    "evaluation.num_bootstrap=50",
    "problems.evaluation.count=4",
    "probe.num_rollouts=8",
]


@pytest.mark.parametrize(
    ("condition", "keys"),
    [
        ("refsol", {"context.template"}),
        ("quoted", {"context.template"}),
        ("verdicts", {"context.template"}),
        ("shuffled", {"context.shuffled"}),
        ("stepalign-prefix", {"algorithm.loss_span"}),
        ("stepalign-reverse", {"algorithm.beta"}),
        ("refsol-prefix", {"context.template", "algorithm.loss_span"}),
        ("refsol-reverse", {"context.template", "algorithm.beta"}),
    ],
)
def test_a_condition_differs_from_stepalign_in_what_it_is_named_for(condition: str, keys: set[str]) -> None:
    base, other = (settings_of(name, 0, Path("out")).model_dump(mode="json") for name in ("stepalign", condition))
    changed = {key for key, _, _ in differences(base, other)}
    assert changed - {"name", "optimizer.lr"} == keys


def test_every_condition_is_a_recipe_of_the_embedded_solver() -> None:
    for condition in running.conditions():
        settings = settings_of(condition, 3, Path("out"), ["training.max_steps=5"])
        assert (settings.model.name_or_path, settings.seed, settings.training.max_steps) == ("lab", 3, 5)
        assert settings.folder == Path("out") / f"{condition}-3"


def test_every_related_system_of_the_recipes_is_in_the_lab_and_its_teacher_first() -> None:
    recipes = {path.stem for path in (Path(__file__).parents[2] / "recipes" / "related").glob("*.toml")}
    assert running.related()[0] == running.TEACHER
    assert set(running.related()) - {running.TEACHER} == recipes - {"base"}
    assert not set(running.related()) & set(running.DEFAULT)


@pytest.mark.parametrize("name", sorted(set(running.related()) - {running.TEACHER}))
def test_a_related_condition_has_the_method_of_its_recipe(name: str) -> None:
    lab = settings_of(name, 0, Path("out"))
    full = config.load(Path(__file__).parents[2] / "recipes" / "related" / f"{name}.toml")
    assert lab.teacher.kind == full.teacher.kind
    assert lab.training.use_peft == full.training.use_peft
    scaled = {"feedback_template", "importance_sampling_level", "chunk_tokens", "loss_agg_mode"}
    scaled |= {"beta", "clip_mode", "clip_value"} if name == "past" else set()
    assert lab.algorithm.model_dump(exclude=scaled) == full.algorithm.model_dump(exclude=scaled)


def test_the_larger_teacher_of_the_lab_is_trained_in_the_same_folder_under_the_same_overrides() -> None:
    teacher = settings_of("gkd", 3, Path("out"), ["training.max_steps=5"]).teacher
    assert isinstance(teacher, config.ModelTeacherConfig)
    assert teacher.model.name_or_path == "out/trained-teacher-0/checkpoints/step-000005"


def test_the_larger_teacher_is_trained_where_a_condition_reads_it(tmp_path: Path) -> None:
    def first(*conditions: str, overrides: tuple[str, ...] = ()) -> list[str]:
        return [run.name for run in running.plan(conditions, seeds=2, out=tmp_path, overrides=overrides)[0]]

    assert first("refsol", "gkd") == ["trained-teacher-0"]
    assert first("refsol") == []
    assert first("gkd", overrides=("teacher.model.name_or_path=mine",)) == []


def test_an_unknown_condition_is_an_error_that_names_the_others() -> None:
    with pytest.raises(StepalignError, match="no condition 'stepaligned'; allowed: gkd, grpo, kd, "):
        settings_of("stepaligned", 0, Path("out"))


@pytest.mark.slow
def test_a_lab_is_run_compared_and_gone_on_with(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    page = running.run_lab(["stepalign", "grpo"], seeds=2, out=tmp_path, overrides=TINY)
    said = capfd.readouterr().err.splitlines()
    assert [line for line in said if "run " in line and " of 4" in line] == [
        "stepalign-0 run 1 of 4", "grpo-0 run 2 of 4", "stepalign-1 run 3 of 4", "grpo-1 run 4 of 4"
    ]  # fmt: skip
    assert any(line.startswith("grpo-1 step 1: loss ") for line in said)
    folders = {name: [tmp_path / f"{name}-{seed}" for seed in range(2)] for name in ("stepalign", "grpo")}
    assert "Best checkpoint" in page.read_text()
    table = (tmp_path / "comparison.md").read_text()
    assert "| stepalign |" in table
    assert "| refsol |" in table  # the probe looks at every context
    assert "| before | " in table.partition("Attempts at the last evaluation")[2]
    assert "Attempts at the last evaluation" in page.read_text()
    before = (folders["grpo"][1] / "metrics.jsonl").read_bytes()
    running.run_lab(["grpo"], seeds=2, out=tmp_path, overrides=TINY)
    assert (folders["grpo"][1] / "metrics.jsonl").read_bytes() == before
    assert (tmp_path / "comparison-figures" / "evaluation-flops.png").exists()
    comparison = Comparison({condition: [read_run(path) for path in paths] for condition, paths in folders.items()})
    assert {"rollouts", "flops", "seconds"} <= set(comparison.costs)
    for cost in comparison.costs:
        first, second = (comparison.cost("stepalign", step, cost) for step in (1, 2))
        assert 0 <= first <= second
    assert comparison.cost("stepalign", 2, "rollouts") == 16
    assert comparison.panels("flops")[0].curves[0].x[0] == 0


@pytest.mark.slow
def test_a_teacher_is_trained_before_those_that_it_teaches(tmp_path: Path) -> None:
    running.run_lab(["gkd"], out=tmp_path, overrides=[*TINY, "training.save_steps=2"])
    assert (tmp_path / "trained-teacher-0" / "checkpoints" / "step-000002" / "config.json").exists()
    table = (tmp_path / "comparison.md").read_text().partition("Side effects")[2]
    assert "| gkd | " in table


def start_lab(out: Path) -> subprocess.Popen[str]:
    """Start a lab of two runs in a session of its own, and wait until a run has begun."""
    command = [sys.executable, "-m", "stepalign.cli", "lab", "--jobs", "2", "--out", str(out), "seed=0"]
    process = subprocess.Popen(
        [*command, "--condition", "grpo", "--condition", "stepalign"],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    while not list(out.glob("*/manifest.json")):
        assert process.poll() is None
        time.sleep(0.1)
    return process


def alive(session: int) -> list[list[str]]:
    stats = [path.read_text().rpartition(")")[2].split() for path in Path("/proc").glob("[0-9]*/stat") if path.exists()]
    return [fields for fields in stats if int(fields[3]) == session and fields[0] != "Z"]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for orphans in /proc")
@pytest.mark.parametrize("everyone", [True, False], ids=["Ctrl-C", "kill -INT"])
def test_an_interrupted_lab_says_how_to_go_on_and_leaves_no_process(everyone: bool, tmp_path: Path) -> None:
    process = start_lab(tmp_path / "lab")
    if everyone:
        os.killpg(process.pid, signal.SIGINT)
    else:
        os.kill(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert f"stopped; the same command goes on from {tmp_path / 'lab'}" in said
    assert "Traceback" not in said
    end = time.monotonic() + 10  # helpers of a process end a little later than it
    while alive(process.pid) and time.monotonic() < end:
        time.sleep(0.1)
    assert not alive(process.pid)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for orphans in /proc")
def test_the_runs_of_a_killed_lab_end_with_it(tmp_path: Path) -> None:
    process = start_lab(tmp_path / "lab")
    process.kill()
    process.communicate(timeout=60)
    deadline = time.monotonic() + 20
    while alive(process.pid) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not alive(process.pid)
