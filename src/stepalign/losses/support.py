"""Support of a divergence: the vocabulary entries that teacher and student are compared on.

Per token, over the whole vocabulary (GKD, Agarwal et al., arXiv 2306.13649; Eq. 3 of arXiv 2606.11173):

    beta = 0        D = KL(teacher‖student)
    beta = 1        D = KL(student‖teacher)
    otherwise       D = beta·KL(teacher‖m) + (1−beta)·KL(student‖m),   m = beta·teacher + (1−beta)·student

Left out: top-k without a tail, because it is no divergence and its gradient can lower all k entries at once.
"""

import math
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor


@runtime_checkable
class Support(Protocol):
    """Divergence of one token, from both models' logits."""

    @property
    def student_temperature(self) -> float:
        """The temperature that student logits are divided by."""
        ...

    @property
    def max_per_token(self) -> float:
        """The largest divergence (nats) that a token contributes; beyond it the token has no gradient."""
        ...

    def compare(
        self,
        student_logits: Float[Tensor, "rows vocab"],
        teacher_logits: Float[Tensor, "rows vocab"],
        scratch: Float[Tensor, "4 at_least_rows vocab"],
        gradient: Float[Tensor, "rows vocab"] | None,
    ) -> Float[Tensor, "5 rows"]:
        """Return divergence, KL(teacher‖student), student and teacher entropy, and agreement (0 or 1) a row.

        Both logits are overwritten. `gradient` receives the divergence's gradient in the student's logits over
        their temperature. It may share the logits' memory, so each row is read before it is written.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class FullVocabulary:
    """Generalized JSD over the whole vocabulary."""

    beta: float = 0.0
    """0 is forward KL(teacher‖student), 1 is reverse KL(student‖teacher)."""
    student_temperature: float = 1.0
    teacher_temperature: float = 1.0
    clip_mode: Literal["none", "token", "entry"] = "none"
    clip_value: float | None = None
    """The largest divergence (nats) that a token, or a vocabulary entry, contributes."""

    @property
    def max_per_token(self) -> float:
        """The clip of a token's divergence in nats, else infinity."""
        return self.clip_value if self.clip_mode == "token" and self.clip_value is not None else math.inf

    def compare(
        self,
        student_logits: Float[Tensor, "rows vocab"],
        teacher_logits: Float[Tensor, "rows vocab"],
        scratch: Float[Tensor, "4 at_least_rows vocab"],
        gradient: Float[Tensor, "rows vocab"] | None,
    ) -> Float[Tensor, "5 rows"]:
        """Compare one tile of logits. See `Support.compare`."""
        log_student, log_teacher, p_student, p_teacher = scratch[:, : len(student_logits)]
        if self.student_temperature != 1:
            student_logits.div_(self.student_temperature)
        if self.teacher_temperature != 1:
            teacher_logits.div_(self.teacher_temperature)
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

        if self.beta == 0 and self.clip_mode != "entry":
            total = kl
            if gradient is not None:
                torch.sub(p_student, p_teacher, out=gradient)
        else:
            share, slope = _by_entry(self.beta, gap, p_student, p_teacher)
            if self.clip_mode == "entry" and self.clip_value is not None:
                slope.masked_fill_(share > self.clip_value, 0)
                share.clamp_(max=self.clip_value)
            total = share.sum(-1)
            if gradient is not None:
                # log p_i = z_i − log Σ_j exp z_j, so dD/dz = slope − p_student · Σ slope
                torch.addcmul(slope, p_student, slope.sum(-1, keepdim=True), value=-1, out=gradient)
        return torch.stack((total, kl, entropy_student, entropy_teacher, agreement))


FORWARD_KL = FullVocabulary()
"""KL(teacher‖student) at temperature 1, unclipped."""


def _by_entry(
    beta: float,
    gap: Float[Tensor, "rows vocab"],
    p_student: Float[Tensor, "rows vocab"],
    p_teacher: Float[Tensor, "rows vocab"],
) -> tuple[Float[Tensor, "rows vocab"], Float[Tensor, "rows vocab"]]:
    """Return each vocabulary entry's share of the divergence, and its slope in the entry's log p_student.

    `gap` is log p_teacher − log p_student. The mixture stays in logarithms, because the quotient of two
    probabilities that underflow would be NaN.
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
