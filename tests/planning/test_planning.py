"""Estimates against what tiny real models have, keep and do."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from stepalign import config, models, planning
from stepalign.algorithms.base import StepExamples
from stepalign.algorithms.distillation_loss import DistillationExample, DistillationLoss
from stepalign.collate import collate
from stepalign.config import Recipe
from stepalign.console import Console
from stepalign.distributed.strategy import DataParallel
from stepalign.errors import StepalignError
from stepalign.launch import train
from stepalign.planning import estimate
from stepalign.planning.estimate import Lengths
from stepalign.planning.hardware import GPUS, Gpu
from stepalign.planning.lengths import lengths
from stepalign.planning.shape import shape
from stepalign.policy import Policy
from stepalign.trainer.accumulation import adamw, local_passes, update
from stepalign.views import View

MakeRecipe = Callable[..., Recipe]
CPU = torch.device("cpu")


@pytest.fixture(params=["tiny_llama", "tiny_qwen3"])
def folder(request: pytest.FixtureRequest) -> Path:
    path: Path = request.getfixturevalue(request.param)
    return path


def loaded(folder: Path, settings: Recipe) -> Policy:
    return models.load_policy(config.ModelConfig(name_or_path=str(folder)), settings.lora, 0, CPU)


def test_parameters_are_counted_exactly(folder: Path, make_recipe: MakeRecipe) -> None:
    settings = make_recipe()
    found = shape(config.ModelConfig(name_or_path=str(folder)), settings.lora, gpu=False)
    policy = loaded(folder, settings)
    adapter = sum(parameter.numel() for parameter in policy.trainable())
    assert found.adapter == adapter
    assert found.parameters == sum(parameter.numel() for parameter in policy.parameters()) - adapter


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated:FutureWarning")
def test_activations_are_those_that_autograd_keeps(
    dtype: str, checkpointing: bool, tiny_llama: Path, make_recipe: MakeRecipe
) -> None:
    settings = make_recipe(f"model.dtype={dtype}", f"training.gradient_checkpointing={str(checkpointing).lower()}")
    policy = loaded_as(tiny_llama, dtype, settings)
    if checkpointing:
        policy.base.gradient_checkpointing_enable({"use_reentrant": False})
    ids = tuple(range(5, 205))
    batch = collate([View(prompt_ids=ids[:1], completion_ids=ids[1:], loss_start=0, loss_stop=199)])
    weights = {tensor.untyped_storage().data_ptr() for tensor in [*policy.parameters(), *policy.buffers()]}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        policy.train()(batch)
    measured = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    found = shape(settings.model, settings.lora, gpu=False)
    estimated = 200.0 * found.layers * found.layer_activation_bytes
    if checkpointing:
        # Each layer's input; a tiny model shows the last norm's and the rotary angles as well.
        estimated = 200.0 * found.hidden * (found.layers * found.weight_bytes + 4)
    assert estimated == pytest.approx(measured, rel=0.25)


def loaded_as(folder: Path, dtype: str, settings: Recipe) -> Policy:
    return models.load_policy(
        config.ModelConfig.model_validate({"name_or_path": str(folder), "dtype": dtype}), settings.lora, 0, CPU
    )


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated:FutureWarning")
def test_operations_are_those_of_an_update(checkpointing: bool, folder: Path, make_recipe: MakeRecipe) -> None:
    settings = make_recipe(
        f"model.name_or_path={folder}",
        f"training.gradient_checkpointing={str(checkpointing).lower()}",
        "lora.r=1",  # the adapters' own products are left out of the estimate
    )
    policy = loaded(folder, settings)
    if checkpointing:
        policy.base.gradient_checkpointing_enable({"use_reentrant": False})
    # Short, since the counter does not know the CPU's attention.
    written = tuple(range(5, 17))
    example = DistillationExample(
        rollout_id="r",
        student=View(prompt_ids=(1,) * 4, completion_ids=written, loss_start=0, loss_stop=12),
        teacher=View(prompt_ids=(1,) * 8, completion_ids=written, loss_start=0, loss_stop=12),
    )
    with FlopCounterMode(display=False) as counter, Console(quiet=True) as console:
        examples, strategy = [example] * settings.training.rollouts_per_step, DataParallel()
        update(
            DistillationLoss(config.DistillationConfig()),
            policy,
            strategy,
            adamw(policy, settings.optimizer),
            StepExamples(examples=examples),
            local_passes(strategy, examples, settings.training.micro_batch_size, None),
            console,
            loss_agg_mode="token-mean",
            max_grad_norm=0.1,
        )
    given = Lengths(prompt=4, completion=12, teacher_prompt=8, critic_prompt=0, critique=0, evaluation=12)
    sizes = shape(settings.model, settings.lora, gpu=False)
    found = estimate.plan(settings, sizes, given, Gpu(GPUS["h100"], sizes))
    estimated = found.stages["teacher"].flops + found.stages["student"].flops
    assert estimated == pytest.approx(counter.get_total_flops(), rel=0.25)


def planned(settings: Recipe, given: Lengths, problems: int) -> estimate.Plan:
    sizes = shape(settings.model, settings.lora, gpu=False)
    return estimate.plan(settings, sizes, given, Gpu(GPUS["h100"], sizes), evaluation_problems=problems)


def assert_tokens_are_the_runs(settings: Recipe) -> None:
    found = planned(settings, *lengths(settings, like=settings.folder))
    steps = [json.loads(line) for line in (settings.folder / "metrics.jsonl").read_text().splitlines()]
    for stage, name in (("sample", "completion_tokens"), ("teacher", "teacher_tokens"), ("student", "student_tokens")):
        measured = sum(step.get(name, 0) for step in steps) / len(steps)
        assert found.stages[stage].tokens == pytest.approx(measured, rel=0.02), stage


def test_tokens_are_those_of_the_run_whose_lengths_are_taken(finished_run: Recipe) -> None:
    assert_tokens_are_the_runs(finished_run)
    given, problems = lengths(finished_run, like=finished_run.folder)
    found = planned(finished_run, given, problems)
    assert problems == 3
    assert (found.steps, found.evaluations) == (4, 3), "steps 0, 3 and 4"
    assert (given.reached, given.taught) == (pytest.approx(1, abs=0.1), 1)
    assert given.evaluation <= 16, "the cap of its evaluations, not of its rollouts"


def test_a_run_reads_no_further_than_its_horizon(make_recipe: MakeRecipe) -> None:
    settings = make_recipe("algorithm.loss_span=until_first_error", "training.max_steps=2", "training.eval_steps=0")
    train(settings)
    given, _ = lengths(settings, like=settings.folder)
    assert given.reached < 1
    assert_tokens_are_the_runs(settings)


def test_more_devices_take_less_time_and_sharding_less_memory(make_recipe: MakeRecipe) -> None:
    given = Lengths(prompt=100, completion=1000, teacher_prompt=1500, critic_prompt=0, critique=0, evaluation=2000)

    def of(*overrides: str, devices: int) -> estimate.Plan:
        settings = make_recipe("training.rollouts_per_step=32", *overrides)
        sizes = shape(settings.model, settings.lora, gpu=True)
        return estimate.plan(settings, sizes, given, Gpu(GPUS["h100"], sizes), devices=devices)

    one, four = of(devices=1), of(devices=4)
    assert four.stages["student"].seconds == pytest.approx(one.stages["student"].seconds / 4)
    assert of("distributed.strategy=fsdp2", devices=4).memory["weights"] < four.memory["weights"]
    assert of("distributed.strategy=zero2", devices=4).memory["optimizer"] == four.memory["optimizer"] / 4


def test_the_critic_keeps_up_when_its_answers_come_as_fast_as_rollouts(make_recipe: MakeRecipe) -> None:
    settings = make_recipe('critic={ kind = "openai", base_url = "http://c", model = "m" }')
    given = Lengths(prompt=9, completion=9, teacher_prompt=9, critic_prompt=9, critique=600, evaluation=9)
    sizes = shape(settings.model, settings.lora, gpu=True)
    found = estimate.plan(settings, sizes, given, Gpu(GPUS["h100"], sizes))
    assert found.critic_concurrency == 4, "an answer takes longer than sampling: all at once"


def test_unknown_hardware_is_an_error(make_recipe: MakeRecipe) -> None:
    with pytest.raises(StepalignError, match="hardware 'abacus': allowed are this, h200, h100"):
        planning.write(make_recipe(), hardware="abacus", devices=1, like=None, completion=None, price=None)


def test_the_solver_that_ships_can_be_planned_for() -> None:
    found = shape(config.ModelConfig(name_or_path="lab"), config.LoraConfig(), gpu=False)
    assert 0.8e6 < found.parameters < 1e6
