"""One optimizer step: every lesson seen by teacher and student, one exact denominator, one clipped update (Eq. 3)."""

import time
from collections.abc import Sequence
from typing import Any

import torch
from accelerate import Accelerator

from stepalign import recipe
from stepalign.console import Console
from stepalign.errors import StepalignError
from stepalign.objectives.divergence import Metrics, divergence
from stepalign.training.policy import Policy
from stepalign.views import Lesson, View, collate, micro_batches, weights


def update(
    accelerator: Accelerator,
    policy: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    lessons: Sequence[Lesson],
    settings: recipe.Recipe,
    console: Console,
) -> dict[str, float]:
    """Learn from a step's lessons and return its metrics.

    Gradients of all micro-batches add up before the one update; each token's weight already carries the whole step's
    denominator, so that the split into micro-batches changes nothing but memory.

    Args:
        accelerator: moves, scales and clips.
        policy: as prepared by `accelerator`.
        optimizer: as prepared by `accelerator`.
        lessons: each with at least one counted token.
        settings: objective, training and optimizer are used.
        console: shows progress, and keeps the seconds of `teacher`, `student` and `optimizer`.

    Raises:
        StepalignError: loss or gradient is not finite; nothing was updated.
    """
    model: Policy = accelerator.unwrap_model(policy)
    tokens = sum(lesson.student.counted for lesson in lessons)
    summed = dict.fromkeys(_SUMMED, 0.0)
    loss_sum = first_token_kl = 0.0
    policy.train()
    with console.stage("learn", len(lessons)) as advance:
        for micro in micro_batches(lessons, settings.training.micro_batch, settings.training.micro_batch_tokens):
            start = time.perf_counter()
            teacher_hidden = model.teacher(collate([lesson.teacher for lesson in micro]).to(accelerator.device))
            _settle(accelerator.device)
            console.timed("teacher", start)

            start = time.perf_counter()
            views = [lesson.student for lesson in micro]
            loss, metrics = divergence(
                policy(collate(views).to(accelerator.device)),
                teacher_hidden,
                model.head,
                weights(views, normalize=settings.objective.normalize, sequences=len(lessons), tokens=tokens).to(
                    accelerator.device
                ),
                settings.objective,
            )
            if not torch.isfinite(loss):
                raise StepalignError(
                    f"the loss is {loss.item()} on rollouts {', '.join(lesson.rollout_id for lesson in micro)}; "
                    "nothing was updated (a lower optimizer.lr, model.dtype = 'float32'?)"
                )
            accelerator.backward(loss)
            _settle(accelerator.device)
            console.timed("student", start)

            loss_sum += loss.item()
            for name in _SUMMED:
                summed[name] += getattr(metrics, name).sum().item()
            first_token_kl += _first_tokens(metrics, views)
            advance(len(micro))
    start = time.perf_counter()
    norm = accelerator.clip_grad_norm_(model.trainable(), settings.optimizer.max_grad_norm or float("inf"))
    if not torch.isfinite(torch.as_tensor(norm)):
        raise StepalignError(f"the gradient's norm is {float(norm)}; nothing was updated (a lower optimizer.lr?)")
    optimizer.step()
    optimizer.zero_grad()
    _settle(accelerator.device)
    console.timed("optimizer", start)
    return {
        "loss": loss_sum,
        "kl": summed["kl_teacher_student"] / tokens,
        "entropy_student": summed["entropy_student"] / tokens,
        "entropy_teacher": summed["entropy_teacher"] / tokens,
        "agreement": summed["agreement"] / tokens,
        "first_token_kl": first_token_kl / len(lessons),
        "grad_norm": float(norm),
        "tokens": tokens,
        "student_tokens": sum(len(lesson.student.input_ids) for lesson in lessons),
        "teacher_tokens": sum(len(lesson.teacher.input_ids) for lesson in lessons),
    }


_SUMMED = ("kl_teacher_student", "entropy_student", "entropy_teacher", "agreement")


def _first_tokens(metrics: Metrics, views: Sequence[View]) -> float:
    """The sum over rows of the KL at the first counted token (the thinking boundary shows there)."""
    lengths = torch.tensor([view.counted for view in views])
    firsts = (lengths.cumsum(0) - lengths).to(metrics.kl_teacher_student.device)
    return float(metrics.kl_teacher_student[firsts].sum())


def _settle(device: torch.device) -> None:
    """Wait for queued work, so that a stage's seconds are its own."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def optimizer_of(policy: Policy, settings: recipe.Optimizer) -> torch.optim.Optimizer:
    """AdamW over the adapter."""
    options: dict[str, Any] = {
        "betas": settings.betas,
        "eps": settings.eps,
        "weight_decay": settings.weight_decay,
    }
    return torch.optim.AdamW(policy.trainable(), lr=settings.lr, **options)


def learning_rate(settings: recipe.Optimizer, step: int) -> float:
    """The rate of an optimizer step, counted from 1: linear warm-up, then constant."""
    return settings.lr * min(1.0, step / max(settings.warmup_steps, 1))
