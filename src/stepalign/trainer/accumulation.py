"""Gradient accumulation: one exact denominator, one clipped update an optimizer step.

Each token's weight carries the denominator of the whole step. So the split into micro-batches, and of these over
processes, changes memory and time alone.
"""

import math
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Generic, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from stepalign import config
from stepalign.algorithms.base import Loss, StepExamples
from stepalign.collate import Batch, collate, micro_batches
from stepalign.console import Console
from stepalign.distributed.strategy import ParallelStrategy
from stepalign.errors import StepalignError
from stepalign.losses.log_probs import scores
from stepalign.losses.weights import LossAggMode, token_weights
from stepalign.policy import Policy
from stepalign.views import TrainingExample

E = TypeVar("E", bound=TrainingExample)


class GradientAccumulator(Generic[E]):
    """Gradients of one optimizer step, summed over micro-batches.

    While critiques still arrive, the number of examples is not known. The denominator is then an estimate, and `step`
    rescales the sums.
    """

    def __init__(
        self,
        loss: Loss[E],
        policy: Policy,
        strategy: ParallelStrategy,
        console: Console,
        *,
        loss_agg_mode: LossAggMode,
        sequences: int,
        tokens: int,
        sampler_logprobs: Mapping[str, Sequence[float]] | None = None,
    ) -> None:
        """Begin a step.

        Args:
            loss: computed on each micro-batch.
            policy: as prepared by `strategy`.
            strategy: sums gradients over processes.
            console: keeps the seconds of the reference pass, `student` and `optimizer`.
            loss_agg_mode: the mean over sequences, or over tokens.
            sequences: views with loss tokens in the step over all processes, known or estimated.
            tokens: their loss tokens.
            sampler_logprobs: by rollout id, the sampler's own log-probabilities of the completion's tokens. They are
                compared with the policy's; None compares nothing.
        """
        self._loss, self._policy, self._strategy, self._console = loss, policy, strategy, console
        self._loss_agg_mode, self._sequences, self._tokens = loss_agg_mode, sequences, tokens
        self._sampler_logprobs = sampler_logprobs or {}
        self._mismatches: list[float] = []
        self._sums: dict[str, float] = defaultdict(float)
        self._counts: dict[str, int] = defaultdict(int)
        policy.train()

    def add(self, examples: Sequence[E], *, is_padding: bool = False, last: bool = False) -> None:
        """Run one forward and backward pass.

        Args:
            examples: one micro-batch.
            is_padding: True for a pass of weight zero, which only keeps processes in step.
            last: True for the step's last pass, where that is known.

        Raises:
            StepalignError: the loss is not finite; nothing was updated.
        """
        device = self._strategy.device
        views = [example.student for example in examples]
        batch = collate(views, share_prefixes=self._policy.shares_prefixes).to(device)
        start = time.perf_counter()
        with self._strategy.equal_passes(self._policy, batch):
            reference = self._loss.reference_forward(self._policy, examples, batch)
        if reference is not None:
            _synchronize(device)
            self._console.timed(self._loss.reference_stage, start)
        start = time.perf_counter()
        lengths = [view.num_loss_tokens for view in views]
        weights = token_weights(lengths, self._loss_agg_mode, sequences=self._sequences, tokens=self._tokens)
        hidden = self._policy(batch)
        value, metrics = self._loss.loss(
            hidden, reference, self._policy.head, examples, batch, weights.to(device) * (not is_padding)
        )
        if not torch.isfinite(value):
            raise StepalignError(
                f"the loss is {value.item()} on rollouts {', '.join(example.rollout_id for example in examples)}; "
                "nothing was updated (a lower optimizer.lr, model.dtype = 'float32'?)"
            )
        self._strategy.backward(value, last=last)
        _synchronize(device)
        self._console.timed("student", start)
        if is_padding:
            return
        self._sums["loss"] += value.item()
        self._compare_with_sampler(hidden.detach(), batch, examples)
        self._add_metrics(metrics)
        if "kl" in metrics:  # the thinking boundary shows there
            self._add_metrics({"first_token_kl": _first_known(metrics["kl"], lengths)})

    def _add_metrics(self, metrics: Mapping[str, Float[Tensor, " values"]]) -> None:
        """Add values to their sums, NaN aside: a token that a part of the loss leaves out has none."""
        for name, values in metrics.items():
            known = values[~values.isnan()]
            self._sums[name] += known.sum().item()
            self._counts[name] += len(known)

    def _compare_with_sampler(
        self, hidden: Float[Tensor, "tokens hidden"], batch: Batch, examples: Sequence[E]
    ) -> None:
        """Add each rollout's mean |policy − sampler| in nats a token, over its loss tokens."""
        if not any(example.rollout_id in self._sampler_logprobs for example in examples):
            return
        log_probs = scores(hidden, self._policy.head, batch.targets).log_probs.cpu()
        lengths = [example.student.num_loss_tokens for example in examples]
        for example, values in zip(examples, torch.split(log_probs, lengths), strict=True):
            sampled = self._sampler_logprobs.get(example.rollout_id)
            if sampled is not None:
                own = torch.tensor(sampled[example.student.loss_start : example.student.loss_stop])
                self._mismatches.append((values - own).abs().mean().item())

    def step(
        self, optimizer: torch.optim.Optimizer, step_examples: StepExamples[E], max_grad_norm: float
    ) -> dict[str, float]:
        """Update the policy and return the step's metrics.

        Args:
            optimizer: over the policy's adapter.
            step_examples: the whole step's, over all processes.
            max_grad_norm: the global norm that gradients are clipped to; 0 is off.

        Raises:
            StepalignError: the gradient is not finite; nothing was updated.
        """
        start = time.perf_counter()
        examples, views = step_examples.examples, step_examples.views
        if self._loss_agg_mode == "token-mean":
            scale = self._tokens / sum(view.num_loss_tokens for view in views)
        else:
            scale = self._sequences / len(views)
        if scale != 1:
            for parameter in self._policy.trainable():
                if parameter.grad is not None:
                    parameter.grad *= scale
            self._sums["loss"] *= scale
        grad_norm = self._strategy.step(self._policy, optimizer, max_grad_norm)
        _synchronize(self._strategy.device)
        self._console.timed("optimizer", start)

        totals: dict[str, float] = defaultdict(float)
        counts: dict[str, int] = defaultdict(int)
        for sums, known in self._strategy.world.gather([(dict(self._sums), dict(self._counts))]):
            for name, value in sums.items():
                totals[name] += value
                counts[name] += known.get(name, 0)
        metrics = {"loss": totals.pop("loss")}
        metrics |= {name: total / counts[name] for name, total in totals.items() if counts[name]}
        metrics |= {"grad_norm": grad_norm, "tokens": sum(example.student.num_loss_tokens for example in examples)}
        if mismatches := self._strategy.world.gather(self._mismatches):
            metrics["sampler_mismatch"] = sum(mismatches) / len(mismatches)
            metrics["sampler_mismatch_max"] = max(mismatches)
        metrics["student_tokens"] = sum(len(example.student.input_ids) for example in examples)
        return metrics | {f"{name}_tokens": count for name, count in self._loss.reference_tokens(examples).items()}


READ = ("student_tokens", "teacher_tokens", "base_tokens")
"""Metrics of an update that a step adds up: tokens of the views that each model reads."""

Pass = tuple[list[E], bool, bool]
"""A micro-batch, True where it is padding, and True where it is known to be the step's last."""


def local_passes(
    strategy: ParallelStrategy,
    examples: Sequence[E],
    size: int,
    max_tokens: int | None,
    share_prefixes: bool = False,
) -> Iterator[Pass[E]]:
    """Yield this process' passes over a step's examples, which are all there.

    Args:
        strategy: divides micro-batches over processes.
        examples: the whole step's, in every process.
        size: examples in a micro-batch, at most.
        max_tokens: its padded tokens, at most (`collate.micro_batches`).
        share_prefixes: let views that begin alike share a row.
    """
    batches = list(micro_batches(examples, size, max_tokens, share_prefixes=share_prefixes))
    passes = list(strategy.local_micro_batches(batches))
    for number, (micro_batch, is_own) in enumerate(passes, 1):
        yield micro_batch, not is_own, number == len(passes)


def update(
    loss: Loss[E],
    policy: Policy,
    strategy: ParallelStrategy,
    optimizer: torch.optim.Optimizer,
    step_examples: StepExamples[E],
    passes: Iterable[Pass[E]],
    console: Console,
    *,
    loss_agg_mode: LossAggMode,
    max_grad_norm: float,
    lengths: Sequence[int] | None = None,
    sampler_logprobs: Mapping[str, Sequence[float]] | None = None,
) -> dict[str, float]:
    """Do one optimizer update and return its metrics; without examples there is no update.

    Args:
        loss: computed on each micro-batch.
        policy: as prepared by `strategy`.
        strategy: sums gradients over processes.
        optimizer: over the policy's adapter.
        step_examples: the whole step's, in every process. It may grow while `passes` is read.
        passes: this process' micro-batches.
        console: shows progress and keeps the stages' seconds.
        loss_agg_mode: the mean over sequences, or over tokens.
        max_grad_norm: the global norm that gradients are clipped to; 0 is off.
        lengths: estimated loss tokens of each sequence, where `step_examples` grows.
        sampler_logprobs: see `GradientAccumulator`.

    Raises:
        StepalignError: loss or gradient is not finite; nothing was updated.
    """
    lengths = lengths or [view.num_loss_tokens for view in step_examples.views]
    accumulator = GradientAccumulator(
        loss,
        policy,
        strategy,
        console,
        loss_agg_mode=loss_agg_mode,
        sequences=len(lengths),
        tokens=sum(lengths),
        sampler_logprobs=sampler_logprobs,
    )
    with console.stage("learn", len(lengths)) as advance:
        for micro_batch, is_padding, last in passes:
            accumulator.add(micro_batch, is_padding=is_padding, last=last)
            advance(len(micro_batch))
    return accumulator.step(optimizer, step_examples, max_grad_norm) if step_examples.examples else {}


def adamw(policy: Policy, optimizer: config.OptimizerConfig) -> torch.optim.Optimizer:
    """Make AdamW over the policy's trainable parameters."""
    return torch.optim.AdamW(
        policy.trainable(),
        lr=optimizer.lr,
        betas=optimizer.betas,
        eps=optimizer.eps,
        weight_decay=optimizer.weight_decay,
    )


def learning_rate(optimizer: config.OptimizerConfig, step: int, max_steps: int) -> float:
    """Return the rate of a step, counted from 1.

    From the end of the warm-up on it is the rate of transformers' schedule. Theirs spends the first step of a warm-up
    at a rate of 0, which would waste its rollouts; here it is one step ahead.
    """
    warmup = optimizer.warmup_steps or math.ceil(max_steps * optimizer.warmup_ratio)
    if step <= warmup:
        return optimizer.lr * step / warmup
    left = (max_steps + 1 - step) / max(1, max_steps - warmup)
    match optimizer.lr_scheduler_type:
        case "linear":
            return optimizer.lr * left
        case "cosine":
            return optimizer.lr * (1 + math.cos(math.pi * (1 - left))) / 2
        case _:
            return optimizer.lr


def _first_known(values: Float[Tensor, " tokens"], lengths: list[int]) -> Float[Tensor, " views"]:
    """Return each view's first value that is not NaN, of those that have one."""
    return torch.cat([view[~view.isnan()][:1] for view in torch.split(values, lengths)])


def _synchronize(device: torch.device) -> None:
    """Wait for queued work, so that a stage's seconds are its own."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
