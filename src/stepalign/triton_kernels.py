"""Triton kernels of the losses, which read the logits two or three times instead of a dozen.

torch's own form makes about a dozen element-wise passes over [rows, vocab]. A kernel's program takes one row. It reads
the logits once for both log-sum-exps, and once more for the divergence and its gradient. Directions other than forward
KL need the sum of the slopes first, hence a third read. Sums are in float32. The losses take these kernels on CUDA
devices, and torch's form elsewhere.

A gradient may be written over its logits, in half precision over the first half of a row. Programs have no order, so
one program takes the whole row, in ascending order. Threads have none either, so a barrier stands before each store.

    TRITON_INTERPRET=1 pytest tests/test_triton_kernels.py     # on a CPU, in NumPy
"""

import math

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor

_BLOCK = 4096
"""Vocabulary entries that a program holds at once."""


@triton.jit
def _share(gap, p_student, p_teacher, beta, log_beta, log_rest, clip, DIRECTION: tl.constexpr, CLIPS: tl.constexpr):
    """Return each entry's share of the divergence, and its slope in log p_student (`support._shares`)."""
    if DIRECTION == 0:
        share = p_teacher * gap
        slope = -p_teacher
    elif DIRECTION == 1:
        share = -p_student * gap
        slope = share + p_student
    else:
        larger = tl.maximum(gap + log_beta, log_rest)
        smaller = tl.minimum(gap + log_beta, log_rest)
        mixture = larger + tl.log(1.0 + tl.exp(smaller - larger))  # log m − log p_student
        slope = (beta - 1.0) * p_student * mixture
        share = beta * p_teacher * (gap - mixture) + slope
    if CLIPS:
        slope = tl.where(share > clip, 0.0, slope)
        share = tl.minimum(share, clip)
    return share, slope


@triton.jit
def _divergence(  # noqa: PLR0915  (one pass over a row after another)
    student_ptr, teacher_ptr, targets_ptr, gradient_ptr, out_ptr,
    student_stride, teacher_stride, gradient_stride, rows, vocab,
    student_scale, teacher_scale, beta, log_beta, log_rest, clip,
    DIRECTION: tl.constexpr, CLIPS: tl.constexpr, HAS_TARGETS: tl.constexpr, WANTS_GRADIENT: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    student_ptr += row * student_stride
    teacher_ptr += row * teacher_stride
    gradient_ptr += row * gradient_stride
    columns = tl.arange(0, BLOCK)
    if HAS_TARGETS:  # read now: the gradient may be written over the logits
        target = tl.load(targets_ptr + row)
        student_at_target = tl.load(student_ptr + target).to(tl.float32) * student_scale
        teacher_at_target = tl.load(teacher_ptr + target).to(tl.float32) * teacher_scale

    student_max, teacher_max, at_teacher_max = -float("inf"), -float("inf"), 0.0
    student_sum, teacher_sum = 0.0, 0.0
    for start in range(0, vocab, BLOCK):
        inside = start + columns < vocab
        student = tl.load(student_ptr + start + columns, mask=inside, other=-float("inf")).to(tl.float32)
        teacher = tl.load(teacher_ptr + start + columns, mask=inside, other=-float("inf")).to(tl.float32)
        student = student * student_scale
        teacher = teacher * teacher_scale
        best = tl.max(teacher, 0)
        at_best = tl.sum(tl.where(columns == tl.argmax(teacher, 0), student, 0.0), 0)
        at_teacher_max = tl.where(best > teacher_max, at_best, at_teacher_max)
        largest = tl.maximum(student_max, tl.max(student, 0))
        student_sum = student_sum * tl.exp(student_max - largest) + tl.sum(tl.exp(student - largest), 0)
        student_max = largest
        largest = tl.maximum(teacher_max, best)
        teacher_sum = teacher_sum * tl.exp(teacher_max - largest) + tl.sum(tl.exp(teacher - largest), 0)
        teacher_max = largest
    student_log_sum = tl.log(student_sum)
    teacher_log_sum = tl.log(teacher_sum)

    total, slopes, kl, student_entropy, teacher_entropy = 0.0, 0.0, 0.0, 0.0, 0.0
    for start in range(0, vocab, BLOCK):
        inside = start + columns < vocab
        student = tl.load(student_ptr + start + columns, mask=inside, other=0.0).to(tl.float32) * student_scale
        teacher = tl.load(teacher_ptr + start + columns, mask=inside, other=0.0).to(tl.float32) * teacher_scale
        log_student = student - student_max - student_log_sum
        log_teacher = teacher - teacher_max - teacher_log_sum
        p_student = tl.where(inside, tl.exp(log_student), 0.0)
        p_teacher = tl.where(inside, tl.exp(log_teacher), 0.0)
        gap = log_teacher - log_student
        kl += tl.sum(p_teacher * gap, 0)
        student_entropy -= tl.sum(p_student * log_student, 0)
        teacher_entropy -= tl.sum(p_teacher * log_teacher, 0)
        if DIRECTION == 0 and not CLIPS:
            if WANTS_GRADIENT:
                tl.debug_barrier()
                tl.store(gradient_ptr + start + columns, p_student - p_teacher, mask=inside)
        else:
            share, slope = _share(gap, p_student, p_teacher, beta, log_beta, log_rest, clip, DIRECTION, CLIPS)
            total += tl.sum(share, 0)
            slopes += tl.sum(slope, 0)
    if DIRECTION == 0 and not CLIPS:
        total = kl
    elif WANTS_GRADIENT:
        for start in range(0, vocab, BLOCK):
            inside = start + columns < vocab
            student = tl.load(student_ptr + start + columns, mask=inside, other=0.0).to(tl.float32) * student_scale
            teacher = tl.load(teacher_ptr + start + columns, mask=inside, other=0.0).to(tl.float32) * teacher_scale
            log_student = student - student_max - student_log_sum
            log_teacher = teacher - teacher_max - teacher_log_sum
            p_student = tl.exp(log_student)
            gap = log_teacher - log_student
            share, slope = _share(gap, p_student, tl.exp(log_teacher), beta, log_beta, log_rest, clip, DIRECTION, CLIPS)
            tl.debug_barrier()
            # log p_i = z_i − log Σ_j exp z_j, so dD/dz = slope − p_student · Σ slope
            tl.store(gradient_ptr + start + columns, slope - p_student * slopes, mask=inside)

    tl.store(out_ptr + row, total)
    tl.store(out_ptr + rows + row, kl)
    tl.store(out_ptr + 2 * rows + row, student_entropy)
    tl.store(out_ptr + 3 * rows + row, teacher_entropy)
    tl.store(out_ptr + 4 * rows + row, tl.where(at_teacher_max == student_max, 1.0, 0.0))
    if HAS_TARGETS:
        tl.store(out_ptr + 5 * rows + row, student_at_target - student_max - student_log_sum)
        tl.store(out_ptr + 6 * rows + row, teacher_at_target - teacher_max - teacher_log_sum)


def divergence(
    student_logits: Float[Tensor, "rows vocab"],
    teacher_logits: Float[Tensor, "rows vocab"],
    targets: Int[Tensor, " rows"] | None,
    gradient: Float[Tensor, "rows vocab"] | None,
    *,
    beta: float,
    temperatures: tuple[float, float],
    entry_clip: float | None,
) -> Float[Tensor, "7 rows"]:
    """Return each row's divergence over the whole vocabulary and its measures (`support.Support.compare`).

    Args:
        student_logits: before their temperature; kept, unless `gradient` shares their memory.
        teacher_logits: likewise.
        targets: the sampled ids; without them the last two measures are NaN.
        gradient: receives the gradient in the student's logits over their temperature.
        beta: 0 is forward KL, 1 reverse KL, between them the generalized JSD.
        temperatures: the student's and the teacher's.
        entry_clip: the largest divergence (nats) that a vocabulary entry contributes.
    """
    rows, vocab = student_logits.shape
    out = torch.full((7, rows), math.nan, dtype=torch.float32, device=student_logits.device)
    mixes = 0 < beta < 1
    _divergence[(rows,)](
        student_logits, teacher_logits, targets, gradient if gradient is not None else student_logits, out,
        student_logits.stride(0), teacher_logits.stride(0), 0 if gradient is None else gradient.stride(0), rows, vocab,
        1 / temperatures[0], 1 / temperatures[1],
        beta, math.log(beta) if mixes else 0.0, math.log1p(-beta) if mixes else 0.0, entry_clip or 0.0,
        DIRECTION=2 if mixes else int(beta), CLIPS=entry_clip is not None,
        HAS_TARGETS=targets is not None, WANTS_GRADIENT=gradient is not None,
        BLOCK=min(_BLOCK, triton.next_power_of_2(vocab)), num_warps=8,
    )  # fmt: skip
    return out


@triton.jit
def _token_scores(
    logits_ptr, targets_ptr, out_ptr, stride, rows, vocab, BLOCK: tl.constexpr
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    logits_ptr += row * stride
    columns = tl.arange(0, BLOCK)
    best, total, weighted = -float("inf"), 0.0, 0.0
    for start in range(0, vocab, BLOCK):
        inside = start + columns < vocab
        logits = tl.load(logits_ptr + start + columns, mask=inside, other=-float("inf")).to(tl.float32)
        largest = tl.maximum(best, tl.max(logits, 0))
        rescale = tl.exp(best - largest)
        weights = tl.exp(logits - largest)
        # Σ exp(z − max) · (z − max), moved to the new maximum
        move = tl.where(total > 0.0, best - largest, 0.0)
        weighted = rescale * (weighted + total * move)
        weighted += tl.sum(weights * tl.where(inside, logits - largest, 0.0), 0)
        total = total * rescale + tl.sum(weights, 0)
        best = largest
    target = tl.load(logits_ptr + tl.load(targets_ptr + row)).to(tl.float32)
    log_total = tl.log(total)
    tl.store(out_ptr + row, target - best - log_total)
    tl.store(out_ptr + rows + row, log_total - weighted / total)
    tl.store(out_ptr + 2 * rows + row, best + log_total)


@triton.jit
def _token_gradient(
    logits_ptr, targets_ptr, log_sums_ptr, slopes_ptr, gradient_ptr, stride, gradient_stride, vocab,
    BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    logits_ptr += row * stride
    gradient_ptr += row * gradient_stride
    columns = tl.arange(0, BLOCK)
    target, log_sum, slope = tl.load(targets_ptr + row), tl.load(log_sums_ptr + row), tl.load(slopes_ptr + row)
    for start in range(0, vocab, BLOCK):
        inside = start + columns < vocab
        logits = tl.load(logits_ptr + start + columns, mask=inside, other=-float("inf")).to(tl.float32)
        hit = tl.where(start + columns == target, 1.0, 0.0)
        tl.debug_barrier()
        # log p_y = z_y − log Σ_j exp z_j, so d log p_y / dz = onehot_y − p
        tl.store(gradient_ptr + start + columns, slope * (hit - tl.exp(logits - log_sum)), mask=inside)


def token_scores(logits: Float[Tensor, "rows vocab"], targets: Int[Tensor, " rows"]) -> Float[Tensor, "3 rows"]:
    """Return the log-probability of each row's target, the entropy, and the log-sum-exp, in one read."""
    rows, vocab = logits.shape
    out = torch.empty((3, rows), dtype=torch.float32, device=logits.device)
    block = min(_BLOCK, triton.next_power_of_2(vocab))
    _token_scores[(rows,)](logits, targets, out, logits.stride(0), rows, vocab, BLOCK=block, num_warps=8)
    return out


def token_gradient(
    logits: Float[Tensor, "rows vocab"],
    targets: Int[Tensor, " rows"],
    log_sums: Float[Tensor, " rows"],
    slopes: Float[Tensor, " rows"],
    gradient: Float[Tensor, "rows vocab"],
) -> None:
    """Write slope · d log p_target / d logits to `gradient`, which may be `lm_head.gradient_room` of the logits."""
    rows, vocab = logits.shape
    block = min(_BLOCK, triton.next_power_of_2(vocab))
    _token_gradient[(rows,)](
        logits, targets, log_sums, slopes, gradient, logits.stride(0), gradient.stride(0), vocab,
        BLOCK=block, num_warps=8,
    )  # fmt: skip
