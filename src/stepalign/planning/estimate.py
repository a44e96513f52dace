"""Tokens, operations, bytes and seconds of one optimizer step, stage by stage.

Operations: 2 a weight and token forwards; as many backwards, since the base is frozen and only activations have
gradients; once more with gradient checkpointing. Attention costs 4 · layers · width for each pair of tokens, half of
them masked. The objective makes three products with the head a token (student, teacher, gradient). Decoding goes a
token at a time for the rows that have not ended yet. Seconds are operations over a device's rate for such passes.

Left out: overlap of the stages, communication, the adapters' own products (under one part in fifty at rank 64).
"""

import math
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from heapq import heappop, heappush
from random import Random
from statistics import fmean

import torch

from stepalign import config
from stepalign.losses.lm_head import chunk_tokens
from stepalign.planning.hardware import Device
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
    spread: tuple[float, ...] = (1.0,)
    """Completions' lengths over their mean, from short to long."""
    reached: float = 1.0
    """The share of a completion up to the last token that counts; nothing behind it is read."""
    taught: float = 1.0
    """The share of rollouts that are learnt from."""

    def times(self, factor: float) -> "Lengths":
        """Shorter texts, or longer."""
        scaled = {name: factor * getattr(self, name) for name in ("prompt", "completion", "teacher_prompt")}
        return replace(self, **scaled)

    def drawn(self, count: int, mean: float) -> list[float]:
        """So many completions' lengths, the shortest first, as they are spread around their mean."""
        return [mean * share for share in parts(self.spread, count)]


def parts(values: Sequence[float], count: int) -> tuple[float, ...]:
    """Sorted values cut into so many equal parts, each part's mean: their mean stays what it is."""
    size = len(values)
    return tuple(fmean(values[place // count] for place in range(n * size, (n + 1) * size)) for n in range(count))


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
    settings: config.Recipe,
    shape: Shape,
    lengths: Lengths,
    device: Device,
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
        device: one of those that train and sample.
        devices: how many.
        evaluation_problems: how many problems an evaluation attempts.
        critic_tokens_per_s: how fast the critic's server writes one of many answers.
    """
    training, rollouts = settings.training, settings.training.rollouts_per_step
    slots = settings.sampler.max_num_seqs
    drawn = lengths.drawn(rollouts, lengths.completion)
    attempts = evaluation_problems * settings.evaluation.num_samples
    attempted = lengths.drawn(attempts, lengths.evaluation)
    stages = {"sample": decoding(shape, drawn, lengths.prompt, slots, device, devices)}
    distils = isinstance(settings.algorithm, config.DistillationConfig)
    if isinstance(settings.critic, config.OpenAICriticConfig) and distils:
        tokens = rollouts * (lengths.critic_prompt + lengths.critique)
        stages["critique"] = Stage(tokens=tokens, flops=0.0, seconds=lengths.critique / critic_tokens_per_s)
    lessons = rollouts * lengths.taught
    for name, (tokens, flops) in learning(settings, shape, lengths).items():
        rate = (device.student if name == "student" else device.frozen) * devices
        stages[name] = Stage(tokens=lessons * tokens, flops=lessons * flops, seconds=lessons * flops / rate)
    stages["optimizer"] = Stage(tokens=0.0, flops=0.0, seconds=updates(settings) * device.optimizer)
    rows = min(slots, max(math.ceil(count / devices) for count in (rollouts, attempts)))
    longest = lengths.prompt + max(drawn[-1], *attempted, 0.0)
    memory = learning_tensors(settings, shape, lengths, gpu=device.gpu, devices=devices)
    sampling_memory = sampling_tensors(shape, rows, longest)
    concurrency = 0
    if "critique" in stages:
        critique = stages["critique"].seconds
        concurrency = math.ceil(rollouts * critique / max(stages["sample"].seconds, critique))
    every = training.eval_steps or training.max_steps
    return Plan(
        memory={**memory, "process": device.process["learning"]},
        sampling_memory={**sampling_memory, "process": device.process["sampling"]},
        stages=stages,
        evaluation=decoding(shape, attempted, lengths.prompt, slots, device, devices),
        steps=training.max_steps,
        evaluations=1 + math.ceil(training.max_steps / every) if evaluation_problems else 0,
        critic_concurrency=concurrency,
    )


def updates(settings: config.Recipe) -> int:
    """Of the adapter, in a step."""
    return settings.algorithm.num_updates


def learning(settings: config.Recipe, shape: Shape, lengths: Lengths) -> dict[str, tuple[float, float]]:
    """Tokens and operations that a step spends on one lesson, by stage.

    The objective's products with the head, the teacher's among them, are made in the student's stage.
    """
    counted = lengths.completion * lengths.reached
    student, teacher = lengths.prompt + counted, lengths.teacher_prompt + counted
    head = 2 * shape.vocab * shape.hidden * counted
    passes = 3 if settings.training.gradient_checkpointing else 2
    if isinstance(settings.algorithm, config.DistillationConfig):
        return {
            "teacher": (teacher, shape.forward_flops(teacher)),
            "student": (student, passes * shape.forward_flops(student) + 3 * head),
        }
    assert isinstance(settings.algorithm, config.GRPOConfig)
    times = settings.algorithm.num_iterations
    stages = {"student": (student, times * (passes * shape.forward_flops(student) + 2 * head))}
    if settings.algorithm.kl_coef:
        stages = {"base": (student, times * (shape.forward_flops(student) + head)), **stages}
    return stages


def decoding(shape: Shape, lengths: Sequence[float], prompt: float, slots: int, device: Device, devices: int) -> Stage:
    """Prompts read at once, then a token for every row at a time.

    Args:
        shape: the solver's.
        lengths: tokens of every completion.
        prompt: tokens before each.
        slots: rows that are decoded together, at most.
        device: one of those that share the completions.
        devices: how many.
    """
    mine = lengths[::devices]
    written = sum(lengths)
    context = prompt + sum(length**2 for length in lengths) / max(2 * written, 1)
    ticks = sum(device.tick(rows, context) * times for rows, times in occupancy(mine, slots))
    read = shape.forward_flops(prompt)
    return Stage(
        tokens=written,
        flops=len(lengths) * read + written * shape.token_flops(context),
        seconds=len(mine) * read / device.reading + ticks,
    )


def occupancy(lengths: Sequence[float], slots: int) -> Iterator[tuple[int, float]]:
    """How many rows are decoded together and for how many tokens, as rows end and others take their place.

    As `sampling.transformers` does it: the next rows join when a quarter of the slots is free.
    """
    slots = min(slots, len(lengths))
    waiting = deque(Random(0).sample(lengths, len(lengths)))
    ends: list[float] = []
    now = 0.0
    while waiting or ends:
        if len(ends) <= slots - max(1, slots // 4):
            while waiting and len(ends) < slots:
                heappush(ends, now + waiting.popleft())
        yield len(ends), ends[0] - now
        now = heappop(ends)


def learning_tensors(
    settings: config.Recipe, shape: Shape, lengths: Lengths, *, gpu: bool, devices: int = 1
) -> dict[str, float]:
    """Bytes on one device at the peak of the student's pass, which is that of the longest rollouts."""
    training = settings.training
    counted = lengths.reached * lengths.drawn(training.rollouts_per_step, lengths.completion)[-1]
    student = lengths.prompt + counted
    rows = min(training.micro_batch_size, max(1, round(training.rollouts_per_step * lengths.taught)))
    if training.max_tokens_per_micro_batch is not None:
        rows = max(1, min(rows, int(training.max_tokens_per_micro_batch // student)))
    kept = shape.layers * shape.layer_activation_bytes
    if training.gradient_checkpointing:
        kept = shape.layers * shape.hidden * shape.weight_bytes + shape.layer_activation_bytes
    chunk = chunk_tokens(round(rows * counted) or 1, shape.vocab, torch.device("cuda" if gpu else "cpu"))
    sharded = settings.distributed.strategy == "fsdp2"
    layers = shape.projections / (devices if sharded else 1)
    moments = 8.0 * shape.adapter
    if settings.distributed.strategy == "zero2":
        moments = 0.0 if settings.distributed.offload_optimizer else moments / devices
    return {
        "weights": shape.weight_bytes * (shape.parameters - shape.projections + layers),
        "adapter and its gradient": 8.0 * shape.adapter,
        "optimizer": moments,
        "activations": rows * student * kept,
        "hidden states": rows * counted * shape.hidden * (2 * shape.weight_bytes + 4),
        "objective's chunk": (_SCRATCH if gpu else 2.0) * 4 * chunk * shape.vocab,
    }


def sampling_tensors(shape: Shape, rows: int, longest: float) -> dict[str, float]:
    """Bytes on one device while it samples so many rows, of so many tokens with their prompts at most."""
    return {
        "weights": float(shape.weight_bytes * shape.parameters),
        "adapter": 4.0 * shape.adapter,
        "keys and values": rows * shape.cache_bytes * longest,
    }
