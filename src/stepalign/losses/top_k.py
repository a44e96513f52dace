"""Top-k support: the k likeliest entries of one model, and all others as one bucket.

With K the k entries, both models are compared as distributions over k + 1 buckets, the last of mass 1 − Σ_K p. That is
a divergence: it is never negative, 0 only where all buckets agree, and at most the whole vocabulary's. SDPO
(Hübotter et al., arXiv 2601.20802) takes the student's entries. For i in K, with S the sum of all slopes in log p:

    dD/dz_i = slope_i − p_i·S            in K
    dD/dz_j = slope_tail·p_j/p_tail − p_j·S   elsewhere

Left out: top-k without a tail. Truncated it can be negative, and its gradient can lower all k entries at once.
Renormalized it is 0 for models that differ in the mass of the k entries.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from stepalign.losses.support import Divergence, measure


@dataclass(frozen=True, kw_only=True)
class TopK(Divergence):
    """Generalized JSD over one model's likeliest entries and the tail."""

    top_k: int
    """The number of entries; a larger number than the vocabulary's is the whole vocabulary."""
    of: Literal["student", "teacher"] = "student"
    """The model whose likeliest entries are taken."""

    def compare(
        self,
        student_logits: Float[Tensor, "rows vocab"],
        teacher_logits: Float[Tensor, "rows vocab"],
        targets: Int[Tensor, " rows"] | None,
        scratch: Float[Tensor, "4 at_least_rows vocab"],
        gradient: Float[Tensor, "rows vocab"] | None,
    ) -> Float[Tensor, "7 rows"]:
        """Compare one tile of logits. See `Support.compare`. The measures are of the whole vocabulary."""
        temperatures = self.student_temperature, self.teacher_temperature
        measures, _ = measure(student_logits, teacher_logits, targets, scratch, temperatures)
        log_student, log_teacher, p_student, _ = scratch[:, : len(student_logits)]
        # The tail is one entry at least. Where it is one, the buckets are the whole vocabulary.
        count = min(self.top_k, student_logits.shape[-1] - 1)
        top = (log_student if self.of == "student" else log_teacher).topk(count, -1, sorted=False).indices
        buckets = torch.stack([_with_tail(values, top) for values in (log_student, log_teacher)])
        student, teacher = buckets
        p_buckets, q_buckets = buckets.exp()
        total, slope = self.by_entry(teacher - student, p_buckets, q_buckets)
        if gradient is not None:
            # Entries of the tail share its slope by their probability within it. Those in K are −∞ here, so 0.
            within_tail = log_student.sub_(student[:, -1:]).exp_().mul_(slope[:, -1:])
            within_tail.addcmul_(p_student, slope.sum(-1, keepdim=True), value=-1).scatter_add_(-1, top, slope[:, :-1])
            gradient.copy_(within_tail)
        return torch.stack((total, *measures))


def _with_tail(log_probs: Float[Tensor, "rows vocab"], top: Int[Tensor, "rows k"]) -> Float[Tensor, "rows buckets"]:
    """Return the log-probabilities of k entries and of all others together; the k become −∞ in `log_probs`.

    The tail is summed, not taken as 1 − Σ_K p, because the difference would be rounding alone where p is peaked.
    """
    chosen = log_probs.gather(-1, top)
    log_probs.scatter_(-1, top, -torch.inf)
    return torch.cat((chosen, log_probs.logsumexp(-1, keepdim=True)), -1)
