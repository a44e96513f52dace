"""Memory, tokens, operations and hours of a run, before it starts.

    stepalign plan paper/stepalign --devices 4 --hardware h100

Operations are 2 a weight and token in a forward pass, as many in a backward pass (the base is frozen, so only
activations have gradients), and once more with gradient checkpointing. Attention costs 4 · layers · width for each pair
of tokens, half of them masked. Seconds are operations, or bytes read, over a share of the maker's rates; the shares are
assumptions, not measurements.

Left out: seconds on the machine that plans, because two real steps (`training.max_steps=2`) give them exactly;
communication, overlap of stages, and the adapter's own products (under one part in fifty at rank 64).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Unpack

import torch
from pydantic import PositiveInt

from stepalign import config, contexts
from stepalign.arguments import checked
from stepalign.config import machine
from stepalign.errors import StepalignError
from stepalign.losses.lm_head import chunk_tokens
from stepalign.objects import AnyRecipe, Objects, with_objects
from stepalign.planning.pipeline import enough_concurrency, simulate_step
from stepalign.planning.sizes import GPUS, Lengths, ModelSize, lengths, model_size

CRITIC_TOKENS_PER_S = 30.0
"""Assumed speed of one critique among many."""


@dataclass(frozen=True)
class Stage:
    """Tokens and operations of one stage, over all devices; its seconds where the hardware is stated."""

    tokens: float
    flops: float
    seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Estimate of a run."""

    size: ModelSize
    lengths: Lengths
    hardware: str | None
    devices: int
    memory: Mapping[str, float]
    """Bytes on one device while it learns, by part."""
    sampling_memory: Mapping[str, float]
    """Bytes on one device while it samples, by part."""
    stages: Mapping[str, Stage]
    """Of one optimizer step."""
    evaluation: Stage
    steps: int
    evaluations: int
    critic_concurrency: int | None
    """The fewest requests at once with which critics delay a step by 5 % at most. None: no critic, or no hardware."""
    waiting: float
    """Seconds a step that learning waits for critiques, with the recipe's `critic.max_concurrency`."""

    @property
    def step_seconds(self) -> float:
        """Seconds of one step: its stages, and the wait for critiques (`pipeline.simulate_step`)."""
        return self.waiting + sum(stage.seconds for name, stage in self.stages.items() if name != "critique")

    @property
    def hours(self) -> float:
        """Hours of the whole run."""
        return (self.steps * self.step_seconds + self.evaluations * self.evaluation.seconds) / 3600


@checked
def plan(
    recipe: AnyRecipe,
    *,
    hardware: str | None = None,
    devices: PositiveInt = 1,
    from_run: Path | str | None = None,
    completion_tokens: PositiveInt | None = None,
    select: bool = False,
    **objects: Unpack[Objects],
) -> Plan:
    """Estimate a recipe. The tokenizer and the problems are loaded, no weights.

    Args:
        recipe: the recipe, or its file.
        hardware: a name in `GPUS`; None estimates no seconds.
        devices: the number of GPUs that train and sample.
        from_run: the folder of an earlier run, whose lengths are taken.
        completion_tokens: tokens of a completion; None is the earlier run's mean, or the cap.
        select: estimate `stepalign select` with this recipe instead of its training.
        objects: problems, grader, critic and context in place of the recipe's (`objects.Objects`).

    Raises:
        StepalignError: unknown hardware, or model, problems or run cannot be read.
    """
    settings, from_run = with_objects(recipe, **objects), Path(from_run) if from_run else None
    if hardware is not None and hardware not in GPUS:
        raise StepalignError(f"hardware {hardware!r}: allowed are {', '.join(GPUS)}")
    machine.check_files(settings, "model", "teacher")
    gpu = hardware is not None or torch.cuda.is_available()
    size, model = model_size(settings.model, settings.adapter, gpu=gpu), settings.teacher.model_of(settings.model)
    teacher = None if model is settings.model else model_size(model, config.LoraConfig(), gpu=gpu)
    given, candidates, problems = lengths(settings, from_run=from_run, completion_tokens=completion_tokens)
    if select:
        attempts = candidates * settings.selection.num_attempts
        given = replace(given, evaluation=given.completion)
        return replace(
            estimate(settings, size, given, hardware=hardware, devices=devices, attempts=attempts),
            stages={}, memory={}, steps=0, evaluations=1, waiting=0.0, critic_concurrency=None,
        )  # fmt: skip
    attempts = problems * settings.evaluation.num_samples
    return estimate(settings, size, given, teacher=teacher, hardware=hardware, devices=devices, attempts=attempts)


def estimate(
    settings: config.Recipe,
    size: ModelSize,
    given: Lengths,
    *,
    teacher: ModelSize | None = None,
    hardware: str | None = None,
    devices: int = 1,
    attempts: int = 0,
) -> Plan:
    """Estimate a recipe for a model and lengths that are given. See `plan`.

    `teacher` has a model of its own. `attempts` are those of an evaluation.
    """
    training, rollouts, slots = settings.training, settings.training.rollouts_per_step, settings.sampler.max_num_seqs
    gpu = GPUS[hardware] if hardware else None

    def decoding(
        count: int, mean: float, longest: float, *, of: ModelSize = size, prompt: float = given.prompt
    ) -> Stage:
        """Estimate the decoding of completions that devices share, `slots` together on each."""
        tokens, context = count * mean, prompt + mean / 2
        reading = of.forward_flops(prompt)
        flops = count * reading + tokens * of.decode_flops(context)
        if gpu is None or not count:
            return Stage(tokens, flops)
        share = count / devices
        rows = min(slots, share)
        steps = max(longest, share * mean / rows)
        seconds = steps * of.decode_step_s(gpu, rows, context, eager=settings.sampler.kind == "transformers")
        return Stage(tokens, flops, share * gpu.pass_seconds(reading) + seconds)

    algorithm, of_completions = settings.algorithm, (given.completion, given.max_completion)
    stages = {}
    if isinstance(algorithm, config.SeqKDConfig):
        stages["sample"] = decoding(rollouts, *of_completions, of=teacher or size, prompt=given.teacher_prompt)
    elif not isinstance(algorithm, config.SFTConfig) or algorithm.sequences == "rollouts":
        stages["sample"] = decoding(rollouts, *of_completions)
    if isinstance(algorithm, config.RLTFSDConfig):
        stages["second turn"] = decoding(rollouts, *of_completions, prompt=given.teacher_prompt)
    concurrency = None
    if asks_critic(settings):
        seconds = given.critique / CRITIC_TOKENS_PER_S if gpu else 0.0
        stages["critique"] = Stage(rollouts * (given.critic_prompt + given.critique), 0.0, seconds)

    def learning(length: float, passes: int, products: int, updates: int = 1, of: ModelSize = size) -> Stage:
        """Estimate passes through the layers, and products of the completion with the head."""
        head = 2 * of.vocab * of.hidden * given.completion * given.read_share
        flops = examples * updates * (passes * of.forward_flops(length) + products * head)
        return Stage(examples * updates * length, flops, gpu.pass_seconds(flops) / devices if gpu else 0.0)

    examples = rollouts * given.learned_share
    student, read = (prompt + given.completion * given.read_share for prompt in (given.prompt, given.teacher_prompt))
    # The loss makes its products with the head in the student's stage: the student's, the teacher's, the gradient's.
    if algorithm.reference == "teacher":
        stages["teacher"] = learning(read, settings.teacher.passes, 0, algorithm.teacher_readings, teacher or size)
    elif algorithm.reference == "base":
        stages["base"] = learning(student, 1, 1, algorithm.num_updates)
    passes, products = 3 if training.gradient_checkpointing else 2, 3 if algorithm.uses_teacher else 2
    if settings.adapter is None:  # the weights have gradients too
        passes, products = passes + 1, products + 1
    stages["student"] = learning(student, passes, products, algorithm.num_updates)
    waiting = 0.0
    if gpu and isinstance(settings.critic, config.OpenAICriticConfig) and "critique" in stages:
        # Lengths between 2·mean − longest and longest have that mean; later waves begin when earlier ones end.
        earliest = max(0.0, 2 * given.completion / given.max_completion - 1) / math.ceil(rollouts / devices / slots)
        sampled = [stages["sample"].seconds * (earliest + (1 - earliest) * (n + 1) / rollouts) for n in range(rollouts)]
        latencies = [stages["critique"].seconds] * rollouts
        size_of_pass = training.micro_batch_size * devices
        learned = sum(
            stage.seconds for name, stage in stages.items() if name not in {"sample", "second turn", "critique"}
        )
        waiting = simulate_step(
            sampled, latencies, max_concurrency=settings.critic.max_concurrency, micro_batch_size=size_of_pass,
            learning=learned, overlap=training.overlap,
        ).waiting  # fmt: skip
        concurrency = enough_concurrency(sampled, latencies, micro_batch_size=size_of_pass, learning=learned)
    longest = given.prompt + max(given.max_completion, given.evaluation if attempts else 0.0)
    rows = min(slots, math.ceil(max(rollouts, attempts) / devices))
    return Plan(
        size=size,
        lengths=given,
        hardware=hardware,
        devices=devices,
        memory=_learning_memory(settings, size, given, devices, teacher),
        sampling_memory={
            "weights": size.bytes,
            "adapter": 4.0 * size.adapter,
            "keys and values": rows * size.cache_bytes * longest,
        },
        stages=stages,
        evaluation=decoding(attempts, given.evaluation, given.evaluation),
        steps=training.max_steps,
        evaluations=1 + math.ceil(training.max_steps / (training.eval_steps or training.max_steps)) if attempts else 0,
        critic_concurrency=concurrency,
        waiting=waiting,
    )


def asks_critic(settings: config.Recipe) -> bool:
    """Return whether a model critic is asked. A context without a critique, RefSol's for instance, leaves it idle."""
    algorithm, critic = settings.algorithm, settings.critic
    if critic is None or not critic.is_remote or not algorithm.uses_teacher:
        return False
    needs = contexts.load(settings.context.design).needs_critique or isinstance(algorithm, config.RLTFFMConfig)
    if isinstance(algorithm, config.CreditGRPOConfig):
        needs |= algorithm.credit == "verdicts"
    if isinstance(algorithm, config.DistillationConfig):
        needs |= algorithm.loss_span == "until_first_error"
    return needs


def _learning_memory(
    settings: config.Recipe, size: ModelSize, given: Lengths, devices: int, teacher: ModelSize | None
) -> dict[str, float]:
    """Return bytes on one device at the peak of the student's pass, that of the longest rollouts."""
    training, distributed = settings.training, settings.distributed
    completion = given.read_share * given.max_completion
    student = given.prompt + completion
    rows = min(training.micro_batch_size, max(1, round(training.rollouts_per_step * given.learned_share)))
    if training.max_tokens_per_micro_batch is not None:
        rows = max(1, min(rows, int(training.max_tokens_per_micro_batch // student)))
    activations = size.layers * size.layer_activation_bytes
    if training.gradient_checkpointing:
        activations = size.layers * size.hidden * size.weight_bytes + size.layer_activation_bytes
    chunk = chunk_tokens(round(rows * completion) or 1, size.vocab, torch.device("cuda"))
    layers = size.projections / (devices if distributed.strategy == "fsdp2" else 1)
    moments = 8.0 * size.trained
    if distributed.strategy == "zero2":
        moments = 0.0 if distributed.offload_optimizer else moments / devices
    sizes = {"weights": size.parameters, "adapter": size.adapter, "rank": settings.lora.r}
    held = 0.0
    if settings.algorithm.reference == "teacher":
        held = teacher.bytes if teacher else settings.teacher.memory_bytes(**sizes)
    elif settings.algorithm.reference == "base":
        held = config.BaseTeacherConfig().memory_bytes(**sizes)
    return {
        "weights": size.bytes - size.projection_bytes * (size.projections - layers),
        **({"adapter and its gradient": 8.0 * size.adapter} if size.adapter else {"gradient": 4.0 * size.parameters}),
        **({"teacher": held} if held else {}),
        "optimizer": moments,
        "activations": rows * student * activations,
        "hidden states": rows * completion * size.hidden * (2 * size.weight_bytes + 4),
        # The student's logits, the teacher's, and working room.
        "logits of a chunk": 6.0 * 4 * chunk * size.vocab,
    }
