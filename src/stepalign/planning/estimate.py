"""Tokens, operations, bytes and seconds of one optimizer step, stage by stage.

Operations: 2 a weight and token forwards; as many backwards, since the base is frozen and only activations have
gradients; once more with gradient checkpointing. Attention costs 4 · layers · width for each pair of tokens, half of
them masked. The objective makes three products with the head a token (student, teacher, gradient). Decoding one token
for a batch reads the weights once and every row's keys and values.

Left out: overlap of the stages, communication, the adapters' own products (under one part in fifty at rank 64), and
what a framework holds beyond tensors (a CUDA context takes about half a gigabyte).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from stepalign import recipe
from stepalign.objectives.projection import chunk_tokens
from stepalign.planning.hardware import Hardware
from stepalign.planning.shape import Shape

_SCRATCH = 6
"""Buffers of a chunk's logits: the student's, the teacher's, and working room."""


@dataclass(frozen=True, kw_only=True)
class Lengths:
    """Tokens of one rollout, on average."""

    prompt: float
    completion: float
    teacher_prompt: float
    """What the teacher reads before the completion."""
    critic_prompt: float
    critique: float
    """What the critic writes, its thinking included."""
    evaluation: float
    """A completion under the evaluation's settings."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage of a step, over all devices."""

    tokens: float
    flops: float
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a recipe will take."""

    memory: Mapping[str, float]
    """Bytes on one device while it learns, by what they are for."""
    sampling_memory: Mapping[str, float]
    """The same while it samples."""
    stages: Mapping[str, Stage]
    """Of one optimizer step."""
    evaluation: Stage
    """Of one evaluation."""
    steps: int
    evaluations: int
    critic_concurrency: int
    """Requests that must be under way for critiques to be written in the time that sampling takes."""

    @property
    def step_seconds(self) -> float:
        """One step, stage after stage; critiques come while others are sampled."""
        return sum(stage.seconds for name, stage in self.stages.items() if name != "critique")

    @property
    def hours(self) -> float:
        """The whole run."""
        return (self.steps * self.step_seconds + self.evaluations * self.evaluation.seconds) / 3600


def plan(
    settings: recipe.Recipe,
    shape: Shape,
    lengths: Lengths,
    hardware: Hardware,
    *,
    devices: int = 1,
    evaluation_problems: int = 0,
    critic_tokens_per_s: float = 30.0,
) -> Plan:
    """Estimate a recipe.

    Args:
        settings: the recipe.
        shape: the solver's.
        lengths: of a rollout.
        hardware: one of the devices that train and sample.
        devices: how many.
        evaluation_problems: how many problems an evaluation attempts.
        critic_tokens_per_s: how fast the critic's server writes one of many answers.
    """
    training, rollouts = settings.training, settings.training.rollouts_per_step
    distils = isinstance(settings.objective, recipe.Distillation)
    updates = 1 if isinstance(settings.objective, recipe.Distillation) else settings.objective.updates
    student = lengths.prompt + lengths.completion
    teacher = lengths.teacher_prompt + lengths.completion
    rate = hardware.flops * hardware.utilization * devices
    head = 2 * shape.vocab * shape.hidden * lengths.completion

    def learning(passes: int, length: float, products: int) -> Stage:
        flops = rollouts * (passes * forward_flops(shape, length) + products * head)
        return Stage(tokens=rollouts * length, flops=flops, seconds=flops / rate)

    stages = {
        "sample": decoding(shape, rollouts, lengths.prompt, lengths.completion, settings, hardware, devices),
    }
    if isinstance(settings.critic, recipe.OpenAICritic) and distils:
        tokens = rollouts * (lengths.critic_prompt + lengths.critique)
        stages["critique"] = Stage(tokens=tokens, flops=0.0, seconds=lengths.critique / critic_tokens_per_s)
    if distils:
        stages["teacher"] = learning(1, teacher, 1)
    elif settings.objective.kl:  # type: ignore[union-attr]
        stages["base"] = learning(updates, student, updates)
    stages["student"] = learning(updates * (3 if training.gradient_checkpointing else 2), student, 2 * updates)
    attempts = evaluation_problems * settings.evaluation.samples
    sampled = stages["sample"].seconds
    concurrency = 0
    if "critique" in stages:
        concurrency = math.ceil(rollouts * stages["critique"].seconds / max(sampled, stages["critique"].seconds))
    every = training.evaluate_every or training.steps
    return Plan(
        memory=learning_memory(settings, shape, student, teacher, lengths.completion, hardware, devices),
        sampling_memory=sampling_memory(settings, shape, student, rollouts, devices),
        stages=stages,
        evaluation=decoding(shape, attempts, lengths.prompt, lengths.evaluation, settings, hardware, devices),
        steps=training.steps,
        evaluations=1 + math.ceil(training.steps / every) if evaluation_problems else 0,
        critic_concurrency=concurrency,
    )


def forward_flops(shape: Shape, length: float) -> float:
    """One sequence through the layers, forwards; without the head."""
    return 2 * shape.projections * length + 2 * shape.layers * shape.attention * length**2


def decoding(
    shape: Shape,
    rollouts: int,
    prompt: float,
    completion: float,
    settings: recipe.Recipe,
    hardware: Hardware,
    devices: int,
) -> Stage:
    """Prompts read at once, then a token for every row at a time: bound by operations or by bytes."""
    mine = math.ceil(rollouts / devices)
    batch = max(1, min(mine, settings.sampler.batch_size))
    rate = hardware.flops * hardware.utilization
    per_token = 2 * (shape.projections + shape.vocab * shape.hidden) + 4 * shape.layers * shape.attention * (
        prompt + completion / 2
    )
    read: float = shape.weight_bytes * (shape.projections + shape.vocab * shape.hidden)
    read += batch * shape.cache_bytes * (prompt + completion / 2)
    rounds = mine / batch * completion
    tick = max(batch * per_token / rate, read / (hardware.bandwidth * hardware.decoding))
    prefill = mine * forward_flops(shape, prompt) / rate
    flops = rollouts * (completion * per_token + forward_flops(shape, prompt))
    return Stage(tokens=rollouts * completion, flops=flops, seconds=prefill + rounds * tick)


def learning_memory(
    settings: recipe.Recipe,
    shape: Shape,
    student: float,
    teacher: float,
    completion: float,
    hardware: Hardware,
    devices: int,
) -> dict[str, float]:
    """Bytes on one device at the peak of the student's pass."""
    training = settings.training
    rows = training.micro_batch
    if training.micro_batch_tokens is not None:
        rows = max(1, min(rows, int(training.micro_batch_tokens // student)))
    tokens = rows * student
    kept = shape.layers * shape.layer_activation_bytes
    if training.gradient_checkpointing:
        kept = shape.layers * shape.hidden * shape.weight_bytes + shape.layer_activation_bytes
    chunk = chunk_tokens(round(rows * completion) or 1, shape.vocab, torch.device("cuda" if hardware.gpu else "cpu"))
    sharded = settings.distribution.engine == "fsdp2"
    layers = shape.projections / (devices if sharded else 1)
    moments = 8.0 * shape.adapter
    if settings.distribution.engine == "zero2":
        moments = 0.0 if settings.distribution.offload else moments / devices
    return {
        "weights": shape.weight_bytes * (shape.parameters - shape.projections + layers),
        "adapter and its gradient": 8.0 * shape.adapter,
        "optimizer": moments,
        "activations": tokens * kept,
        "hidden states": rows * completion * shape.hidden * (2 * shape.weight_bytes + 4),
        "objective's chunk": (2.0 if not hardware.gpu else _SCRATCH) * 4 * chunk * shape.vocab,
    }


def sampling_memory(
    settings: recipe.Recipe, shape: Shape, length: float, rollouts: int, devices: int
) -> dict[str, float]:
    """Bytes on one device while it samples."""
    rows = min(math.ceil(rollouts / devices), settings.sampler.batch_size)
    return {
        "weights": float(shape.weight_bytes * shape.parameters),
        "adapter": 4.0 * shape.adapter,
        "keys and values": rows * shape.cache_bytes * length,
    }
