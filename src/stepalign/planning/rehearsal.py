"""The machine at hand, measured: the very code of a step on some layers of the model, with random weights.

What a step takes depends on more than rates of products: on small models calls cost as much as arithmetic, decoding
reads weights once for all rows that are still alive, objective and sampling work on whole vocabularies, and freed
memory does not all go back to the system. So the pieces are done, not modelled: prompts read and tokens drawn for
several numbers of rows, an update on one micro-batch. Each is done on a model of one layer and on one of several,
whose weights do not fit a cache, in a process of its own; since all layers are alike, seconds and bytes of the whole
model are lines in their number.

What would take too long is rehearsed smaller, and scaled by its operations. Left out: other samplers than the one in
process, grading, critics, several devices at once.
"""

import os
import resource
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path
from statistics import fmean, median
from tempfile import TemporaryDirectory
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils import logging as transformers_logging

from stepalign import config, contexts, models
from stepalign.algorithms.distillation_loss import DistillationLoss
from stepalign.algorithms.grpo import GRPOLoss, PolicyGradientExample
from stepalign.console import Console
from stepalign.distributed.strategy import DataParallel
from stepalign.planning.estimate import Lengths, learning, learning_tensors, sampling_tensors, updates
from stepalign.planning.shape import Shape
from stepalign.policy import ADAPTER, Policy
from stepalign.rollouts import Request
from stepalign.rollouts.transformers import TransformersSampler
from stepalign.trainer.accumulation import optimizer_of, update
from stepalign.views import DistillationExample, View, micro_batches

_CACHE_BYTES = 128 << 20
"""Weights beyond any cache: what they take to read is then what memory takes."""
_LAYERS = 4
"""The least that are measured against one layer, so that noise is not multiplied by much."""
_FLOPS = 4e11
"""The most that is spent on one piece, some seconds of two cores."""
_SHARP = 100.0
"""Makes random logits as decided as a trained model's: from a flat distribution a nucleus takes far longer to draw."""
_TICKS = 7
_ROUNDS = 3
_ID = 5
"""A token like any other."""


@dataclass(frozen=True, kw_only=True)
class Rehearsed:
    """This machine's CPU, as measured with one model and recipe. See `hardware.Device`."""

    memory: float
    process: Mapping[str, float]
    """Bytes beside tensors: interpreter, libraries, passing results, room that the allocator keeps."""
    reading: float
    frozen: float
    student: float
    optimizer: float
    ticks: Mapping[int, float]
    """Seconds by rows, with `context` tokens before them."""
    context: float
    attending: float
    """Seconds more for each row and token of context."""
    name: str = "this machine's CPU"
    gpu: bool = False

    def tick(self, rows: float, context: float) -> float:
        """Between the numbers of rows that were measured a line; beyond them as much for each row."""
        counts = sorted(self.ticks)
        low = max((count for count in counts if count <= rows), default=counts[0])
        high = min((count for count in counts if count >= rows), default=counts[-1])
        share = (rows - low) / (high - low) if high > low else 0.0
        seconds = self.ticks[low] + share * (self.ticks[high] - self.ticks[low])
        seconds *= max(1.0, rows / counts[-1])
        return max(0.0, seconds + self.attending * rows * (context - self.context))

    def describe(self) -> str:
        """What was measured."""
        ticks = ", ".join(f"{1000 * seconds:,.1f} ms for {rows}" for rows, seconds in self.ticks.items())
        return (
            f"measured: {self.reading / 1e9:,.0f} GFLOP/s in reading prompts, {self.frozen / 1e9:,.0f} in passes "
            f"without gradients, {self.student / 1e9:,.0f} with; a token takes {ticks} rows"
        )


def rehearse(settings: config.Recipe, shape: Shape, lengths: Lengths, evaluated: int) -> Rehearsed:
    """Measure this machine's CPU.

    Args:
        settings: the recipe, whose micro-batches and sampler's batches are rehearsed.
        shape: the solver's.
        lengths: of a rollout.
        evaluated: completions that an evaluation draws.

    Raises:
        StepalignError: the model cannot be built.
    """
    layer_bytes = shape.weight_bytes * shape.projections // shape.layers
    several = min(shape.layers, 1 + max(_LAYERS, -(-_CACHE_BYTES // layer_bytes)))
    scene = _Scene(settings, shape, lengths, evaluated, several)
    one, more = (_apart(scene, layers) for layers in (1, several))
    whole = {
        piece: found + (shape.layers - 1) * max(0.0, more[piece] - found) / max(1, several - 1)
        for piece, found in one.items()
    }
    # Without a pass of its own, nothing asks for the rate.
    frozen = next((stage for stage in ("teacher", "base") if stage in scene.flops), "student")
    return Rehearsed(
        memory=float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")),
        process={
            kind: max(one["empty"], whole[kind] - sum(tensors.values())) for kind, tensors in scene.tensors.items()
        },
        reading=scene.rows[-1] * shape.forward_flops(scene.context) / whole["read"],
        frozen=scene.flops[frozen] / whole[frozen],
        student=scene.flops["student"] / whole["student"],
        optimizer=whole["optimizer"],
        ticks={rows: whole[f"tick {rows}"] for rows in scene.rows},
        context=scene.context,
        attending=max(0.0, whole[f"tick {scene.rows[-1]}"] - whole["short tick"])
        / (scene.rows[-1] * max(1, scene.context - 1)),
    )


class _Scene:
    """What is rehearsed: a micro-batch from the middle of a step, and rows that decode."""

    def __init__(self, settings: config.Recipe, shape: Shape, lengths: Lengths, evaluated: int, layers: int) -> None:
        self.settings = settings
        cut = layers / shape.layers
        each = sum(flops for _, flops in learning(settings, shape, lengths).values()) * cut
        if each > _FLOPS:
            lengths = lengths.times(_FLOPS / each)
        lessons = list(_lessons(settings, lengths))
        passes = list(
            micro_batches(lessons, settings.training.micro_batch_size, settings.training.max_tokens_per_micro_batch)
        )
        fit = max(1, int(_FLOPS / each))
        self.micro = passes[len(passes) // 2][:fit]
        self.several = [lesson for one in passes[:: max(1, len(passes) // 4)] for lesson in one[:fit]]
        # As many operations as so many mean lessons have: padding is part of what a pass costs.
        share = sum(map(_read, self.micro)) / fmean(map(_read, lessons)) / updates(settings)
        self.flops = {stage: flops * share for stage, (_, flops) in learning(settings, shape, lengths).items()}
        most = max(1, int(_FLOPS / (cut * 2 * shape.projections)))
        self.context = min(most, max(1, round(lengths.prompt + lengths.completion / 2)))
        sizes = [
            max(1, min(count, settings.sampler.max_num_seqs, most // self.context))
            for count in (settings.training.rollouts_per_step, evaluated)
        ]
        self.rows = sorted({1, -(-max(sizes) // 4), *sizes})
        self.tensors = {
            "learning": learning_tensors(settings, shape, lengths, gpu=False),
            "sampling": sampling_tensors(shape, self.rows[-1], self.context + _TICKS),
        }

    def measure(self, model: config.ModelConfig) -> dict[str, float]:
        """Seconds and bytes of every piece on a model."""
        found = {"empty": _peak()}
        policy = models.load_policy(model, self.settings.lora, self.settings.seed, torch.device("cpu"))
        for rows in self.rows:
            found["read"], found[f"tick {rows}"] = self._draw(policy, rows, self.context)
        _, found["short tick"] = self._draw(policy, self.rows[-1], 1)
        found["sampling"] = _peak()
        with suppress(OSError):  # elsewhere than on Linux the peak is that of both
            Path("/proc/self/clear_refs").write_text("5")
        return {**found, **self._learn(policy), "learning": _peak()}

    def _learn(self, policy: Policy) -> dict[str, float]:
        settings = self.settings
        if settings.training.gradient_checkpointing:
            policy.base.gradient_checkpointing_enable({"use_reentrant": False})
        optimizer = optimizer_of(policy, settings.optimizer)
        taken: dict[str, list[float]] = {}
        # First passes of several lengths, as in a step: they fill caches and pools, and make the peak.
        for micro in (self.several, *[self.micro] * _ROUNDS):
            with Console(quiet=True) as console:
                update(DataParallel(), policy, optimizer, micro, _learner(settings), settings, console)
            for stage, seconds in console.seconds.items():
                taken.setdefault(stage, []).append(seconds)
        return {stage: median(seconds[1:]) for stage, seconds in taken.items() if stage != "learn"}

    def _draw(self, policy: Policy, rows: int, context: int) -> tuple[float, float]:
        """Seconds of reading prompts, and of one more token for every row."""
        sampling = self.settings.sampling.model_copy(update={"max_new_tokens": _TICKS})
        sampler = TransformersSampler(policy.model, eos_ids=frozenset(), batch_size=rows)
        requests = [Request(id=str(row), prompt_ids=(_ID,) * context, seed=row) for row in range(rows)]
        starts: list[float] = []
        hook = policy.base.get_decoder().register_forward_pre_hook(lambda *_: starts.append(time.perf_counter()))
        list(sampler.sample(requests, sampling, adapter=ADAPTER))
        hook.remove()
        taken = [after - before for before, after in pairwise(starts)]
        tick = median(taken[1:])
        return max(taken[0] - tick, tick / 10), tick


def _read(lesson: DistillationExample | PolicyGradientExample) -> int:
    return len(lesson.student.input_ids)


def _lessons(settings: config.Recipe, lengths: Lengths) -> Iterator[DistillationExample | PolicyGradientExample]:
    """A step's, of no meaning."""
    # A critique copies the attempt's steps, so what the teacher is shown grows with the attempt.
    copied = contexts.load(settings.context.template).needs_critique
    count = max(1, round(settings.training.rollouts_per_step * lengths.taught))
    for number, drawn in enumerate(lengths.drawn(count, lengths.completion)):
        read = max(1, round(drawn * lengths.reached))
        written = (_ID,) * read
        student = View(prompt_ids=(_ID,) * round(lengths.prompt), completion_ids=written, loss_start=0, loss_stop=read)
        if isinstance(settings.algorithm, config.DistillationConfig):
            shown = lengths.teacher_prompt - lengths.prompt
            if copied:
                shown *= drawn / lengths.completion
            before = (_ID,) * max(1, round(lengths.prompt + shown))
            teacher = View(prompt_ids=before, completion_ids=written, loss_start=0, loss_stop=read)
            yield DistillationExample(rollout_id=str(number), student=student, teacher=teacher)
        else:
            yield PolicyGradientExample(rollout_id=str(number), student=student, advantage=1.0)


def _apart(scene: _Scene, layers: int) -> dict[str, float]:
    """Measure the recipe's model, but for its number of layers and its weights, in a process of its own."""
    settings = scene.settings
    config = AutoConfig.from_pretrained(settings.model.location, revision=settings.model.revision)
    text = config.get_text_config()
    text.num_hidden_layers = layers
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[:layers]
    threads = torch.get_num_threads()
    with (
        TemporaryDirectory() as folder,
        ProcessPoolExecutor(1, get_context("spawn"), torch.set_num_threads, (threads,)) as pool,
    ):
        transformers_logging.disable_progress_bar()
        whole = AutoModelForCausalLM.from_config(config)
        whole.get_output_embeddings().weight.data.mul_(_SHARP)
        whole.save_pretrained(folder)
        model = settings.model.model_copy(update={"name_or_path": folder, "revision": None})
        return pool.submit(scene.measure, model).result()


def _learner(settings: config.Recipe) -> Any:
    if isinstance(settings.algorithm, config.DistillationConfig):
        return DistillationLoss(settings.algorithm)
    assert isinstance(settings.algorithm, config.GRPOConfig)
    return GRPOLoss(settings.algorithm, settings.sampling.temperature)


def _peak() -> float:
    """Bytes that this process held at most. Linux's own count, since `getrusage` begins with the parent's."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return 1024.0 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return 1024.0 * next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
