"""Distillation loss Σ_t weight_t · D_t of teacher and student in bounded memory (Eq. 3 of arXiv 2606.11173).

A `Support` gives the divergence D_t from both models' logits. This module computes it from hidden states. It projects
a chunk of tokens to logits, compares them, and takes the gradient back through the head at once. So [tokens, vocab]
never exists for more than a chunk. The forward pass costs three matrix products, the backward pass one scaling.
Element-wise work goes tile by tile, with as many rows as stay in a cache. What depends on a whole sequence (an
advantage of later tokens, an importance ratio) has no gradient, so it scales the tokens' gradients at the end.

Left out: a gradient for the head, because LoRA leaves it frozen; a bias and soft-capped logits, because
`check_head` refuses such models.

    python bench/objective.py
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from stepalign.losses import lm_head
from stepalign.losses.gradient import with_gradient
from stepalign.losses.importance import ImportanceSampling
from stepalign.losses.support import FORWARD_KL, MEASURES, Support


@dataclass(frozen=True, kw_only=True)
class Metrics:
    """Measures of each token, without gradients; NaN where a token's weight is 0.

    They describe the compared distributions: whole vocabularies, temperatures applied, before clipping. Units are nats.
    """

    kl_teacher_student: Float[Tensor, " tokens"]
    """KL(teacher‖student), also where the loss is another divergence."""
    entropy_student: Float[Tensor, " tokens"]
    entropy_teacher: Float[Tensor, " tokens"]
    agreement: Float[Tensor, " tokens"]
    """1 where both give the most probability to the same vocabulary entry, else 0."""
    log_prob_student: Float[Tensor, " tokens"]
    """Of the sampled token; NaN without targets. A further update on the same rollouts takes them as those sampled."""
    log_prob_teacher: Float[Tensor, " tokens"]
    """Likewise. The difference is the token's credit (Eq. 4)."""
    importance_ratio: Float[Tensor, " tokens"] | None
    """None without an importance correction."""


def divergence(
    student_hidden: Float[Tensor, "tokens hidden"],
    teacher_hidden: Float[Tensor, "tokens teacher_hidden"],
    head: Float[Tensor, "vocab hidden"],
    weights: Float[Tensor, " tokens"],
    support: Support = FORWARD_KL,
    *,
    teacher_head: Float[Tensor, "vocab teacher_hidden"] | None = None,
    targets: Int[Tensor, " tokens"] | None = None,
    lengths: Sequence[int] | None = None,
    importance: ImportanceSampling | None = None,
    sampled_log_probs: Float[Tensor, " tokens"] | None = None,
    chunk_tokens: int | None = None,
) -> tuple[Float[Tensor, ""], Metrics]:
    """Compute Σ_t weights_t · D_t between two models' next-token distributions.

    The gradient flows to `student_hidden`, and to `head` where that is trained. The forward pass makes it where
    autograd asks for it. There is no second derivative.

    Args:
        student_hidden: final hidden states (after the last norm) at the positions that predict the tokens.
        teacher_hidden: the teacher's, at the positions that predict the same tokens.
        head: the output embedding. Hidden states are cast to its dtype; sums and the softmax are in float32.
        weights: mask and denominator in one (`losses.weights`). A token of weight 0 is never read.
        support: the divergence of a token, by default forward KL over the whole vocabulary.
        teacher_head: the teacher's output embedding, where it is not the student's.
        targets: the sampled ids; needed by the sampled token's support and by an importance correction.
        lengths: tokens of each sequence, in order; None is one sequence.
        importance: the correction for a policy that is no longer the one that sampled.
        sampled_log_probs: log-probabilities under the policy that sampled, at the student's temperature; None is this
            policy, whose ratio is 1.
        chunk_tokens: tokens whose logits exist at once; None chooses by vocabulary and device.

    Raises:
        StepalignError: the head is trained in half precision.
        ValueError: shapes do not belong together.
    """
    own_head = head if teacher_head is None else teacher_head
    _check_shapes(student_hidden, teacher_hidden, head, own_head, weights)
    wants_gradient = torch.is_grad_enabled() and student_hidden.requires_grad
    of_head = lm_head.head_gradient(head) if wants_gradient else None
    # Autocast would make half-precision products of float32 factors.
    with torch.no_grad(), torch.autocast(head.device.type, enabled=False):
        losses, measures, gradient = _evaluate(
            student_hidden, teacher_hidden, head, own_head, weights, support, targets,
            chunk=chunk_tokens, wants_gradient=wants_gradient, of_head=of_head,
        )  # fmt: skip
        lengths = [len(weights)] if lengths is None else lengths
        # Tokens that are never read have no log-probabilities; their difference is 0.
        student, teacher = (measures[name].masked_fill(weights == 0, 0.0) for name in MEASURES[-2:])
        factors, ratios = support.factors(student, teacher, lengths), None
        if importance is not None:
            old = student if sampled_log_probs is None else sampled_log_probs.masked_fill(weights == 0, 0.0)
            ratios = importance.ratios(student, old.to(student.dtype), lengths)
            factors = ratios if factors is None else ratios * factors
        if factors is not None:
            losses = losses * factors
        loss = losses.sum()
        if gradient is not None and factors is not None:
            gradient.mul_(factors[:, None])
            if of_head is not None:  # a factor may depend on later tokens, so the sum over tokens is made again
                _evaluate(
                    student_hidden, teacher_hidden, head, own_head, weights * factors, support, targets,
                    chunk=chunk_tokens, wants_gradient=True, of_head=of_head.zero_(),
                )  # fmt: skip
    if gradient is not None:
        trained = [] if of_head is None else [(head, of_head)]
        loss = with_gradient(loss, (student_hidden, gradient), *trained)
    return loss, Metrics(importance_ratio=ratios, **measures)


def _evaluate(
    student_hidden: Float[Tensor, "tokens hidden"],
    teacher_hidden: Float[Tensor, "tokens teacher_hidden"],
    head: Float[Tensor, "vocab hidden"],
    teacher_head: Float[Tensor, "vocab teacher_hidden"],
    weights: Float[Tensor, " tokens"],
    support: Support,
    targets: Int[Tensor, " tokens"] | None,
    *,
    chunk: int | None,
    wants_gradient: bool,
    of_head: Float[Tensor, "vocab hidden"] | None,
) -> tuple[Float[Tensor, " tokens"], dict[str, Float[Tensor, " tokens"]], Float[Tensor, "tokens hidden"] | None]:
    """Return weights_t · D_t, each token's measures by name, and d weights_t · D_t / d student_hidden_t.

    The gradient in the head, which is a sum over tokens, is added to `of_head`.
    """
    vocab, device, dtype = len(head), head.device, lm_head.logit_dtype(head)
    counted = weights.nonzero().squeeze(-1)
    chunk = max(1, min(len(counted), chunk or lm_head.chunk_tokens(len(counted), vocab, device)))
    most = support.max_rows(vocab, device)
    rows = chunk if most is None else min(chunk, most)

    losses = torch.zeros(len(weights), dtype=dtype, device=device)
    per_token = torch.full((len(MEASURES), len(weights)), math.nan, dtype=dtype, device=device)
    gradient = torch.zeros_like(student_hidden, dtype=dtype) if wants_gradient else None
    logits = torch.empty((2 * chunk, vocab), dtype=dtype, device=device)
    scratch = torch.empty((4, rows if most else 0, vocab), dtype=dtype, device=device)

    for index in torch.split(counted, chunk):
        n = len(index)
        student, teacher = student_hidden[index].to(head.dtype), teacher_hidden[index].to(teacher_head.dtype)
        chunk_targets = None if targets is None else targets[index]
        student_logits, teacher_logits = logits[:n], logits[n : 2 * n]
        if teacher_head is head:
            # One product of twice the rows is faster than two.
            lm_head.project(torch.cat((student, teacher)), head, logits[: 2 * n])
        else:
            lm_head.project(student, head, student_logits)
            lm_head.project(teacher, teacher_head, teacher_logits)

        logit_gradient = lm_head.gradient_room(student_logits, head)
        compared = torch.empty((1 + len(MEASURES), n), dtype=dtype, device=device)
        for start in range(0, n, rows):
            tile = slice(start, start + rows)
            compared[:, tile] = support.compare(
                student_logits[tile],
                teacher_logits[tile],
                None if chunk_targets is None else chunk_targets[tile],
                scratch,
                logit_gradient[tile] if wants_gradient else None,
            )

        per_token[:, index] = compared[1:]
        scale, divergences = weights[index].to(dtype), compared[0]
        losses[index] = scale * divergences.clamp(max=support.max_per_token)
        if gradient is not None:
            scale = scale * (divergences <= support.max_per_token) / support.student_temperature
            gradient[index] = lm_head.pull_back(logit_gradient, head).mul_(scale[:, None])
            if of_head is not None:
                of_head.addmm_(logit_gradient.T, student * scale[:, None])
    return losses, dict(zip(MEASURES, per_token, strict=True)), gradient


def _check_shapes(
    student_hidden: Tensor, teacher_hidden: Tensor, head: Tensor, teacher_head: Tensor, weights: Tensor
) -> None:
    if not len(student_hidden) == len(teacher_hidden) == len(weights):
        raise ValueError(
            f"{len(student_hidden)} student states, {len(teacher_hidden)} teacher states and {len(weights)} "
            "weights: one of each is needed for every token"
        )
    if len(head) != len(teacher_head):
        raise ValueError(f"vocabularies differ: {len(head)} entries (student), {len(teacher_head)} (teacher)")
