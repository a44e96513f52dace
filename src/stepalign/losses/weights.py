"""Token weights: mask and denominator of a loss in one number a token."""

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

LossAggMode = Literal["seq-mean-token-mean", "token-mean"]


def token_weights(
    lengths: Sequence[int], loss_agg_mode: LossAggMode, *, sequences: int, tokens: int
) -> Float[Tensor, " tokens"]:
    """Return each token's weight, so that sums over micro-batches and ranks are the step's mean.

    Args:
        lengths: loss tokens of each sequence of one micro-batch.
        loss_agg_mode: the mean over each sequence's tokens and then over sequences, or over all tokens at once.
        sequences: sequences with loss tokens in the whole optimizer step, over all ranks.
        tokens: loss tokens in the whole optimizer step, over all ranks.
    """
    if loss_agg_mode == "token-mean":
        return torch.full((sum(lengths),), 1 / tokens)
    return torch.cat([torch.full((length,), 1 / (max(length, 1) * sequences)) for length in lengths])
