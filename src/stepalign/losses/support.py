"""Support of a divergence: the vocabulary entries that teacher and student are compared on.

Per token (GKD, Agarwal et al., arXiv 2306.13649; Eq. 3 of arXiv 2606.11173):

    beta = 0        D = KL(teacher‖student)
    beta = 1        D = KL(student‖teacher)
    otherwise       D = beta·KL(teacher‖m) + (1−beta)·KL(student‖m),   m = beta·teacher + (1−beta)·student

`FullVocabulary` compares every entry. `losses.top_k` has k entries and the rest as one bucket, `losses.sampled_token`
the sampled token alone.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from stepalign.losses import fused, lm_head

MEASURES = (
    "kl_teacher_student",
    "entropy_student",
    "entropy_teacher",
    "agreement",
    "log_prob_student",
    "log_prob_teacher",
)
"""A token's measures, in the order of the rows that follow the divergence in `Support.compare`."""


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

    def max_rows(self, vocab: int, device: torch.device) -> int | None:
        """Return the rows that `compare` takes at once; None is any number, without scratch."""
        ...

    def compare(
        self,
        student_logits: Float[Tensor, "rows vocab"],
        teacher_logits: Float[Tensor, "rows vocab"],
        targets: Int[Tensor, " rows"] | None,
        scratch: Float[Tensor, "4 at_least_rows vocab"],
        gradient: Float[Tensor, "rows vocab"] | None,
    ) -> Float[Tensor, "7 rows"]:
        """Return each row's divergence and its `MEASURES`; those of `targets`, the sampled ids, are NaN without them.

        Both logits are overwritten. `gradient` receives the divergence's gradient in the student's logits over
        their temperature. It may share the logits' memory, so each row is read before it is written.
        """
        ...

    def factors(
        self,
        log_prob_student: Float[Tensor, " tokens"],
        log_prob_teacher: Float[Tensor, " tokens"],
        lengths: Sequence[int],
    ) -> Float[Tensor, " tokens"] | None:
        """Return constants that tokens' divergences and gradients are multiplied by; None is 1 everywhere.

        Args:
            log_prob_student: of the sampled tokens, those of weight 0 with a value of 0.
            log_prob_teacher: likewise.
            lengths: the tokens of each sequence.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class Divergence:
    """Generalized JSD of two distributions, with temperatures and a clip: base of the supports with entries."""

    beta: float = 0.0
    """0 is forward KL(teacher‖student), 1 is reverse KL(student‖teacher)."""
    student_temperature: float = 1.0
    teacher_temperature: float = 1.0
    clip_mode: Literal["none", "token", "entry"] = "none"
    clip_value: float | None = None
    """The largest divergence (nats) that a token, or an entry of the support, contributes."""

    @property
    def max_per_token(self) -> float:
        """The clip of a token's divergence in nats, else infinity."""
        return self.clip_value if self.clip_mode == "token" and self.clip_value is not None else math.inf

    def max_rows(self, vocab: int, device: torch.device) -> int | None:
        """Return a tile's rows. See `Support.max_rows`."""
        return lm_head.tile_rows(vocab, device)

    def factors(
        self,
        log_prob_student: Float[Tensor, " tokens"],
        log_prob_teacher: Float[Tensor, " tokens"],
        lengths: Sequence[int],
    ) -> Float[Tensor, " tokens"] | None:
        """Return None: a divergence is its own loss. See `Support.factors`."""
        return None

    def by_entry(
        self,
        gap: Float[Tensor, "rows entries"],
        p_student: Float[Tensor, "rows entries"],
        p_teacher: Float[Tensor, "rows entries"],
    ) -> tuple[Float[Tensor, " rows"], Float[Tensor, "rows entries"]]:
        """Return the divergence, and its slope in each entry's log p_student.

        `gap` is log p_teacher − log p_student. The mixture stays in logarithms, because the quotient of two
        probabilities that underflow would be NaN.
        """
        share, slope = _shares(self.beta, gap, p_student, p_teacher)
        if self.clip_mode == "entry" and self.clip_value is not None:
            slope.masked_fill_(share > self.clip_value, 0)
            share.clamp_(max=self.clip_value)
        return share.sum(-1), slope


@dataclass(frozen=True, kw_only=True)
class FullVocabulary(Divergence):
    """Generalized JSD over the whole vocabulary, by one kernel on CUDA devices."""

    def max_rows(self, vocab: int, device: torch.device) -> int | None:
        """Return None where a kernel takes any number of rows. See `Support.max_rows`."""
        return super().max_rows(vocab, device) if fused.kernels(device) is None else None

    def compare(
        self,
        student_logits: Float[Tensor, "rows vocab"],
        teacher_logits: Float[Tensor, "rows vocab"],
        targets: Int[Tensor, " rows"] | None,
        scratch: Float[Tensor, "4 at_least_rows vocab"],
        gradient: Float[Tensor, "rows vocab"] | None,
    ) -> Float[Tensor, "7 rows"]:
        """Compare one tile of logits. See `Support.compare`."""
        temperatures = self.student_temperature, self.teacher_temperature
        if (kernels := fused.kernels(student_logits.device, student_logits.dtype)) is not None:
            entry_clip = self.clip_value if self.clip_mode == "entry" else None
            options = {"beta": self.beta, "temperatures": temperatures, "entry_clip": entry_clip}
            values: Float[Tensor, "7 rows"] = kernels.divergence(
                student_logits, teacher_logits, targets, gradient, **options
            )
            return values
        measures, gap = measure(student_logits, teacher_logits, targets, scratch, temperatures)
        _, _, p_student, p_teacher = scratch[:, : len(student_logits)]
        if self.beta == 0 and self.clip_mode != "entry":
            total = measures[0]
            if gradient is not None:
                torch.sub(p_student, p_teacher, out=gradient)
        else:
            total, slope = self.by_entry(gap, p_student, p_teacher)
            if gradient is not None:
                # log p_i = z_i − log Σ_j exp z_j, so dD/dz = slope − p_student · Σ slope
                torch.addcmul(slope, p_student, slope.sum(-1, keepdim=True), value=-1, out=gradient)
        return torch.stack((total, *measures))


FORWARD_KL = FullVocabulary()
"""KL(teacher‖student) at temperature 1, unclipped."""


def measure(
    student_logits: Float[Tensor, "rows vocab"],
    teacher_logits: Float[Tensor, "rows vocab"],
    targets: Int[Tensor, " rows"] | None,
    scratch: Float[Tensor, "4 at_least_rows vocab"],
    temperatures: tuple[float, float],
) -> tuple[list[Float[Tensor, " rows"]], Float[Tensor, "rows vocab"]]:
    """Return the `MEASURES` and log p_teacher − log p_student over the whole vocabulary.

    Args:
        student_logits: divided by their temperature in place.
        teacher_logits: overwritten, with the difference.
        targets: the sampled ids.
        scratch: receives log p_student, log p_teacher, p_student and p_teacher.
        temperatures: the student's and the teacher's.
    """
    log_student, log_teacher, p_student, p_teacher = scratch[:, : len(student_logits)]
    for logits, temperature in zip((student_logits, teacher_logits), temperatures, strict=True):
        if temperature != 1:
            logits.div_(temperature)
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
    if targets is None:
        of_targets = [torch.full_like(kl, math.nan)] * 2
    else:
        of_targets = [values.gather(-1, targets[:, None]).squeeze(-1) for values in (log_student, log_teacher)]
    return [kl, entropy_student, entropy_teacher, agreement, *of_targets], gap


def _shares(
    beta: float,
    gap: Float[Tensor, "rows entries"],
    p_student: Float[Tensor, "rows entries"],
    p_teacher: Float[Tensor, "rows entries"],
) -> tuple[Float[Tensor, "rows entries"], Float[Tensor, "rows entries"]]:
    """Return each entry's share of the divergence, and its slope in the entry's log p_student."""
    if beta == 0:
        return p_teacher * gap, -p_teacher
    if beta == 1:
        share = -p_student * gap
        return share, share + p_student
    floor = torch.full((), math.log1p(-beta), dtype=gap.dtype, device=gap.device)
    mixture = torch.logaddexp(gap + math.log(beta), floor)  # log m − log p_student
    slope = (beta - 1) * p_student * mixture
    return beta * p_teacher * (gap - mixture) + slope, slope
