"""Runs in two processes (gloo, started by torchrun) against the same run in one."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from stepalign import recipe
from stepalign.errors import StepalignError
from stepalign.recipe import Recipe
from stepalign.training import distribution
from stepalign.training.distribution import Replicated, Sharded
from stepalign.world import World, join

MakeRecipe = Callable[..., Recipe]
RUNS = Path(__file__).with_name("distributed.py")


def start(processes: int, *command: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"),
            *command,
        ],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def launch(processes: int, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    process = start(processes, *command, **environment)
    try:
        out, said = process.communicate(timeout=120)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    return subprocess.CompletedProcess(process.args, process.returncode, out, said)


def train(settings: Recipe, processes: int, folder: Path) -> Path:
    """A whole run by the command line."""
    file = folder / f"{settings.name}.toml"
    file.write_text(recipe.dump(settings))
    done = launch(processes, "-m", "stepalign.cli", "train", str(file))
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [str(settings.folder / "report.html")], "one process speaks"
    return settings.folder


def metrics(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def drawn(folder: Path) -> dict[str, list[int]]:
    files = sorted([*(folder / "rollouts").glob("*.jsonl"), *(folder / "evaluations").glob("*.jsonl")])
    records = [json.loads(line) for path in files for line in path.read_text().splitlines()]
    return {record["id"]: record["completion_ids"] for record in records}


def same_run(folder: Path, wanted: Path) -> None:
    """The same rollouts in the same order, critiques, metrics and adapter."""
    assert list(drawn(folder)) == list(drawn(wanted))
    assert drawn(folder) == drawn(wanted)
    assert [path.name for path in sorted((folder / "critiques").iterdir())] == [
        path.name for path in sorted((wanted / "critiques").iterdir())
    ]
    for mine, theirs in zip(metrics(folder), metrics(wanted), strict=True):
        assert mine.keys() == theirs.keys()
        for name in mine.keys() - {"seconds"}:
            counted = isinstance(theirs[name], dict)
            assert mine[name] == (theirs[name] if counted else pytest.approx(theirs[name], rel=1e-4)), name
    for checkpoint in sorted((wanted / "checkpoints").iterdir()):
        for name in ("adapter_model", "optimizer"):
            weights = load_file(folder / "checkpoints" / checkpoint.name / f"{name}.safetensors")
            for key, tensor in load_file(checkpoint / f"{name}.safetensors").items():
                torch.testing.assert_close(weights[key], tensor, rtol=1e-4, atol=1e-5)


# ── an update ─────────────────────────────────────────────────────────────────────────────────────────────────


NO_DEEPSPEED = pytest.mark.skipif(find_spec("deepspeed") is None, reason="DeepSpeed is not installed")
ZERO = pytest.param("distribution.engine=zero2", marks=[NO_DEEPSPEED, pytest.mark.slow])
ZERO_OFFLOAD = pytest.param("distribution={ engine = 'zero2', offload = true }", marks=[NO_DEEPSPEED, pytest.mark.slow])


@pytest.mark.parametrize("engine", ["distribution.engine=replicated", "distribution.engine=fsdp2", ZERO, ZERO_OFFLOAD])
def test_an_update_in_two_processes_is_that_of_one(engine: str, make_recipe: MakeRecipe, tmp_path: Path) -> None:
    settings = make_recipe(engine, "optimizer.max_grad_norm=0.05")
    file = tmp_path / "whole.toml"
    file.write_text(recipe.dump(settings))
    done = launch(2, str(RUNS), str(file), str(tmp_path / "updates.json"))
    assert done.returncode == 0, done.stderr
    updates = json.loads((tmp_path / "updates.json").read_text())
    assert len(updates) == 12, "three sets of lessons, two normalizations, one and three lessons a micro-batch"
    for case, found in updates.items():
        assert found["moved"] > 1e-3, case
        assert found["difference"] < 1e-5, case
        assert found["metrics"] == pytest.approx(found["metrics of one"], rel=1e-5), case
        assert found["processes differ by"] == 0, case


# ── whole runs ────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_run_in_two_processes_is_that_of_one(finished_run: Recipe, make_recipe: MakeRecipe, tmp_path: Path) -> None:
    folder = train(make_recipe("distribution.processes=2"), 2, tmp_path)
    same_run(folder, finished_run.folder)
    assert json.loads((folder / "manifest.json").read_text())["problems"] == {
        "train": 9,
        "evaluation": 3,
        "dropped": {},
    }


@pytest.mark.slow
def test_a_sharded_run_is_that_of_one_process(finished_run: Recipe, make_recipe: MakeRecipe, tmp_path: Path) -> None:
    folder = train(make_recipe("distribution.engine=fsdp2"), 2, tmp_path)
    same_run(folder, finished_run.folder)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("first", "then"), [((2, "fsdp2"), (1, "auto")), ((1, "auto"), (2, "fsdp2")), ((2, "auto"), (1, "auto"))]
)
def test_a_run_goes_on_with_another_number_of_processes(
    first: tuple[int, str], then: tuple[int, str], finished_run: Recipe, make_recipe: MakeRecipe, tmp_path: Path
) -> None:
    train(make_recipe("training.steps=2", f"distribution.engine={first[1]}"), first[0], tmp_path)
    folder = train(make_recipe(f"distribution.engine={then[1]}"), then[0], tmp_path)
    whole = finished_run.folder / "checkpoints" / "step-000004" / "adapter_model.safetensors"
    weights = load_file(folder / "checkpoints" / "step-000004" / "adapter_model.safetensors")
    for key, tensor in load_file(whole).items():
        torch.testing.assert_close(weights[key], tensor, rtol=1e-4, atol=1e-5)


# ── what must not pass in silence ─────────────────────────────────────────────────────────────────────────────


def test_fewer_processes_than_the_recipe_says_are_an_error() -> None:
    with pytest.raises(StepalignError, match=r"distribution.processes = 4, but this process is in a world of 1; .*4`"):
        join(recipe.Distribution(processes=4))


def test_a_world_smaller_than_the_launcher_says_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(StepalignError, match="the launcher started 2 processes, but this one is in a world of 1"):
        join(recipe.Distribution())


def test_the_engine_is_the_recipes_or_the_launchers(monkeypatch: pytest.MonkeyPatch) -> None:
    two, cpu = World(0, 2), torch.device("cpu")
    assert distribution.make(recipe.Distribution(), two, cpu).name == "replicated"
    assert distribution.make(recipe.Distribution(engine="fsdp2"), two, cpu).name == "fsdp2"
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert distribution.make(recipe.Distribution(), two, cpu).name == "fsdp2"
    with pytest.raises(StepalignError, match="'replicated', but the launcher's configuration asks for fsdp2"):
        distribution.make(recipe.Distribution(engine="replicated"), two, cpu)
    with pytest.raises(StepalignError, match="'fsdp2' needs several processes"):
        distribution.make(recipe.Distribution(), World(), cpu)
    monkeypatch.setenv("FSDP_VERSION", "1")
    with pytest.raises(StepalignError, match="only 2 is supported"):
        distribution.make(recipe.Distribution(), two, cpu)


def test_an_error_of_the_first_process_ends_all_and_is_said_once(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    settings = make_recipe("sampling.max_new_tokens=1000")
    file = tmp_path / "whole.toml"
    file.write_text(recipe.dump(settings))
    other = make_recipe("training.group=4")
    other.folder.mkdir(parents=True)
    (other.folder / "recipe.toml").write_text(recipe.dump(other))
    (other.folder / "manifest.json").write_text("{}")
    done = launch(2, "-m", "stepalign.cli", "train", str(file))
    assert done.returncode != 0
    assert done.stderr.count("holds a run of another recipe") == 1


def test_a_process_that_dies_ends_the_others(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    file = tmp_path / "whole.toml"
    file.write_text(recipe.dump(make_recipe()))
    done = launch(2, str(RUNS), str(file), "die")
    assert done.returncode != 0


# ── dealing out ───────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("count", range(8))
def test_micro_batches_are_dealt_out_once_and_sharded_processes_make_equally_many_passes(count: int) -> None:
    micro = list(range(count))
    for engine in (Replicated, Sharded):
        dealt = [list(engine(World(rank, 3)).passes(micro)) for rank in range(3)]
        assert sorted(each for passes in dealt for each, counts in passes if counts) == micro
    assert {len(passes) for passes in dealt} == {-(-count // 3)}
