"""Estimates against what tiny real models have, keep and do."""

import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console as RichConsole
from torch.utils.flop_counter import FlopCounterMode

from stepalign import config, models
from stepalign.algorithms.base import StepExamples
from stepalign.algorithms.distillation_loss import DistillationExample, DistillationLoss
from stepalign.collate import collate
from stepalign.config import Recipe
from stepalign.console import Console
from stepalign.distributed.strategy import DataParallel
from stepalign.errors import StepalignError
from stepalign.launch import train
from stepalign.planning import Plan, estimate, plan
from stepalign.planning.display import table
from stepalign.planning.sizes import Lengths, lengths, model_size
from stepalign.planning.stages import asks_critic
from stepalign.policy import Policy
from stepalign.teachers import build_teacher
from stepalign.teachers.ema import EMATeacher
from stepalign.teachers.model import ModelTeacher
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
    size = model_size(config.ModelConfig(name_or_path=str(folder)), settings.lora, gpu=False)
    policy = loaded(folder, settings)
    adapter = sum(parameter.numel() for parameter in policy.trainable())
    assert size.adapter == adapter
    assert size.parameters == sum(parameter.numel() for parameter in policy.parameters()) - adapter


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
    size = model_size(settings.model, settings.lora, gpu=False)
    estimated = 200.0 * size.layers * size.layer_activation_bytes
    if checkpointing:
        # Each layer's input; a tiny model shows the last norm's and the rotary angles as well.
        estimated = 200.0 * size.hidden * (size.layers * size.weight_bytes + 4)
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
    given = Lengths(prompt=4, completion=12, max_completion=12, teacher_prompt=8, evaluation=12)
    size = model_size(settings.model, settings.lora, gpu=False)
    found = estimate(settings, size, given, hardware="h100")
    estimated = found.stages["teacher"].flops + found.stages["student"].flops
    assert estimated == pytest.approx(counter.get_total_flops(), rel=0.25)


def planned(settings: Recipe, given: Lengths, problems: int) -> Plan:
    size = model_size(settings.model, settings.lora, gpu=False)
    return estimate(settings, size, given, attempts=problems * settings.evaluation.num_samples)


def assert_tokens_are_the_runs(settings: Recipe) -> None:
    found = planned(settings, lengths(settings, from_run=settings.folder)[0], 3)
    steps = [json.loads(line) for line in (settings.folder / "metrics.jsonl").read_text().splitlines()]
    for stage, name in (("sample", "completion_tokens"), ("teacher", "teacher_tokens"), ("student", "student_tokens")):
        measured = sum(step.get(name, 0) for step in steps) / len(steps)
        assert found.stages[stage].tokens == pytest.approx(measured, rel=0.02), stage


def test_tokens_are_those_of_the_run_whose_lengths_are_taken(finished_run: Recipe) -> None:
    assert_tokens_are_the_runs(finished_run)
    given, _, problems = lengths(finished_run, from_run=finished_run.folder)
    found = planned(finished_run, given, problems)
    assert problems == 3
    assert (found.steps, found.evaluations) == (4, 3), "steps 0, 3 and 4"
    assert (given.read_share, given.learned_share) == (pytest.approx(1, abs=0.1), 1)
    assert given.evaluation <= 16, "the cap of its evaluations, not of its rollouts"


@pytest.mark.usefixtures("no_figures")
def test_a_run_reads_no_further_than_its_horizon(make_recipe: MakeRecipe) -> None:
    settings = make_recipe(
        *("algorithm.loss_span=until_first_error", "algorithm.num_iterations=2"),
        *("training.max_steps=2", "training.eval_steps=0"),
    )
    train(settings)
    given, _, _ = lengths(settings, from_run=settings.folder)
    assert given.read_share < 1
    assert_tokens_are_the_runs(settings)


def test_more_devices_take_less_time_and_sharding_less_memory(make_recipe: MakeRecipe) -> None:
    given = Lengths(prompt=100, completion=1000, max_completion=1000, teacher_prompt=1500, evaluation=2000)

    def of(*overrides: str, devices: int) -> Plan:
        settings = make_recipe("training.rollouts_per_step=32", *overrides)
        size = model_size(settings.model, settings.lora, gpu=True)
        return estimate(settings, size, given, hardware="h100", devices=devices)

    one, four = of(devices=1), of(devices=4)
    assert four.stages["student"].seconds == pytest.approx(one.stages["student"].seconds / 4)
    assert of("distributed.strategy=fsdp2", devices=4).memory["weights"] < four.memory["weights"]
    assert of("distributed.strategy=zero2", devices=4).memory["optimizer"] == four.memory["optimizer"] / 4


def test_the_critic_keeps_up_when_its_answers_come_as_fast_as_rollouts(make_recipe: MakeRecipe) -> None:
    settings = make_recipe('critic={ kind = "openai", base_url = "http://c", model = "m" }')
    given = Lengths(
        prompt=9, completion=9, max_completion=9, teacher_prompt=9, critic_prompt=9, critique=600, evaluation=9
    )
    size = model_size(settings.model, settings.lora, gpu=True)
    found = estimate(settings, size, given, hardware="h100")
    assert found.critic_concurrency == 4, "an answer takes longer than sampling: all at once"


def test_unknown_hardware_is_an_error(make_recipe: MakeRecipe) -> None:
    with pytest.raises(StepalignError, match="hardware 'abacus': allowed are h200, h100"):
        plan(make_recipe(), hardware="abacus")


def printed(settings: Recipe, hardware: str | None, price: float | None = None, *, tokens: int | None = 5) -> str:
    output = io.StringIO()
    estimated = plan(settings, hardware=hardware, completion_tokens=tokens)
    RichConsole(width=200, file=output).print(table(settings, estimated, price=price))
    return output.getvalue()


def test_hours_are_given_for_stated_hardware_only(make_recipe: MakeRecipe) -> None:
    without, stated = printed(make_recipe(), None), printed(make_recipe(), "a100", 2.0)
    assert "hours: state --hardware, or time two steps on your own (training.max_steps=2)" in without
    assert "at 2 an hour" not in without
    assert "at 2 an hour" in stated
    assert "40% of 312 TFLOP/s" in stated
    for line in ("5 completion tokens", "keys and values", "student", "activations"):
        assert line in without, line
        assert line in stated, line


CRITIC = 'critic={ kind = "openai", base_url = "http://c", model = "m" }'


@pytest.mark.parametrize(
    ("overrides", "asked"),
    [
        ([], True),
        (["context.template=refsol"], False),
        (["context.template=refsol", "algorithm.loss_span=until_first_error"], True),
        (["context.template=refsol", "algorithm.kind=credit-grpo", "algorithm.credit=verdicts"], True),
        (["context.template=refsol", "algorithm.kind=rltf-fm"], True),
        (["algorithm.kind=grpo"], False),
        (["context.template=refsol", "algorithm.kind=seq-kd"], False),
    ],
)
def test_a_critic_is_charged_where_it_is_asked(overrides: list[str], asked: bool, make_recipe: MakeRecipe) -> None:
    settings = make_recipe(CRITIC, *overrides)
    assert asks_critic(settings) == asked
    assert ("critique" in plan(settings).stages) == asked


def test_contrasts_second_turns_and_the_teachers_own_samples_are_counted(make_recipe: MakeRecipe) -> None:
    def stages(*overrides: str) -> dict[str, float]:
        found = plan(make_recipe("context.template=refsol", *overrides), hardware="h100")
        return {name: stage.flops for name, stage in found.stages.items()}

    one, contrast = (stages("algorithm.kind=credit-grpo", f"algorithm.credit={c}") for c in ("context", "contrast"))
    assert contrast["teacher"] == pytest.approx(5 * one["teacher"])
    turns = stages("algorithm.kind=rltf-sd", "context.template=second-turn")
    assert turns["second turn"] > turns["sample"], "its prompt holds the first turn"
    own = stages("algorithm.kind=seq-kd")["sample"]
    assert own > one["sample"], "the teacher reads a context"
    settings = make_recipe("context.template=refsol", "algorithm.kind=seq-kd")
    size = model_size(settings.model, settings.lora, gpu=True)
    found = estimate(settings, size, GIVEN, teacher=replace(size, projections=9 * size.projections))
    assert found.stages["sample"].flops > estimate(settings, size, GIVEN).stages["sample"].flops
    assert "sample" not in stages("algorithm.kind=sft")


def test_reference_steps_sample_nothing_and_have_one_rollout_a_problem(make_recipe: MakeRecipe) -> None:
    def stages(*overrides: str) -> dict[str, float]:
        found = plan(make_recipe("context.template=refsol", "training.num_generations=2", *overrides))
        return {name: stage.tokens for name, stage in found.stages.items()}

    policy, mixed, references = (stages(f"algorithm.lmbda={share}") for share in (1.0, 0.5, 0.0))
    assert mixed["sample"] == policy["sample"] / 2
    assert "sample" not in references
    for name in ("teacher", "student"):
        assert references[name] == policy[name] / 2, name
        assert mixed[name] == 0.75 * policy[name], name
    sft = stages("algorithm.kind=sft")
    assert sft["student"] == policy["student"] / 2


def test_a_critic_may_be_asked_where_nothing_is_sampled(make_recipe: MakeRecipe) -> None:
    found = plan(make_recipe(CRITIC, "algorithm.lmbda=0.0", "training.num_generations=2"), hardware="h100")
    assert found.waiting > 0
    half = found.stages["critique"].tokens
    assert plan(make_recipe(CRITIC, "training.num_generations=2")).stages["critique"].tokens == 2 * half


def test_star_tries_at_most_each_problem_again(make_recipe: MakeRecipe) -> None:
    star = "algorithm.kind=sft", "algorithm.sequences=rollouts", "context.template=hint", "training.num_generations=2"
    assert "second turn" not in plan(make_recipe(*star)).stages
    again = plan(make_recipe(*star, "algorithm.rationalize=true")).stages
    assert again["second turn"].tokens == again["sample"].tokens / 2


@pytest.mark.usefixtures("no_figures")
def test_critiques_that_the_policy_learns_to_write_are_read_by_it(make_recipe: MakeRecipe) -> None:
    common = "training.num_generations=2", "training.rollouts_per_step=4", "training.max_steps=2"
    settings = make_recipe("algorithm.kind=rltf-fm", *common, "training.eval_steps=0")
    grpo, found = plan(make_recipe("algorithm.kind=grpo", *common)), plan(settings)
    assert found.stages["student"].tokens > 2 * grpo.stages["student"].tokens
    assert found.memory["activations"] > 1.5 * grpo.memory["activations"]
    train(settings)
    given = lengths(settings, from_run=settings.folder)[0]
    steps = [json.loads(line) for line in (settings.folder / "metrics.jsonl").read_text().splitlines()]
    measured = sum(step.get("student_tokens", 0) for step in steps) / len(steps)
    assert planned(settings, given, 3).stages["student"].tokens == pytest.approx(measured, rel=0.02)


def test_each_sampler_has_its_own_memory(make_recipe: MakeRecipe) -> None:
    def parts(sampler: str, hardware: str | None = None, **keys: Any) -> tuple[set[str], set[str]]:
        settings = make_recipe(*([f"sampler={sampler}"] if sampler else []))
        size = model_size(settings.model, settings.lora, gpu=True)
        found = estimate(settings, size, GIVEN, hardware=hardware)
        engine = {"sampler's weights", "keys and values"}
        for memory in (found.memory, found.sampling_memory):
            if "sampler's weights" in memory:
                assert memory["sampler's weights"] == size.weight_bytes * size.parameters
                share = sum(memory[name] for name in engine)
                assert hardware is None or share == pytest.approx(0.25 * 80e9)
        assert found.sampling_memory["weights"] == found.memory["weights"]
        assert found.sampling_memory["optimizer"] == found.memory["optimizer"]
        return engine & found.memory.keys(), engine & found.sampling_memory.keys()

    both, none = {"sampler's weights", "keys and values"}, set[str]()
    assert parts("") == (none, {"keys and values"})
    for hardware in (None, "h100"):
        vllm = "{ kind = 'vllm', gpu_memory_utilization = 0.25%s }"
        assert parts(vllm % "", hardware) == (none, both)
        assert parts(vllm % ", enable_sleep_mode = false", hardware) == (both, both)
    assert parts("{ kind = 'vllm-server' }") == (none, none)


def test_a_share_that_does_not_hold_the_samplers_weights_is_said(make_recipe: MakeRecipe) -> None:
    small = make_recipe("sampler={ kind = 'vllm', gpu_memory_utilization = 0.000001 }")
    assert "does not fit: the sampler's weights are" in printed(small, "h100")
    assert "does not fit" not in printed(make_recipe("sampler={ kind = 'vllm' }"), "h100")


def test_transformers_decodes_more_slowly_than_vllm(make_recipe: MakeRecipe) -> None:
    seconds = [
        plan(make_recipe(*overrides), hardware="h100").stages["sample"].seconds
        for overrides in ((), ("sampler={ kind = 'vllm' }",))
    ]
    assert seconds[0] > 2 * seconds[1]
    assert "1 ms a layer for each token of transformers" in printed(make_recipe(), "h100")


def test_what_does_not_fit_is_said(make_recipe: MakeRecipe) -> None:
    assert "does not fit" not in printed(make_recipe(), "h100")
    vast = make_recipe(
        "sampling.max_new_tokens=900", "sampler.max_num_seqs=900000", "training.rollouts_per_step=900000"
    )
    assert "does not fit: sampling needs" in printed(vast, "rtx4090", tokens=None)
    assert "smaller with sampler.max_num_seqs" in printed(vast, "rtx4090", tokens=None)


def test_a_selection_is_planned_as_one(make_recipe: MakeRecipe) -> None:
    settings = make_recipe("selection.num_attempts=8")
    found = plan(settings, hardware="h100", completion_tokens=10, select=True)
    assert (found.stages, found.memory, found.steps) == ({}, {}, 0)
    assert found.evaluation.tokens == 12 * 8 * 10, "those that training holds out too"
    assert found.sampling_memory.keys() == {"weights", "keys and values"}
    plan(make_recipe("problems.holdout=12"), select=True)
    assert found.hours == found.evaluation.seconds / 3600 > 0
    output = io.StringIO()
    RichConsole(width=200, file=output).print(table(settings, found))
    assert "selection" in output.getvalue()
    assert "learning" not in output.getvalue()


def test_the_solver_that_ships_can_be_planned_for() -> None:
    size = model_size(config.ModelConfig(name_or_path="lab"), config.LoraConfig(), gpu=False)
    assert 0.8e6 < size.parameters < 1e6


# ── teachers, and what is trained ─────────────────────────────────────────────────────────────────────────────


GIVEN = Lengths(prompt=100, completion=200, max_completion=200, teacher_prompt=150, evaluation=200)


def held(teacher: Any) -> int:
    """Bytes of the tensors that a teacher holds for itself."""
    base = teacher._policy._base_weights or {}
    state = [] if not isinstance(teacher, EMATeacher) else teacher.average.tensors.values()
    own = teacher.model.parameters() if isinstance(teacher, ModelTeacher) else []
    return sum(tensor.numel() * tensor.element_size() for tensor in (*base.values(), *state, *own))


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("kind", ["base", "live", "scaled", "trust-region", "ema", "model"])
def test_a_teachers_memory_is_that_of_its_tensors(
    kind: str, full: bool, tiny_llama: Path, tiny_qwen3: Path, make_recipe: MakeRecipe
) -> None:
    if full and kind == "scaled":
        pytest.skip("refused")
    keys = (f"teacher.model.name_or_path={tiny_qwen3}",) if kind == "model" else ()
    settings = make_recipe(f"teacher.kind={kind}", f"training.use_peft={str(not full).lower()}", *keys)
    policy = models.load_policy(settings.model, settings.adapter, 0, CPU)
    size = model_size(settings.model, settings.adapter, gpu=False)
    own = model_size(settings.teacher.model_of(settings.model), config.LoraConfig(), gpu=False)
    found = estimate(settings, size, GIVEN, teacher=own if kind == "model" else None)
    assert found.memory.get("teacher", 0) == held(build_teacher(settings.teacher, policy))
    one = estimate(make_recipe(*(["training.use_peft=false"] if full else [])), size, GIVEN)
    if kind != "model":
        times = 2 if kind == "trust-region" else 1
        assert found.stages["teacher"].flops == times * one.stages["teacher"].flops


def test_all_weights_take_a_gradient_and_two_moments_each(tiny_llama: Path, make_recipe: MakeRecipe) -> None:
    settings = make_recipe("training.use_peft=false")
    policy = models.load_policy(settings.model, None, 0, CPU)
    count = sum(parameter.numel() for parameter in policy.parameters())
    found = estimate(settings, model_size(settings.model, None, gpu=True), GIVEN)
    assert (found.memory["weights"], found.memory["gradient"]) == (4 * count, 4 * count)
    assert found.memory["optimizer"] == 8 * count


def test_a_base_in_four_bits_takes_about_half_a_byte_a_weight(tiny_llama: Path, make_recipe: MakeRecipe) -> None:
    settings = make_recipe("model.load_in_4bit=true")
    size = model_size(settings.model, settings.adapter, gpu=False)
    assert size.bytes == pytest.approx(0.516 * size.projections + 4 * (size.parameters - size.projections))
    assert estimate(settings, size, GIVEN).memory["weights"] == size.bytes
