"""Sampled-token support: a policy gradient whose advantage is the credit of the sampled token.

On-policy distillation with a teacher's log-probabilities alone (Thinking Machines; Eq. 4 of arXiv 2606.11173 has the
same A_t). With y_t the sampled token and γ the discount:

    a_t = log p_teacher(y_t) − log p_student(y_t),   within ±c where clipped
    A_t = Σ_{s≥t} γ^(s−t)·a_s                        γ = 0: the token's own
    L_t = −A_t·log p_student(y_t),                   no gradient through A_t

Its gradient is that of KL(student‖teacher) in expectation over the student's samples. The value of L_t is not a
divergence, and equals that of TRL's `sampled_token`.

Left out: the forward direction, because the sampled token gives no estimate of it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from stepalign.losses import lm_head
from stepalign.losses.support import measure


@dataclass(frozen=True, kw_only=True)
class SampledToken:
    """Policy gradient with the teacher's advantage on the sampled token."""

    student_temperature: float = 1.0
    teacher_temperature: float = 1.0
    clip_value: float | None = None
    """The largest absolute a_t (nats); None is no bound."""
    discount: float = 0.0
    """The weight of each later token's a, to the power of its distance."""

    @property
    def max_per_token(self) -> float:
        """Infinity: the advantage is clipped, not the token's loss."""
        return torch.inf

    def max_rows(self, vocab: int, device: torch.device) -> int | None:
        """Return a tile's rows. See `Support.max_rows`."""
        return lm_head.tile_rows(vocab, device)

    def compare(
        self,
        student_logits: Float[Tensor, "rows vocab"],
        teacher_logits: Float[Tensor, "rows vocab"],
        targets: Int[Tensor, " rows"] | None,
        scratch: Float[Tensor, "4 at_least_rows vocab"],
        gradient: Float[Tensor, "rows vocab"] | None,
    ) -> Float[Tensor, "7 rows"]:
        """Return −log p_student of the targets as divergence. See `Support.compare`."""
        if targets is None:
            raise ValueError("the sampled token's support needs the sampled ids: targets is None")
        temperatures = self.student_temperature, self.teacher_temperature
        measures, _ = measure(student_logits, teacher_logits, targets, scratch, temperatures)
        if gradient is not None:
            p_student = scratch[2, : len(student_logits)]
            gradient.copy_(p_student.scatter_add_(-1, targets[:, None], p_student.new_full((len(targets), 1), -1)))
        return torch.stack((-measures[4], *measures))

    def factors(
        self,
        log_prob_student: Float[Tensor, " tokens"],
        log_prob_teacher: Float[Tensor, " tokens"],
        lengths: Sequence[int],
    ) -> Float[Tensor, " tokens"]:
        """Return A_t. See `Support.factors`."""
        own = log_prob_teacher - log_prob_student
        if self.clip_value is not None:
            own = own.clamp(-self.clip_value, self.clip_value)
        if self.discount == 0:
            return own
        sums = [_discounted_sums(values.tolist(), self.discount) for values in torch.split(own, list(lengths))]
        return torch.tensor([value for values in sums for value in values], dtype=own.dtype, device=own.device)


def _discounted_sums(values: Sequence[float], discount: float) -> list[float]:
    """Return Σ_{s≥t} discount^(s−t)·value_s for each t."""
    sums, total = [], 0.0
    for value in reversed(values):
        total = value + discount * total
        sums.append(total)
    return sums[::-1]
