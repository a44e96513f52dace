"""One optimizer step: every lesson seen, one exact denominator, one clipped update.

What a lesson is worth is a `Loss`'s business: `distilling` (Eq. 3 of arXiv 2606.11173) or `rewarding` (GRPO, Eq. 2).
"""

import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from stepalign import config
from stepalign.console import Console
from stepalign.distributed.base import ParallelStrategy
from stepalign.errors import StepalignError
from stepalign.policy import Policy
from stepalign.views import Batch, TrainingExample, View, collate, micro_batches, weights

L = TypeVar("L", bound=TrainingExample)
L_contra = TypeVar("L_contra", bound=TrainingExample, contravariant=True)


@runtime_checkable
class Loss(Protocol[L_contra]):
    """An objective at work on the lessons of one step."""

    frozen: str
    """What the pass without gradients is called: the stage whose seconds are kept."""

    def look(self, model: Policy, micro: Sequence[L_contra], batch: Batch) -> Tensor | None:
        """What the frozen side has to say of a micro-batch; `batch` is its student views."""
        ...

    def loss(
        self,
        hidden: Float[Tensor, "tokens hidden"],
        seen: Tensor | None,
        head: Float[Tensor, "vocab hidden"],
        micro: Sequence[L_contra],
        batch: Batch,
        token_weights: Float[Tensor, " tokens"],
    ) -> tuple[Float[Tensor, ""], Mapping[str, Float[Tensor, " tokens"]]]:
        """The micro-batch's part of the step's loss, and what it saw of each token, by the metric's name."""
        ...

    def counts(self, lessons: Sequence[L_contra]) -> Mapping[str, int]:
        """Metrics of its own for the step: what the frozen pass read."""
        ...


class GradientAccumulator(Generic[L]):
    """Gradients of a step's micro-batches as they come, added up for the one update.

    Each token's weight carries the denominator of the whole step, so that the split into micro-batches, and of these
    over processes, changes nothing but memory and time. Where it is not known yet which rollouts can be learnt from,
    the denominator is a guess, and the sums are put right before the update.
    """

    def __init__(
        self,
        engine: ParallelStrategy,
        policy: Policy,
        learner: Loss[L],
        settings: config.Recipe,
        console: Console,
        *,
        sequences: int,
        tokens: int,
    ) -> None:
        """Begin a step.

        Args:
            engine: adds up the processes' gradients.
            policy: as prepared by `engine`.
            learner: has the loss.
            settings: objective and optimizer are used.
            console: keeps the seconds of the frozen pass, `student` and `optimizer`.
            sequences: how many views with counted tokens the step has, over all processes, or may have.
            tokens: how many counted tokens those have.
        """
        self._engine, self._policy, self._learner = engine, policy, learner
        self._settings, self._console = settings, console
        self._guessed = sequences, tokens
        self._sums: dict[str, float] = defaultdict(float)
        policy.train()

    def add(self, micro: Sequence[L], *, counts: bool = True, last: bool = False) -> None:
        """One pass, forward and backward.

        Args:
            micro: its lessons.
            counts: whether they are this process' own; else the pass keeps the others company, with weight zero.
            last: whether it is the step's last, where that is known.

        Raises:
            StepalignError: the loss is not finite; nothing was updated.
        """
        device = self._engine.device
        views = [lesson.student for lesson in micro]
        batch = collate(views).to(device)
        start = time.perf_counter()
        seen = self._learner.look(self._policy, micro, batch)
        if seen is not None:
            _settle(device)
            self._console.timed(self._learner.frozen, start)

        start = time.perf_counter()
        sequences, tokens = self._guessed
        normalize = self._settings.algorithm.loss_agg_mode
        mean = weights(views, normalize=normalize, sequences=sequences, tokens=tokens).to(device) * counts
        loss, measures = self._learner.loss(self._policy(batch), seen, self._policy.head, micro, batch, mean)
        if not torch.isfinite(loss):
            raise StepalignError(
                f"the loss is {loss.item()} on rollouts {', '.join(lesson.rollout_id for lesson in micro)}; "
                "nothing was updated (a lower optimizer.lr, model.dtype = 'float32'?)"
            )
        self._engine.backward(loss, last=last)
        _settle(device)
        self._console.timed("student", start)
        if not counts:
            return
        self._sums["loss"] += loss.item()
        for name, measure in measures.items():
            self._sums[name] += measure.sum().item()
        if "kl" in measures:  # the thinking boundary shows there
            self._sums["first_token_kl"] += measures["kl"][_first_tokens(views).to(device)].sum().item()

    def apply(
        self, optimizer: torch.optim.Optimizer, lessons: Sequence[L], zero_gradient: Sequence[View] = ()
    ) -> dict[str, float]:
        """Update the policy and return the step's metrics.

        Args:
            optimizer: over the policy's adapter.
            lessons: the whole step's, over all processes.
            zero_gradient: what counts in the means but has no gradient.

        Raises:
            StepalignError: the gradient is not finite; nothing was updated.
        """
        start = time.perf_counter()
        counted = [*(lesson.student for lesson in lessons), *zero_gradient]
        found = len(counted), sum(view.num_loss_tokens for view in counted)
        by_token = self._settings.algorithm.loss_agg_mode == "token-mean"
        right = self._guessed[by_token] / found[by_token]
        if right != 1:
            for parameter in self._policy.trainable():
                if parameter.grad is not None:
                    parameter.grad *= right
            self._sums["loss"] *= right
        norm = self._engine.step(self._policy, optimizer, self._settings.optimizer.max_grad_norm)
        _settle(self._engine.device)
        self._console.timed("optimizer", start)
        totals = _added(self._engine.world.gather([dict(self._sums)]))
        loss, first_token_kl = totals.pop("loss"), totals.pop("first_token_kl", None)
        tokens = sum(lesson.student.num_loss_tokens for lesson in lessons)
        return {
            "loss": loss,
            **{name: total / tokens for name, total in totals.items()},
            **({} if first_token_kl is None else {"first_token_kl": first_token_kl / len(lessons)}),
            "grad_norm": norm,
            "tokens": tokens,
            "student_tokens": sum(len(lesson.student.input_ids) for lesson in lessons),
            **self._learner.counts(lessons),
        }


def update(
    engine: ParallelStrategy,
    policy: Policy,
    optimizer: torch.optim.Optimizer,
    lessons: Sequence[L],
    learner: Loss[L],
    settings: config.Recipe,
    console: Console,
    *,
    zero_gradient: Sequence[View] = (),
) -> dict[str, float]:
    """Learn from a step's lessons, which are all there, and return its metrics.

    Args:
        engine: deals out the micro-batches and adds up the processes' gradients.
        policy: as prepared by `engine`.
        optimizer: over the policy's adapter.
        lessons: the whole step's, in every process, each with at least one counted token.
        learner: has the loss.
        settings: objective, training and optimizer are used.
        console: shows progress, and keeps the seconds of the frozen pass, `student` and `optimizer`.
        zero_gradient: what counts in the means but has no gradient.

    Raises:
        StepalignError: loss or gradient is not finite; nothing was updated.
    """
    counted = [*(lesson.student for lesson in lessons), *zero_gradient]
    sizes = {"sequences": len(counted), "tokens": sum(view.num_loss_tokens for view in counted)}
    gradients = GradientAccumulator(engine, policy, learner, settings, console, **sizes)
    training = settings.training
    passes = list(
        engine.local_micro_batches(
            list(micro_batches(lessons, training.micro_batch_size, training.max_tokens_per_micro_batch))
        )
    )
    with console.stage("learn", sum(len(micro) for micro, _ in passes)) as advance:
        for number, (micro, counts) in enumerate(passes, 1):
            gradients.add(micro, counts=counts, last=number == len(passes))
            advance(len(micro))
    return gradients.apply(optimizer, lessons, zero_gradient)


def _added(parts: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Every process' sums, of which some may have made no pass."""
    totals: dict[str, float] = {}
    for part in parts:
        for name, value in part.items():
            totals[name] = totals.get(name, 0.0) + value
    return totals


def _first_tokens(views: Sequence[View]) -> Int[Tensor, " rows"]:
    """Where each view's first counted token stands among all of theirs."""
    lengths = torch.tensor([view.num_loss_tokens for view in views])
    return lengths.cumsum(0) - lengths


def _settle(device: torch.device) -> None:
    """Wait for queued work, so that a stage's seconds are its own."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def optimizer_of(policy: Policy, settings: config.OptimizerConfig) -> torch.optim.Optimizer:
    """AdamW over the adapter."""
    options: dict[str, Any] = {
        "betas": settings.betas,
        "eps": settings.eps,
        "weight_decay": settings.weight_decay,
    }
    return torch.optim.AdamW(policy.trainable(), lr=settings.lr, **options)


def learning_rate(settings: config.OptimizerConfig, step: int) -> float:
    """The rate of an optimizer step, counted from 1: linear warm-up, then constant."""
    return settings.lr * min(1.0, step / max(settings.warmup_steps, 1))
