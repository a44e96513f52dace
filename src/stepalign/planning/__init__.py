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

from stepalign import config
from stepalign.arguments import checked
from stepalign.config import machine
from stepalign.errors import StepalignError
from stepalign.objects import AnyRecipe, Objects, with_objects
from stepalign.planning.memory import held_memory, learning_memory, sampler_memory
from stepalign.planning.sizes import GPUS, Lengths, ModelSize, lengths, model_size
from stepalign.planning.stages import Devices, Stage, critic_wait, sampled_and_made, step_stages


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
    if select:  # attempts every problem, before any is held out
        every = settings.problems.model_copy(update={"holdout": 0, "evaluation": None})
        settings = settings.model_copy(update={"problems": every})
    given, candidates, problems = lengths(settings, from_run=from_run, completion_tokens=completion_tokens)
    if select:
        attempts = candidates * settings.selection.num_attempts
        given = replace(given, evaluation=given.completion)
        found = estimate(settings, size, given, hardware=hardware, devices=devices, attempts=attempts)
        trainer = {"adapter", "teacher", "optimizer"} | ({"weights"} if settings.sampler.is_remote else set())
        memory = {name: part for name, part in found.sampling_memory.items() if name not in trainer}
        return replace(
            found, stages={}, memory={}, sampling_memory=memory, steps=0, evaluations=1, waiting=0.0,
            critic_concurrency=None,
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
    training, sampler = settings.training, settings.sampler
    gpu = GPUS[hardware] if hardware else None
    where = Devices(gpu=gpu, count=devices, slots=sampler.max_num_seqs, eager=sampler.kind == "transformers")
    stages = step_stages(settings, size, given, where, teacher)
    waiting, concurrency = critic_wait(settings, given, where, stages)
    longest = given.prompt + max(given.max_completion, given.evaluation if attempts else 0.0)
    rows = min(sampler.max_num_seqs, math.ceil(max(sampled_and_made(settings)[0], attempts) / devices))
    memory = learning_memory(settings, size, given, devices, teacher)
    engine = sampler_memory(sampler, size, gpu, tokens=rows * longest)
    if isinstance(sampler, config.VllmConfig) and not sampler.enable_sleep_mode:
        memory |= engine
    return Plan(
        size=size,
        lengths=given,
        hardware=hardware,
        devices=devices,
        memory=memory,
        sampling_memory={
            "weights": size.bytes,
            "adapter": 4.0 * size.adapter,
            **held_memory(settings, size, devices, teacher),
            **engine,
        },
        stages=stages,
        evaluation=where.decoding(size, attempts, given.evaluation, given.evaluation, prompt=given.prompt),
        steps=training.max_steps,
        evaluations=1 + math.ceil(training.max_steps / (training.eval_steps or training.max_steps)) if attempts else 0,
        critic_concurrency=concurrency,
        waiting=waiting,
    )
