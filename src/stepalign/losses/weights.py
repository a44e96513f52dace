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


def part_scales(part: Sequence[int], whole: Sequence[int], loss_agg_mode: LossAggMode) -> list[float]:
    """Return each sequence's factor that turns the step's mean over all tokens into the mean over a part of them.

    Args:
        part: tokens of each sequence that one term of the loss counts; 0 leaves the sequence out.
        whole: all loss tokens of each sequence, the same that `token_weights` counts.
        loss_agg_mode: as in `token_weights`.
    """
    counted = [length for length in part if length]
    if not counted:
        return [0.0] * len(part)
    if loss_agg_mode == "token-mean":
        return [sum(whole) / sum(counted) if length else 0.0 for length in part]
    share = len(whole) / len(counted)
    return [share * all_of_it / length if length else 0.0 for length, all_of_it in zip(part, whole, strict=True)]
