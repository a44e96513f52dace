"""Gradient accumulation: one exact denominator, one clipped update an optimizer step.

Each token's weight carries the denominator of the whole step. So the split into micro-batches, and of these over
processes, changes memory and time alone.
"""

import time
from collections import defaultdict
from collections.abc import Sequence
from typing import Generic, TypeVar

import torch
from jaxtyping import Int
from torch import Tensor

from stepalign import config
from stepalign.algorithms.base import Algorithm, StepExamples
from stepalign.collate import collate
from stepalign.console import Console
from stepalign.distributed.strategy import DataParallel
from stepalign.errors import StepalignError
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
        algorithm: Algorithm[E],
        policy: Policy,
        strategy: DataParallel,
        console: Console,
        *,
        loss_agg_mode: LossAggMode,
        sequences: int,
        tokens: int,
    ) -> None:
        """Begin a step.

        Args:
            algorithm: computes the loss.
            policy: as prepared by `strategy`.
            strategy: sums gradients over processes.
            console: keeps the seconds of the reference pass, `student` and `optimizer`.
            loss_agg_mode: the mean over sequences, or over tokens.
            sequences: views with loss tokens in the step over all processes, known or estimated.
            tokens: their loss tokens.
        """
        self._algorithm, self._policy, self._strategy, self._console = algorithm, policy, strategy, console
        self._loss_agg_mode, self._sequences, self._tokens = loss_agg_mode, sequences, tokens
        self._sums: dict[str, float] = defaultdict(float)
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
        batch = collate(views).to(device)
        start = time.perf_counter()
        reference = self._algorithm.reference_forward(self._policy, examples, batch)
        if reference is not None:
            _synchronize(device)
            self._console.timed(self._algorithm.reference_stage, start)

        start = time.perf_counter()
        lengths = [view.num_loss_tokens for view in views]
        weights = token_weights(lengths, self._loss_agg_mode, sequences=self._sequences, tokens=self._tokens)
        loss, metrics = self._algorithm.loss(
            self._policy(batch), reference, self._policy.head, examples, batch, weights.to(device) * (not is_padding)
        )
        if not torch.isfinite(loss):
            raise StepalignError(
                f"the loss is {loss.item()} on rollouts {', '.join(example.rollout_id for example in examples)}; "
                "nothing was updated (a lower optimizer.lr, model.dtype = 'float32'?)"
            )
        self._strategy.backward(loss, last=last)
        _synchronize(device)
        self._console.timed("student", start)
        if is_padding:
            return
        self._sums["loss"] += loss.item()
        for name, values in metrics.items():
            self._sums[name] += values.sum().item()
        if "kl" in metrics:  # the thinking boundary shows there
            self._sums["first_token_kl"] += metrics["kl"][_first_tokens(lengths).to(device)].sum().item()

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
        for sums in self._strategy.world.gather([dict(self._sums)]):
            for name, value in sums.items():
                totals[name] += value
        tokens = sum(example.student.num_loss_tokens for example in examples)
        metrics = {"loss": totals.pop("loss")}
        if "first_token_kl" in totals:
            metrics["first_token_kl"] = totals.pop("first_token_kl") / len(examples)
        metrics |= {name: total / tokens for name, total in totals.items()}
        metrics |= {"grad_norm": grad_norm, "tokens": tokens}
        metrics["student_tokens"] = sum(len(example.student.input_ids) for example in examples)
        if reference_tokens := self._algorithm.reference_tokens(examples):
            metrics[f"{self._algorithm.reference_stage}_tokens"] = reference_tokens
        return metrics


def adamw(policy: Policy, optimizer: config.OptimizerConfig) -> torch.optim.Optimizer:
    """Make AdamW over the policy's trainable parameters."""
    return torch.optim.AdamW(
        policy.trainable(),
        lr=optimizer.lr,
        betas=optimizer.betas,
        eps=optimizer.eps,
        weight_decay=optimizer.weight_decay,
    )


def learning_rate(optimizer: config.OptimizerConfig, step: int) -> float:
    """Return the rate of an optimizer step, counted from 1: linear warm-up, then constant."""
    return optimizer.lr * min(1.0, step / max(optimizer.warmup_steps, 1))


def _first_tokens(lengths: Sequence[int]) -> Int[Tensor, " rows"]:
    """Return the place of each view's first loss token among all of theirs."""
    ends = torch.tensor(lengths).cumsum(0)
    return ends - torch.tensor(lengths)


def _synchronize(device: torch.device) -> None:
    """Wait for queued work, so that a stage's seconds are its own."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
