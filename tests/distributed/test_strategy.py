"""Runs in two processes (gloo) compared with the same run in one process.

Torchrun starts those that are slow; the others are forked, with what torchrun puts into the environment.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.distributed.fsdp import FSDPModule

import processes
from stepalign import config, models
from stepalign.config import Recipe, registry
from stepalign.distributed import strategy as strategies
from stepalign.distributed.process import World, init_world
from stepalign.distributed.strategy import FSDP2, DataParallel, ParallelStrategy, build_strategy
from stepalign.errors import StepalignError
from stepalign.evaluation.metrics import CreditMeasures
from stepalign.io import read_json
from stepalign.lab.running import settings_of
from stepalign.launch import train as train_in_process
from tests.distributed import launched

MakeRecipe = Callable[..., Recipe]
RUNS = Path(__file__).with_name("launched.py")


def torchrun(processes: int) -> tuple[str, ...]:
    return ("torch.distributed.run", "--standalone", f"--nproc-per-node={processes}")


def start(launcher: Sequence[str], *command: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", *launcher, *command],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def launch(launcher: Sequence[str], *command: str) -> subprocess.CompletedProcess[str]:
    process = start(launcher, *command)
    try:
        out, said = process.communicate(timeout=300)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    return subprocess.CompletedProcess(process.args, process.returncode, out, said)


def train(settings: Recipe, processes: int, folder: Path) -> Path:
    """A whole run by the command line."""
    file = folder / f"{settings.name}.toml"
    file.write_text(config.dump(settings))
    done = launch(torchrun(processes), "-m", "stepalign.cli", "train", str(file))
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    if settings.distributed.strategy == "zero2":  # DeepSpeed logs there
        lines = [line for line in lines if line.endswith(".html")]
    assert lines == [str(settings.folder / "report.html")], "one process speaks"
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
    assert [path.name for path in sorted(folder.glob("critiques/*"))] == [
        path.name for path in sorted(wanted.glob("critiques/*"))
    ]
    for mine, theirs in zip(metrics(folder), metrics(wanted), strict=True):
        assert mine.keys() == theirs.keys()
        for name in mine.keys() - {"seconds"}:
            counted = isinstance(theirs[name], dict)
            assert mine[name] == (theirs[name] if counted else pytest.approx(theirs[name], rel=1e-4, abs=1e-8)), name
    for checkpoint in sorted((wanted / "checkpoints").iterdir()):
        for path in checkpoint.glob("*.safetensors"):
            weights = load_file(folder / "checkpoints" / checkpoint.name / path.name)
            for key, tensor in load_file(path).items():
                if key.startswith("ema.") and "lora_" in key:
                    continue  # the factors of an average are unique up to a rotation
                torch.testing.assert_close(weights[key], tensor, rtol=1e-4, atol=1e-5)


# ── an update ─────────────────────────────────────────────────────────────────────────────────────────────────


SLOW = pytest.mark.slow
NO_DEEPSPEED = pytest.mark.skipif(find_spec("deepspeed") is None, reason="DeepSpeed is not installed")
ZERO = pytest.param("distributed.strategy=zero2", marks=[NO_DEEPSPEED, SLOW])
ZERO_OFFLOAD = pytest.param("distributed={ strategy = 'zero2', offload_optimizer = true }", marks=[NO_DEEPSPEED, SLOW])


@pytest.mark.parametrize(
    "engine",
    [
        pytest.param("distributed.strategy=data_parallel", marks=SLOW),
        "distributed.strategy=fsdp2",
        ZERO,
        ZERO_OFFLOAD,
    ],
)
@pytest.mark.parametrize("objective", ["kind='distillation'", pytest.param("kind='grpo', kl_coef=0.3", marks=SLOW)])
def test_an_update_in_two_processes_is_that_of_one(
    objective: str, engine: str, make_recipe: MakeRecipe, tmp_path: Path
) -> None:
    settings = make_recipe(
        engine,
        f"algorithm={{ {objective} }}",
        "optimizer.max_grad_norm=0.05",
        "training.max_tokens_per_micro_batch=40",  # the number of the teacher's passes differs
    )
    processes.launch(2, tmp_path, launched.compare_updates, settings, tmp_path / "updates.json")
    updates = json.loads((tmp_path / "updates.json").read_text())
    assert len(updates) == 12, "three sets of lessons, two normalizations, one and three lessons a micro-batch"
    for case, found in updates.items():
        assert found["moved"] > 1e-3, case
        assert found["difference"] < 1e-5, case
        assert found["metrics"] == pytest.approx(found["metrics of one"], rel=1e-5), case
        assert found["processes differ by"] == 0, case


# ── whole runs ────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_run_in_two_processes_is_that_of_one(finished_run: Recipe, make_recipe: MakeRecipe, tmp_path: Path) -> None:
    settings = make_recipe("distributed.num_processes=2", "probe.num_rollouts=3")
    main, other = processes.launch(2, tmp_path, train_in_process, settings)
    assert "2 processes, data_parallel" in main
    assert not other, "one process speaks"
    folder = settings.folder
    same_run(folder, finished_run.folder)
    assert [path.name for path in sorted((folder / "probe").glob("step-*"))] == [
        f"step-00000{step}.json" for step in (0, 2, 4)
    ]
    assert json.loads((folder / "manifest.json").read_text())["problems"] == {
        "train": 9,
        "evaluation": 3,
        "dropped": {},
    }


@SLOW
@pytest.mark.parametrize("engine", ["distributed.num_processes=2", "distributed.strategy=fsdp2", ZERO, ZERO_OFFLOAD])
def test_a_launched_run_is_that_of_one_process(
    engine: str, finished_run: Recipe, make_recipe: MakeRecipe, tmp_path: Path
) -> None:
    folder = train(make_recipe(engine), 2, tmp_path)
    same_run(folder, finished_run.folder)


@SLOW
@pytest.mark.parametrize("engine", ["data_parallel", "fsdp2"])
def test_grpo_in_two_processes_is_that_of_one(engine: str, tmp_path: Path) -> None:
    """With the lab's solver, whose groups hold right and wrong answers: without them GRPO has nothing to learn."""
    overrides = [
        "training.max_steps=2",
        "training.rollouts_per_step=16",
        "training.micro_batch_size=4",
        "algorithm.num_iterations=2",
    ]
    overrides += ["evaluation.num_samples=1", "evaluation.num_bootstrap=50", "problems.evaluation.count=8"]
    settings = settings_of("grpo", 0, tmp_path, overrides).model_copy(update={"probe": None})
    wanted = train(settings, 1, tmp_path)
    assert all(step["clipped"] > 0 and step["outcomes"]["trained"] > 0 for step in metrics(wanted))
    two = config.DistributedConfig(num_processes=2, strategy=engine)
    same_run(train(settings.model_copy(update={"name": "two", "distributed": two}), 2, tmp_path), wanted)


@SLOW
@pytest.mark.parametrize("engine", ["data_parallel", "fsdp2", pytest.param("zero2", marks=NO_DEEPSPEED)])
def test_a_probe_in_two_processes_is_that_of_one(engine: str, make_recipe: MakeRecipe, tmp_path: Path) -> None:
    """The first process measures while the other waits; its passes need no other process."""
    probe = ("probe.num_rollouts=4", 'probe.contexts=["stepalign", "refsol"]', "training.max_steps=2")
    wanted = train(make_recipe(*probe), 1, tmp_path)
    folder = train(make_recipe(*probe, "name=two", f"distributed.strategy={engine}"), 2, tmp_path)
    same_run(folder, wanted)
    for step in (0, 2):
        mine, theirs = (read_json(run / "probe" / f"step-{step:06d}.json", CreditMeasures) for run in (folder, wanted))
        assert mine.contexts.keys() == theirs.contexts.keys() == {"stepalign", "refsol"}
        for context, intervals in theirs.contexts.items():
            for name, interval in intervals.items():
                assert mine.contexts[context][name].value == pytest.approx(interval.value, abs=1e-4)


@SLOW
def test_the_quickstart_runs_in_two_processes(tmp_path: Path) -> None:
    """As torchrun starts it, with nothing but a shorter end: its probe and its critic as they are."""
    overrides = ["training.max_steps=2", "evaluation.num_samples=1", f"output_dir={tmp_path}"]
    done = launch(torchrun(2), "-m", "stepalign", "train", "quickstart", *overrides)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [str(tmp_path / "quickstart" / "report.html")]
    assert len(list((tmp_path / "quickstart" / "probe").glob("step-*.json"))) == 2


OFF_POLICY = [
    "{ lmbda = 0.5, num_iterations = 2, importance_sampling_level = 'sequence', support = 'topk-student', top_k = 8 }",
    "{ support = 'sampled', beta = 1.0, discount = 0.5, num_iterations = 2, importance_sampling_level = 'token' }",
    "{ kind = 'sft', sequences = 'rollouts', rationalize = true }",
    "{ kind = 'seq-kd' }",
]


@SLOW
@pytest.mark.parametrize("engine", ["data_parallel", "fsdp2"])
@pytest.mark.parametrize("algorithm", OFF_POLICY)
def test_off_policy_parts_in_two_processes_are_those_of_one(algorithm: str, engine: str, tmp_path: Path) -> None:
    overrides = [
        f"algorithm={algorithm}",
        "context.template=lab/refsol",
        "training={ max_steps = 2, rollouts_per_step = 8, num_generations = 2, micro_batch_size = 2, eval_steps = 0 }",
    ]
    overrides += ["evaluation.num_samples=1", "evaluation.num_bootstrap=50", "problems.evaluation.count=2"]
    settings = settings_of("refsol", 3, tmp_path, overrides).model_copy(update={"probe": None})
    wanted = train(settings, 1, tmp_path)
    assert all(step["outcomes"]["trained"] for step in metrics(wanted))
    two = config.DistributedConfig(num_processes=2, strategy=engine)
    same_run(train(settings.model_copy(update={"name": "two", "distributed": two}), 2, tmp_path), wanted)


ENGINES = ["auto", "fsdp2", pytest.param("zero2", marks=NO_DEEPSPEED)]


@SLOW
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("first", [1, 2], ids=["from one process", "from two processes"])
def test_a_run_goes_on_with_another_number_of_processes(
    first: int, engine: str, finished_run: Recipe, make_recipe: MakeRecipe, tmp_path: Path
) -> None:
    begun, gone_on = ("auto", engine) if first == 1 else (engine, "auto")
    train(make_recipe("training.max_steps=2", f"distributed.strategy={begun}"), first, tmp_path)
    folder = train(make_recipe(f"distributed.strategy={gone_on}"), 3 - first, tmp_path)
    whole = finished_run.folder / "checkpoints" / "step-000004" / "adapter_model.safetensors"
    weights = load_file(folder / "checkpoints" / "step-000004" / "adapter_model.safetensors")
    for key, tensor in load_file(whole).items():
        torch.testing.assert_close(weights[key], tensor, rtol=1e-4, atol=1e-5)


ACCELERATE = ("accelerate.commands.launch", "--num_processes=2", "--num_machines=1", "--dynamo_backend=no")
CONFIGURATION = str(Path(__file__).parents[2] / "recipes" / "accelerate" / "2-cpu-processes.yaml")


@SLOW
@pytest.mark.parametrize(
    ("flags", "engine"),
    [
        (["--config_file", CONFIGURATION], "data_parallel"),
        (["--mixed_precision=no", "--use_fsdp", "--fsdp_version=2"], "fsdp2"),
        pytest.param(["--mixed_precision=no", "--use_deepspeed", "--zero_stage=2"], "zero2", marks=NO_DEEPSPEED),
    ],
)
def test_accelerate_launches_one_world(flags: list[str], engine: str, make_recipe: MakeRecipe, tmp_path: Path) -> None:
    settings = make_recipe("training.max_steps=1")
    file = tmp_path / "tiny.toml"
    file.write_text(config.dump(settings))
    done = launch((*ACCELERATE, *flags), "-m", "stepalign.cli", "train", str(file))
    assert done.returncode == 0, done.stderr
    assert f"2 processes, {engine}" in done.stderr
    assert done.stdout.splitlines()[-1] == str(settings.folder / "report.html")


@SLOW
def test_an_interrupted_run_ends_with_a_word_and_goes_on(
    finished_run: Recipe, make_recipe: MakeRecipe, tmp_path: Path
) -> None:
    settings = make_recipe("distributed.num_processes=2")
    file = tmp_path / f"{settings.name}.toml"
    file.write_text(config.dump(settings))
    process = start(torchrun(2), "-m", "stepalign.cli", "train", str(file))
    third = settings.folder / "rollouts" / "step-000003.jsonl"
    while process.poll() is None and not third.exists():
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)  # what a terminal does on Ctrl-C
    _, said = process.communicate(timeout=60)
    assert process.returncode != 0
    assert said.count(f"stopped; the same command goes on from {settings.folder}") == 1
    assert "KeyboardInterrupt" not in said, "the launcher's traceback is enough"
    with pytest.raises(ProcessLookupError):  # nobody is left
        os.killpg(process.pid, 0)
    assert sorted(path.name for path in (settings.folder / "checkpoints").iterdir()) == ["step-000002"]
    same_run(train(settings, 2, tmp_path), finished_run.folder)


# ── what must not pass in silence ─────────────────────────────────────────────────────────────────────────────


def test_fewer_processes_than_the_recipe_says_are_an_error() -> None:
    with pytest.raises(
        StepalignError, match=r"distributed.num_processes = 4, but this process is in a world of 1; .*4`"
    ):
        init_world(4)


def test_a_world_smaller_than_the_launcher_says_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(StepalignError, match="the launcher started 2 processes, but this one is in a world of 1"):
        init_world()


def test_a_launcher_that_starts_one_process_in_place_of_several_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_CPU", "True")
    with pytest.raises(StepalignError, match=r"accelerate launched one process: .* distributed.num_processes = 1 if"):
        init_world()
    assert init_world(1).size == 1


def test_the_engine_is_the_recipes_or_the_launchers(monkeypatch: pytest.MonkeyPatch) -> None:
    two, cpu = World(0, 2), torch.device("cpu")
    assert build_strategy(config.DistributedConfig(), two, cpu).name == "data_parallel"
    assert build_strategy(config.DistributedConfig(strategy="fsdp2"), two, cpu).name == "fsdp2"
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert build_strategy(config.DistributedConfig(), two, cpu).name == "fsdp2"
    with pytest.raises(StepalignError, match="'data_parallel', but the launcher's configuration asks for fsdp2"):
        build_strategy(config.DistributedConfig(strategy="data_parallel"), two, cpu)
    with pytest.raises(StepalignError, match="'fsdp2' needs several processes"):
        build_strategy(config.DistributedConfig(), World(), cpu)
    monkeypatch.setenv("FSDP_VERSION", "1")
    with pytest.raises(StepalignError, match="only 2 is supported"):
        build_strategy(config.DistributedConfig(), two, cpu)


@pytest.mark.slow
def test_an_error_of_the_first_process_ends_all_and_is_said_once(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    settings = make_recipe("sampling.max_new_tokens=1000")
    file = tmp_path / "whole.toml"
    file.write_text(config.dump(settings))
    other = make_recipe("training.num_generations=4")
    other.folder.mkdir(parents=True)
    (other.folder / "recipe.toml").write_text(config.dump(other))
    (other.folder / "manifest.json").write_text("{}")
    done = launch(torchrun(2), "-m", "stepalign.cli", "train", str(file))
    assert done.returncode != 0
    assert done.stderr.count("holds a run of another recipe") == 1


@pytest.mark.slow
def test_a_process_that_dies_ends_the_others(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    file = tmp_path / "whole.toml"
    file.write_text(config.dump(make_recipe()))
    done = launch(torchrun(2), str(RUNS), str(file), "die")
    assert done.returncode != 0


# ── micro-batches ─────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("count", range(8))
def test_micro_batches_are_dealt_out_once_and_in_lockstep_equally_often(count: int) -> None:
    micro = list(range(count))
    for strategy in (DataParallel, FSDP2):
        dealt = [list(strategy(World(rank, 3)).local_micro_batches(micro)) for rank in range(3)]
        assert sorted(each for passes in dealt for each, counts in passes if counts) == micro
    assert {len(passes) for passes in dealt} == {-(-count // 3)}


def test_each_registered_strategy_is_a_parallel_strategy_and_no_other_strategy() -> None:
    kinds = {name: registry.implementation("strategy", name) for name in registry.FAMILIES["strategy"].tables}
    assert kinds.keys() >= {"data_parallel", "fsdp2", "zero2"}
    for name, kind in kinds.items():
        assert kind.name == name
        assert [other for other in kinds.values() if issubclass(kind, other)] == [kind]
        assert issubclass(kind, ParallelStrategy)


# ── the memory of the device ──────────────────────────────────────────────────────────────────────────────────


def test_fsdp2_puts_no_more_of_the_base_on_the_device_than_shards_and_one_layer(
    tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`meta` stands for the GPU; the stand-in moves and shards a module's own weights as `fully_shard` does."""
    device = torch.device("meta")
    strategy = FSDP2(World(0, 4), device)
    model, lora = config.ModelConfig(name_or_path=str(tiny_llama)), config.LoraConfig(r=2)
    policy = models.load_policy(model, lora, 0, device, load_device=strategy.load_device)
    base = {parameter for name, parameter in policy.named_parameters() if "lora_" not in name}
    in_layer = sum(p.numel() for p in policy.base.get_decoder().layers[0].parameters() if p in base)
    whole: list[int] = []

    def on_device() -> int:
        return sum(p.numel() for p in policy.parameters() if p in base and p.device == device)

    def fully_shard(module: torch.nn.Module, *, mesh: object, ignored_params: set[torch.nn.Parameter]) -> None:
        whole.append(on_device())
        own = {p for p in module.parameters() if p in base and p not in ignored_params}
        for child in module.modules():
            for name, parameter in child.named_parameters(recurse=False):
                if parameter in own:
                    child._parameters[name] = torch.nn.Parameter(parameter[: len(parameter) // 4].to(device), False)
        whole.append(on_device() + (in_layer if own else 0))
        module.__class__ = type("Sharded", (FSDPModule, type(module)), {"_apply": torch.nn.Module._apply})

    monkeypatch.setattr(strategies, "fully_shard", fully_shard)
    monkeypatch.setattr(strategies, "init_device_mesh", lambda *_: None)
    strategy.prepare(policy, torch.optim.AdamW(policy.trainable()))
    assert max(whole) == in_layer
    assert all(parameter.device == device for parameter in policy.parameters())


def test_moments_of_a_checkpoint_follow_the_adapter_to_the_device() -> None:
    """What `FSDP2.prepare` relies on: an optimizer that loads its own state moves it to its parameters."""
    parameter = torch.nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.AdamW([parameter])
    optimizer.state[parameter] = {"step": torch.tensor(1.0), "exp_avg": torch.ones(2), "exp_avg_sq": torch.ones(2)}
    parameter.data = parameter.data.double()
    optimizer.load_state_dict(optimizer.state_dict())
    assert optimizer.state[parameter]["exp_avg"].dtype == torch.float64


@pytest.mark.usefixtures("no_figures")
def test_the_trainer_loads_the_base_on_the_strategys_device(
    make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads = []
    load_base = models.load_base

    def recorded(*arguments: Any, load_device: torch.device | None = None) -> Any:
        loads.append(load_device)
        return load_base(*arguments, load_device=load_device)

    monkeypatch.setattr(models, "load_base", recorded)
    monkeypatch.setattr(DataParallel, "load_device", torch.device("cpu", 0))
    train_in_process(make_recipe("training.max_steps=1"))
    assert loads == [torch.device("cpu", 0)]


def test_auto_precision_is_that_of_the_device_that_runs_not_of_the_one_that_loads(
    tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    model = config.ModelConfig(name_or_path=str(tiny_llama))
    base = models.load_base(model, torch.device("cuda"), load_device=torch.device("cpu"))
    assert (base.dtype, base.device.type) == (torch.bfloat16, "cpu")
