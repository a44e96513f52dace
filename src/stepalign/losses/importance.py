"""Importance correction: tokens weighted by how much likelier they are now than under the policy that sampled.

    token       ρ_t = min(π(y_t) / π_sampled(y_t), cap)
    sequence    ρ   = min(Π_t π(y_t) / π_sampled(y_t), cap),   the same for each token of a sequence

No gradient flows through ρ. Truncated above only, so that a token that the policy has come to avoid loses its weight
(SDPO's `is_clip`; TRL's `token_truncate` and `sequence_truncate`). The policy that sampled is an engine whose
numbers differ from the trainer's, or the trainer's own before the first of several updates.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class ImportanceSampling:
    """Truncated importance ratio of policy and sampler."""

    level: Literal["token", "sequence"]
    cap: float
    """The largest ratio."""

    def ratios(
        self,
        log_probs: Float[Tensor, " tokens"],
        sampled_log_probs: Float[Tensor, " tokens"],
        lengths: Sequence[int],
    ) -> Float[Tensor, " tokens"]:
        """Return each token's ratio.

        Args:
            log_probs: of the sampled tokens under the policy now.
            sampled_log_probs: under the policy that sampled them, at the same temperature.
            lengths: the tokens of each sequence.
        """
        gap = log_probs - sampled_log_probs
        if self.level == "sequence":
            sums = [values.sum().expand(len(values)) for values in torch.split(gap, list(lengths))]
            gap = torch.cat(sums) if sums else gap
        return gap.exp().clamp(max=self.cap)
