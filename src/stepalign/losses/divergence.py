"""The distillation loss: full-vocabulary generalized JSD of teacher and student in bounded memory.

Per token, over the whole vocabulary (GKD, Agarwal et al., arXiv 2306.13649; Eq. 3 of arXiv 2606.11173):

    beta = 0        D = KL(teacher‖student)
    beta = 1        D = KL(student‖teacher)
    otherwise       D = beta·KL(teacher‖m) + (1−beta)·KL(student‖m),   m = beta·teacher + (1−beta)·student

The loss is Σ_t weight_t · D_t, computed from hidden states: a chunk of tokens is projected to logits,
compared, and its gradient taken back through the head at once. So [tokens, vocab] never exists for more
than a chunk, the forward pass costs three matrix products and the backward pass a scaling. Within a chunk,
elementwise work goes tile by tile: as many rows as stay in a cache.

Left out: a gradient for the head (LoRA leaves it frozen), a head's bias and the soft-capping of logits (the
models at hand have neither), and a top-k support.

    python bench/objective.py
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from stepalign import config
from stepalign.errors import StepalignError
from stepalign.losses.gradient import with_gradient
from stepalign.losses.lm_head import chunk_tokens, gradient_room, logit_dtype, project, pull_back, tile_rows


@dataclass(frozen=True, kw_only=True)
class Metrics:
    """What the loss saw of each token, without gradients; NaN where a token's weight is 0.

    All are of the distributions that the loss compares (temperatures applied, before clipping), in nats.
    """

    kl_teacher_student: Float[Tensor, " tokens"]
    """KL(teacher‖student), whatever `beta` is."""
    entropy_student: Float[Tensor, " tokens"]
    entropy_teacher: Float[Tensor, " tokens"]
    agreement: Float[Tensor, " tokens"]
    """1 where both give the most probability to the same vocabulary entry, else 0."""


def divergence(
    student_hidden: Float[Tensor, "tokens hidden"],
    teacher_hidden: Float[Tensor, "tokens teacher_hidden"],
    head: Float[Tensor, "vocab hidden"],
    weights: Float[Tensor, " tokens"],
    settings: config.DistillationConfig,
    *,
    teacher_head: Float[Tensor, "vocab teacher_hidden"] | None = None,
) -> tuple[Float[Tensor, ""], Metrics]:
    """Σ_t weights_t · D_t between the two models' next-token distributions.

    The gradient flows to `student_hidden` alone. It is made in the forward pass, and only where autograd asks
    for it. There is no second derivative.

    Args:
        student_hidden: final hidden states (after the last norm) at the positions that predict the tokens.
        teacher_hidden: the teacher's, at the positions that predict the same tokens.
        head: the output embedding. Hidden states are cast to its dtype; sums and the softmax are in float32.
        weights: masks and denominators in one (`views.weights`). A token of weight 0 is never read.
        settings: `beta`, the two temperatures, `clip`, `clip_at` and `chunk_tokens` are used here.
        teacher_head: the teacher's output embedding, where it is not the student's.

    Raises:
        StepalignError: where the head wants a gradient.
        ValueError: where shapes do not belong together.
    """
    own_head = head if teacher_head is None else teacher_head
    _check_shapes(student_hidden, teacher_hidden, head, own_head, weights)
    wants_gradient = torch.is_grad_enabled() and student_hidden.requires_grad
    if wants_gradient and head.requires_grad:
        raise StepalignError(
            "the divergence gives the output head no gradient, but head.requires_grad is set: freeze it "
            "(leave lm_head, and embeddings tied to it, out of what is trained)"
        )
    # Autocast would make half-precision products of float32 factors.
    with torch.no_grad(), torch.autocast(head.device.type, enabled=False):
        loss, per_token, gradient = _evaluate(
            student_hidden, teacher_hidden, head, own_head, weights,
            settings=settings, wants_gradient=wants_gradient,
        )  # fmt: skip
    if gradient is not None:
        loss = with_gradient(student_hidden, loss, gradient)
    _, kl, entropy_student, entropy_teacher, agreement = per_token
    return loss, Metrics(
        kl_teacher_student=kl,
        entropy_student=entropy_student,
        entropy_teacher=entropy_teacher,
        agreement=agreement,
    )


def _evaluate(
    student_hidden: Float[Tensor, "tokens hidden"],
    teacher_hidden: Float[Tensor, "tokens teacher_hidden"],
    head: Float[Tensor, "vocab hidden"],
    teacher_head: Float[Tensor, "vocab teacher_hidden"],
    weights: Float[Tensor, " tokens"],
    *,
    settings: config.DistillationConfig,
    wants_gradient: bool,
) -> tuple[Float[Tensor, ""], Float[Tensor, "5 tokens"], Float[Tensor, "tokens hidden"] | None]:
    """The loss, each token's measures as `_compare` orders them, and d loss / d student_hidden."""
    vocab, device, dtype = len(head), head.device, logit_dtype(head)
    cap = settings.clip_value if settings.clip_mode == "token" and settings.clip_value is not None else math.inf
    counted = weights.nonzero().squeeze(-1)
    chunk = max(1, min(len(counted), settings.chunk_tokens or chunk_tokens(len(counted), vocab, device)))
    rows = min(chunk, tile_rows(vocab, device))

    loss = torch.zeros((), dtype=dtype, device=device)
    per_token = torch.full((5, len(weights)), math.nan, dtype=dtype, device=device)
    gradient = torch.zeros_like(student_hidden, dtype=dtype) if wants_gradient else None
    logits = torch.empty((2 * chunk, vocab), dtype=dtype, device=device)
    scratch = torch.empty((4, rows, vocab), dtype=dtype, device=device)

    for index in torch.split(counted, chunk):
        n = len(index)
        student, teacher = student_hidden[index].to(head.dtype), teacher_hidden[index].to(teacher_head.dtype)
        student_logits, teacher_logits = logits[:n], logits[n : 2 * n]
        if teacher_head is head:
            # One product of twice the rows is faster than two.
            project(torch.cat((student, teacher)), head, logits[: 2 * n])
        else:
            project(student, head, student_logits)
            project(teacher, teacher_head, teacher_logits)

        logit_gradient = gradient_room(student_logits, head)
        measures = torch.empty((5, n), dtype=dtype, device=device)
        for start in range(0, n, rows):
            tile = slice(start, start + rows)
            measures[:, tile] = _compare(
                student_logits[tile],
                teacher_logits[tile],
                settings,
                scratch,
                logit_gradient[tile] if wants_gradient else None,
            )

        per_token[:, index] = measures
        scale, divergences = weights[index].to(dtype), measures[0]
        loss += (scale * divergences.clamp(max=cap)).sum()
        if gradient is not None:
            scale = scale * (divergences <= cap) / settings.student_temperature
            gradient[index] = pull_back(logit_gradient, head).mul_(scale[:, None])
    return loss, per_token, gradient


def _compare(
    student_logits: Float[Tensor, "rows vocab"],
    teacher_logits: Float[Tensor, "rows vocab"],
    settings: config.DistillationConfig,
    scratch: Float[Tensor, "4 at_least_rows vocab"],
    gradient: Float[Tensor, "rows vocab"] | None,
) -> Float[Tensor, "5 rows"]:
    """One tile's divergence, KL(teacher‖student), entropies and agreement.

    Overwrites both logits, and writes the divergence's gradient in the student's logits over their
    temperature into `gradient`, which may share their memory: rows are read before they are written.
    """
    log_student, log_teacher, p_student, p_teacher = scratch[:, : len(student_logits)]
    if settings.student_temperature != 1:
        student_logits.div_(settings.student_temperature)
    if settings.teacher_temperature != 1:
        teacher_logits.div_(settings.teacher_temperature)
    torch.log_softmax(student_logits, -1, out=log_student)
    torch.log_softmax(teacher_logits, -1, out=log_teacher)
    torch.exp(log_student, out=p_student)
    torch.exp(log_teacher, out=p_teacher)
    gap = torch.sub(log_teacher, log_student, out=teacher_logits)

    kl = torch.linalg.vecdot(p_teacher, gap)
    entropy_student = torch.linalg.vecdot(p_student, log_student).neg_()
    entropy_teacher = torch.linalg.vecdot(p_teacher, log_teacher).neg_()
    # argmax is slow on the CPU, amax is not: ask whether the teacher's first choice is the student's best.
    teacher_first = log_student.gather(-1, log_teacher.argmax(-1, keepdim=True)).squeeze(-1)
    agreement = (teacher_first == log_student.amax(-1)).to(kl.dtype)

    if settings.beta == 0 and settings.clip_mode != "entry":
        total = kl
        if gradient is not None:
            torch.sub(p_student, p_teacher, out=gradient)
    else:
        share, slope = _by_entry(settings.beta, gap, p_student, p_teacher)
        if settings.clip_mode == "entry" and settings.clip_value is not None:
            slope.masked_fill_(share > settings.clip_value, 0)
            share.clamp_(max=settings.clip_value)
        total = share.sum(-1)
        if gradient is not None:
            # log p_i = z_i − log Σ_j exp z_j, so dD/dz = slope − p_student · Σ slope
            torch.addcmul(slope, p_student, slope.sum(-1, keepdim=True), value=-1, out=gradient)
    return torch.stack((total, kl, entropy_student, entropy_teacher, agreement))


def _by_entry(
    beta: float,
    gap: Float[Tensor, "rows vocab"],
    p_student: Float[Tensor, "rows vocab"],
    p_teacher: Float[Tensor, "rows vocab"],
) -> tuple[Float[Tensor, "rows vocab"], Float[Tensor, "rows vocab"]]:
    """Each vocabulary entry's share of the divergence, and its slope in the entry's log p_student.

    `gap` is log p_teacher − log p_student. The mixture stays in logarithms: where both probabilities
    underflow, their quotient would be NaN.
    """
    if beta == 0:
        return p_teacher * gap, -p_teacher
    if beta == 1:
        share = -p_student * gap
        return share, share + p_student
    floor = torch.full((), math.log1p(-beta), dtype=gap.dtype, device=gap.device)
    mixture = torch.logaddexp(gap + math.log(beta), floor)  # log m − log p_student
    slope = (beta - 1) * p_student * mixture
    return beta * p_teacher * (gap - mixture) + slope, slope


def _check_shapes(
    student_hidden: Tensor, teacher_hidden: Tensor, head: Tensor, teacher_head: Tensor, weights: Tensor
) -> None:
    if not len(student_hidden) == len(teacher_hidden) == len(weights):
        raise ValueError(
            f"{len(student_hidden)} student states, {len(teacher_hidden)} teacher states and {len(weights)} "
            "weights: one of each a token is wanted"
        )
    if len(head) != len(teacher_head):
        raise ValueError(f"vocabularies differ: {len(head)} entries (student), {len(teacher_head)} (teacher)")
