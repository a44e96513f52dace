"""Bytes on one device, part by part: while the policy learns and while rollouts are sampled."""

import torch

from stepalign import config
from stepalign.losses.lm_head import chunk_tokens
from stepalign.planning.sizes import Gpu, Lengths, ModelSize


def learning_memory(
    settings: config.Recipe, size: ModelSize, given: Lengths, devices: int, teacher: ModelSize | None
) -> dict[str, float]:
    """Return bytes at the peak of the student's pass, that of the longest rollouts.

    `teacher` has a model of its own.
    """
    training, distributed = settings.training, settings.distributed
    completion = given.read_share * given.max_completion
    student = given.prompt + completion
    if given.feedback:  # the pass over a critique has the attempt in its prompt
        longer = given.max_completion - given.completion
        completion = max(completion, given.feedback_written + longer)
        student = max(student, min(given.feedback + 2 * longer, settings.teacher.max_length))
    rows = min(training.micro_batch_size, max(1, round(training.rollouts_per_step * given.learned_share)))
    if training.max_tokens_per_micro_batch is not None:
        rows = max(1, min(rows, int(training.max_tokens_per_micro_batch // student)))
    activations = size.layers * size.layer_activation_bytes
    if training.gradient_checkpointing:
        activations = size.layers * size.hidden * size.weight_bytes + size.layer_activation_bytes
    chunk = chunk_tokens(round(rows * completion) or 1, size.vocab, torch.device("cuda"))
    layers = size.projections / (devices if distributed.strategy == "fsdp2" else 1)
    return {
        "weights": size.bytes - size.projection_bytes * (size.projections - layers),
        **({"adapter and its gradient": 8.0 * size.adapter} if size.adapter else {"gradient": 4.0 * size.parameters}),
        **held_memory(settings, size, devices, teacher),
        "activations": rows * student * activations,
        "hidden states": rows * completion * size.hidden * (2 * size.weight_bytes + 4),
        # The student's logits, the teacher's, and working room.
        "logits of a chunk": 6.0 * 4 * chunk * size.vocab,
    }


def held_memory(settings: config.Recipe, size: ModelSize, devices: int, teacher: ModelSize | None) -> dict[str, float]:
    """Return bytes of the teacher and of the optimizer, which stay while rollouts are sampled."""
    sizes = {"weights": size.parameters, "adapter": size.adapter, "rank": settings.lora.r}
    held = 0.0
    if settings.algorithm.reference == "teacher":
        held = teacher.bytes if teacher else settings.teacher.memory_bytes(**sizes)
    elif settings.algorithm.reference == "base":
        held = config.BaseTeacherConfig().memory_bytes(**sizes)
    moments = 8.0 * size.trained
    if settings.distributed.strategy == "zero2":
        moments = 0.0 if settings.distributed.offload_optimizer else moments / devices
    return {**({"teacher": held} if held else {}), "optimizer": moments}


def sampler_memory(
    sampler: config.SamplerConfig, size: ModelSize, gpu: Gpu | None, *, tokens: float
) -> dict[str, float]:
    """Return bytes that the sampler holds beside the training model. `tokens` are those of all its sequences.

    vLLM in process has weights of its own, and fills its share of a device that is stated with keys and values.
    """
    cache = tokens * size.cache_bytes
    if not isinstance(sampler, config.VllmConfig):
        return {} if sampler.is_remote else {"keys and values": cache}
    weights = float(size.weight_bytes * size.parameters)
    if gpu is not None:
        cache = max(0.0, sampler.gpu_memory_utilization * gpu.memory - weights)
    return {"sampler's weights": weights, "keys and values": cache}
