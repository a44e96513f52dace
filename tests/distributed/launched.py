"""What each process of `test_distribution` runs: updates in all processes, held against the same in one.

torchrun … distributed.py RECIPE updates.json      (or `die`: one process ends while the other waits)
"""

import copy
import itertools
import json
import os
import random
import sys
from pathlib import Path

import torch
from torch import distributed

from stepalign import config, models
from stepalign.algorithms.base import StepExamples
from stepalign.algorithms.distillation_loss import DistillationExample, DistillationLoss
from stepalign.algorithms.grpo import GRPO, PolicyGradientExample
from stepalign.console import Console
from stepalign.distributed.process import init_world
from stepalign.distributed.strategy import DataParallel, ParallelStrategy, build_strategy
from stepalign.policy import Policy
from stepalign.trainer.accumulation import local_passes, update
from stepalign.views import View


def examples(count: int, objective: config.AlgorithmConfig) -> list[DistillationExample] | list[PolicyGradientExample]:
    draws = random.Random(0)

    def ids(length: int) -> tuple[int, ...]:
        return tuple(draws.randrange(300) for _ in range(length))

    made = []
    for number in range(count):
        written = ids(3 + 5 * number)
        span = {"completion_ids": written, "loss_start": 0, "loss_stop": len(written)}
        student, teacher = View(prompt_ids=ids(4), **span), View(prompt_ids=ids(11 + number), **span)
        made.append((str(number), student, teacher))
    if isinstance(objective, config.GRPOConfig):
        return [
            PolicyGradientExample(rollout_id=name, student=view, advantage=draws.uniform(-1, 1))
            for name, view, _ in made
        ]
    return [DistillationExample(rollout_id=name, student=student, teacher=teacher) for name, student, teacher in made]


def loss_of(settings: config.Recipe) -> DistillationLoss | GRPO:
    if isinstance(settings.algorithm, config.GRPOConfig):
        return GRPO(settings.algorithm, temperature=settings.sampling.temperature)
    return DistillationLoss(settings.algorithm, max_tokens=settings.training.max_tokens_per_micro_batch)


def policy(settings: config.Recipe) -> Policy:
    loaded = models.load_policy(settings.model, settings.lora, 0, torch.device("cpu"))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in loaded.named_parameters():
            if "lora_B" in name:
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    return loaded


def moved(
    strategy: ParallelStrategy, model: Policy, count: int, settings: config.Recipe
) -> tuple[torch.Tensor, dict[str, float]]:
    """The adapter after two updates with AdamW, and the last one's metrics. Its eps is large so that scale shows."""
    zero_gradient = [View(prompt_ids=(1,), completion_ids=(2, 3, 4), loss_start=0, loss_stop=3)]
    step_examples = StepExamples(examples=examples(count, settings.algorithm), zero_gradient=zero_gradient)
    training, loss = settings.training, loss_of(settings)
    optimizer = strategy.prepare(model, torch.optim.AdamW(model.trainable(), lr=0.1, eps=0.1))
    with Console(quiet=True) as console:
        for _ in range(2):
            metrics = update(
                loss,
                model,
                strategy,
                optimizer,
                step_examples,
                local_passes(
                    strategy, step_examples.examples, training.micro_batch_size, training.max_tokens_per_micro_batch
                ),
                console,
                loss_agg_mode=settings.algorithm.loss_agg_mode,
                max_grad_norm=settings.optimizer.max_grad_norm,
            )
    return torch.cat([parameter.detach().flatten() for parameter in model.trainable()]), metrics


def compare_updates(settings: config.Recipe, out: Path) -> None:
    world = init_world(settings.distributed.num_processes)
    start = policy(settings)
    before = torch.cat([parameter.detach().flatten() for parameter in start.trainable()])
    strategy = build_strategy(settings.distributed, world, torch.device("cpu"))
    found = {}
    for count, normalize, size in itertools.product((1, 4, 7), ("seq-mean-token-mean", "token-mean"), (1, 3)):
        chosen = settings.model_copy(
            update={
                "algorithm": settings.algorithm.model_copy(update={"loss_agg_mode": normalize}),
                "training": settings.training.model_copy(update={"micro_batch_size": size}),
            }
        )
        alone = copy.deepcopy(start)
        wanted, metrics_of_one = moved(DataParallel(), alone, count, chosen)
        mine, metrics = moved(strategy, copy.deepcopy(start), count, chosen)
        everyones = world.gather([mine])
        found[f"{count} examples, {normalize}, {size} a micro-batch"] = {
            "moved": (wanted - before).abs().max().item(),
            "difference": (mine - wanted).abs().max().item(),
            "processes differ by": max((other - mine).abs().max().item() for other in everyones),
            "metrics": metrics,
            "metrics of one": metrics_of_one,
        }
    if world.is_main:
        out.write_text(json.dumps(found))
    distributed.destroy_process_group()


def die(settings: config.Recipe) -> None:
    """End one process while the other waits for it."""
    world = init_world(settings.distributed.num_processes)
    if world.rank == 1:
        os._exit(3)
    world.gather([0])


if __name__ == "__main__":
    recipe = config.load(Path(sys.argv[1]))
    die(recipe) if sys.argv[2] == "die" else compare_updates(recipe, Path(sys.argv[2]))
