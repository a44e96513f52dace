"""The paper's recipes, held against its tables (arXiv 2606.11173, Tables 2 to 5)."""

from pathlib import Path

import pytest

from stepalign import config
from stepalign.config import Recipe

PAPER = Path(__file__).parents[2] / "recipes" / "paper"


def load(name: str) -> Recipe:
    return config.load(PAPER / f"{name}.toml")


@pytest.mark.parametrize("name", ["stepalign", "refsol", "one-gpu"])
def test_the_solvers_training_is_that_of_table_2(name: str) -> None:
    settings = load(name)
    assert settings.model == config.ModelConfig(
        name_or_path="Qwen/Qwen3-1.7B", dtype="bfloat16", attn_implementation="flash_attention_2"
    )
    assert settings.lora == config.LoraConfig(
        r=64,
        lora_alpha=128,
        lora_dropout=0,
        target_modules=("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
    )
    optimizer = settings.optimizer
    assert (optimizer.lr, optimizer.weight_decay, optimizer.max_grad_norm) == (5e-6, 0, 0.1)
    assert optimizer.warmup_steps == 0, "a constant rate"
    training = settings.training
    assert training.rollouts_per_step == 2 * 4 * 4, "2 a device, 4 accumulated, 4 GPUs"
    assert (training.micro_batch_size, training.num_generations, training.gradient_checkpointing) == (2, 1, True)
    assert settings.sampling == config.SamplingConfig(
        temperature=1.1, top_p=0.95, top_k=20, max_new_tokens=2048, enable_thinking=False
    )
    assert settings.teacher == config.BaseTeacherConfig(enable_thinking=True, max_length=20_000)
    objective = settings.algorithm
    assert isinstance(objective, config.DistillationConfig)
    assert (objective.beta, objective.clip_mode, objective.teacher_temperature) == (0, "none", 1)
    assert (objective.loss_span, objective.num_loss_tokens_to_skip) == ("all", 0)


@pytest.mark.parametrize("name", ["stepalign", "refsol", "one-gpu"])
def test_the_schedule_is_seven_epochs_of_282_problems(name: str) -> None:
    training = load(name).training
    assert training.max_steps == 7 * 282 // training.rollouts_per_step
    assert (training.save_steps, training.eval_steps) == (10, 10)


def test_the_engines_are_those_of_table_2_on_four_gpus_and_plain_on_one() -> None:
    assert load("stepalign").distributed == config.DistributedConfig(strategy="zero2", offload_optimizer=True)
    assert load("one-gpu").distributed == config.DistributedConfig(strategy="data_parallel")
    assert load("stepalign").sampler.kind == "vllm"


def test_the_conditions_differ_in_one_field() -> None:
    refsol, stepalign = load("refsol").model_dump(), load("stepalign").model_dump()
    assert refsol.pop("context") == {**stepalign.pop("context"), "template": "refsol"}
    assert {**refsol, "name": ""} == {**stepalign, "name": ""}


def test_the_critic_is_that_of_table_2() -> None:
    critic = load("stepalign").critic
    assert isinstance(critic, config.OpenAICriticConfig)
    assert critic.model == "Qwen/QwQ-32B"
    assert (critic.temperature, critic.top_p, critic.max_tokens, critic.timeout_s) == (0, 0.95, 8000, 240)
    assert critic.validation.truncated == "fail", "fallback on truncation"


def test_grpo_is_that_of_table_3_at_matched_generation() -> None:
    settings = load("grpo")
    objective = settings.algorithm
    assert isinstance(objective, config.GRPOConfig)
    assert (objective.loss_agg_mode, objective.kl_coef, objective.num_iterations) == ("seq-mean-token-mean", 0, 2)
    assert settings.optimizer.lr == 5e-6
    training = settings.training
    assert (training.rollouts_per_step, training.num_generations, training.micro_batch_size) == (32, 8, 1)
    assert (settings.sampling.temperature, settings.sampling.max_new_tokens) == (1.2, 8000)
    other = load("stepalign").training
    assert training.max_steps * training.rollouts_per_step == other.max_steps * other.rollouts_per_step


@pytest.mark.parametrize("name", ["stepalign", "refsol", "grpo", "one-gpu"])
def test_the_evaluation_is_that_of_table_5(name: str) -> None:
    settings = load(name)
    assert settings.evaluation.num_samples == 12
    assert settings.evaluation.sampling == config.SamplingConfig(
        temperature=1.0, top_p=0.95, top_k=0, max_new_tokens=38_912, enable_thinking=True
    )
    assert isinstance(settings.sampler, config.VllmConfig)
    assert (settings.sampler.max_model_len or 0) >= 38_912 + 2048


def test_the_data_are_those_of_appendix_a() -> None:
    settings = load("select")
    source, selection = settings.problems.train, settings.selection
    assert isinstance(source, config.OpenMathConfig)
    assert source.min_pass_rate == 0.85
    assert (selection.num_attempts, selection.max_accuracy, selection.min_format_accuracy) == (16, 5 / 16, 0.9)
    assert settings.problems.holdout == 30
