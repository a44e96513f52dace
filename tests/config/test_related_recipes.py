"""The related systems' recipes, held against what was read of each: its code, else abstract and write-ups."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from stepalign import config
from stepalign.algorithms.teacher_context import TeacherContext
from stepalign.config import Recipe

RELATED = Path(__file__).parents[2] / "recipes" / "related"
BASE_TEACHER = {"teacher.kind": "base", "context.template": "refsol"}
OPSD = BASE_TEACHER | {
    "teacher.max_length": 20_000,
    "algorithm.kind": "distillation",
    "algorithm.support": "full",
    "algorithm.student_temperature": 1.1,
    "algorithm.teacher_temperature": 1.1,
    "algorithm.loss_agg_mode": "token-mean",
    "sampling.temperature": 1.1,
    "sampling.top_p": 0.95,
    "sampling.top_k": 20,
    "lora.r": 64,
    "lora.lora_alpha": 128,
    "lora.target_modules": ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
    "training.rollouts_per_step": 32,
    "training.num_generations": 1,
    "evaluation.sampling.max_new_tokens": 38_912,
    "evaluation.sampling.enable_thinking": True,
    "evaluation.sampling.top_p": 1.0,
}
OPSD_V3 = OPSD | {
    "algorithm.beta": 0.0,
    "algorithm.clip_mode": "entry",
    "algorithm.clip_value": 0.05,
    "sampling.max_new_tokens": 1024,
    "sampling.enable_thinking": False,
    "teacher.enable_thinking": True,
    "optimizer.lr": 5e-6,
    "optimizer.max_grad_norm": 0.1,
    "training.max_steps": 100,
    "training.save_steps": 25,
    "evaluation.num_samples": 12,
}
SDPO = {
    "teacher.kind": "ema",
    "teacher.update_every": "rollout_batch",
    "teacher.update_rate": 0.05,
    "teacher.enable_thinking": False,
    "algorithm.kind": "distillation",
    "algorithm.support": "topk-student",
    "algorithm.add_tail": True,
    "algorithm.loss_agg_mode": "token-mean",
    "algorithm.importance_sampling_level": "token",
    "algorithm.importance_sampling_cap": 2.0,
    "sampling.temperature": 1.0,
    "sampling.max_new_tokens": 8192,
    "sampling.enable_thinking": False,
    "optimizer.weight_decay": 0.01,
    "optimizer.max_grad_norm": 1.0,
    "optimizer.lr_scheduler_type": "constant_with_warmup",
    "training.use_peft": False,
    "training.num_generations": 8,
    "evaluation.sampling.temperature": 0.6,
    "evaluation.sampling.top_p": 0.95,
}
RLTF = {
    "model.name_or_path": "meta-llama/Llama-3.1-8B-Instruct",
    "critic.model": "Qwen/Qwen3-235B-A22B-Instruct-2507",
    "lora.r": 32,
    "optimizer.lr": 2e-5,
    "training.num_generations": 8,
}
KD = {
    "teacher.kind": "model",
    "context.template": "solver",
    "algorithm.kind": "distillation",
    "algorithm.loss_agg_mode": "token-mean",
}
EXPECTED: dict[str, dict[str, object]] = {
    "opsd-v1": OPSD
    | {
        "algorithm.beta": 0.5,
        "algorithm.clip_mode": "none",
        "sampling.max_new_tokens": 2048,
        "sampling.enable_thinking": True,
        "teacher.enable_thinking": True,
        "optimizer.lr": 2e-4,
        "optimizer.max_grad_norm": 1.0,
        "training.save_steps": 50,
        "evaluation.num_samples": 16,
    },
    "opsd-v3": OPSD_V3,
    "past": OPSD_V3 | {"context.template": "past"},
    "sdpo": SDPO
    | {
        "context.template": "sibling",
        "teacher.sync_steps": 1,
        "algorithm.beta": 0.5,
        "algorithm.top_k": 100,
        "optimizer.lr": 1e-5,
        "optimizer.warmup_steps": 10,
        "training.rollouts_per_step": 32 * 8,
        "evaluation.num_samples": 16,
    },
    "sdpo-feedback": SDPO
    | {
        "context.template": "sdpo",
        "teacher.sync_steps": 32,
        "algorithm.beta": 1.0,
        "algorithm.top_k": 20,
        "optimizer.lr": 1e-6,
        "optimizer.warmup_steps": 0,
        "training.rollouts_per_step": 8,
        "evaluation.num_samples": 4,
    },
    "sdft": {
        "context.template": "demonstration",
        "teacher.kind": "ema",
        "teacher.update_rate": 0.01,
        "teacher.update_every": "optimizer_step",
        "teacher.sync_steps": 1,
        "algorithm.kind": "distillation",
        "algorithm.beta": 0.0,
        "algorithm.support": "full",
        "algorithm.num_loss_tokens_to_skip": 3,
        "algorithm.student_temperature": 1.0,
        "algorithm.teacher_temperature": 1.0,
        "sampling.temperature": 1.0,
        "sampling.max_new_tokens": 1024,
        "optimizer.lr": 2e-5,
        "optimizer.weight_decay": 0.0,
        "optimizer.max_grad_norm": 1.0,
        "optimizer.lr_scheduler_type": "cosine",
        "optimizer.warmup_ratio": 0.1,
        "training.use_peft": False,
        "training.num_generations": 1,
        "training.rollouts_per_step": 32,
    },
    "rltf-sd": RLTF | {"algorithm.kind": "rltf-sd", "context.template": "second-turn"},
    "rltf-fm": RLTF | {"algorithm.kind": "rltf-fm", "algorithm.feedback_weight": 0.1},
    "on-policy-distillation": KD
    | {
        "algorithm.support": "sampled",
        "algorithm.beta": 1.0,
        "algorithm.discount": 0.0,
        "algorithm.lmbda": 1.0,
        "lora.r": 128,
        "optimizer.lr": 1e-4,
        "training.max_steps": 200,
        "training.rollouts_per_step": 512 * 4,
        "training.num_generations": 4,
    },
    "gkd": KD
    | {
        "sampling.temperature": 0.9,
        "algorithm.lmbda": 0.5,
        "algorithm.beta": 0.5,
        "algorithm.student_temperature": 1.0,
        "algorithm.teacher_temperature": 1.0,
    },
    "kd": KD | {"algorithm.lmbda": 0.0, "algorithm.beta": 0.0},
    "star": {
        "context.template": "hint",
        "algorithm.kind": "sft",
        "algorithm.sequences": "rollouts",
        "algorithm.rationalize": True,
    },
    "rlcsd": {
        "model.name_or_path": "Qwen/Qwen3-1.7B",
        "teacher.kind": "ema",
        "teacher.update_rate": 1.0,
        "teacher.sync_steps": 10,
        "algorithm.kind": "credit-grpo",
        "algorithm.credit": "contrast",
        "algorithm.modulation": "add",
        "algorithm.credit_weight": 0.5,
        "algorithm.credit_scale": 1.0,
        "algorithm.min_credit": 0.02,
        "algorithm.min_advantage": 0.02,
        "algorithm.num_wrong_contexts": 4,
    },
    "step-advantage": {
        "algorithm.kind": "credit-grpo",
        "algorithm.credit": "verdicts",
        "algorithm.gather": "step_mean",
        "algorithm.conserve": True,
    },
}


def flat(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, object]]:
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def load(name: str) -> Recipe:
    return config.load(RELATED / f"{name}.toml")


def test_every_recipe_has_expected_values() -> None:
    assert {path.stem for path in RELATED.glob("*.toml")} == {*EXPECTED, "base"}


@pytest.mark.parametrize(("name", "expected"), EXPECTED.items(), ids=list(EXPECTED))
def test_the_settings_are_those_that_were_read(name: str, expected: dict[str, object]) -> None:
    values = dict(flat(load(name).model_dump()))
    assert {key: values.get(key) for key in expected} == expected
    assert values["name"] == f"related-{name}"


@pytest.mark.parametrize("name", EXPECTED)
def test_the_parts_of_a_recipe_go_together(name: str) -> None:
    recipe = load(name)
    assert TeacherContext.of(recipe).context.name == recipe.context.template
    assert recipe.problems == load("base").problems, "one set of problems for all"


@pytest.mark.parametrize("name", EXPECTED)
def test_a_head_says_source_reader_command_and_what_is_not_faithful(name: str) -> None:
    lines = (RELATED / f"{name}.toml").read_text().splitlines()
    head = "\n".join(lines[: next(place for place, line in enumerate(lines) if not line.startswith("#"))])
    for part in ("arXiv", "The teacher reads:", f"stepalign train related/{name}", "Not faithful:"):
        assert part in head


def test_neither_a_context_nor_a_teacher_of_the_feedback_systems_shows_the_own_attempt() -> None:
    for name in ("sdpo", "sdpo-feedback", "sdft", "opsd-v1", "opsd-v3"):
        assert "attempt" not in TeacherContext.of(load(name)).context.variables
