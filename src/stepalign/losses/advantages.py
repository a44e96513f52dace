"""Token advantages: a group's advantage modulated by the credit of each token.

With the group advantage A of a rollout, s = sign(A), and the credit c_t of a token (credit below `min_credit` counts
as 0):

    add         Â_t = s · max(s·(A + weight · tanh(scale·c_t)), min(min_advantage, |A|))
    multiply    Â_t = A · (1 − weight + weight · clip(exp(s·scale·c_t), 1 − clip, 1 + clip))

`add` is after RLCSD (arXiv 2606.11709), `multiply` after RLSD (arXiv 2604.03128).

The grade decides the direction, and credit only how much of it a token gets: Â_t has the sign of A, 0 stays 0, and
|Â_t| is at most |A| + weight, or |A|·(1 + weight·clip).

Left out: RLCSD's separate normalization of modulated and other tokens, because one denominator a step is used here.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

Gather = Literal["token", "step_mean", "step_min"]


@dataclass(frozen=True, kw_only=True)
class Modulation:
    """Settings of `modulate`."""

    mode: Literal["add", "multiply"] = "multiply"
    weight: float = 0.5
    scale: float = 1.0
    min_credit: float = 0.0
    """Credit of at most this size (nats) counts as 0."""
    min_advantage: float = 0.02
    """`add`: the smallest size that credit can reduce an advantage to."""
    clip: float = 0.2
    """`multiply`: the largest change of the factor."""


def modulate(
    advantage: Float[Tensor, " tokens"], credit: Float[Tensor, " tokens"], settings: Modulation
) -> Float[Tensor, " tokens"]:
    """Return each token's advantage Â_t.

    Args:
        advantage: each token's rollout's.
        credit: of each token, in nats; 0 leaves the advantage as it is.
        settings: of the modulation.
    """
    sign = advantage.sign()
    credit = torch.where(credit.abs() > settings.min_credit, credit, 0.0)
    if settings.mode == "add":
        moved = sign * (advantage + settings.weight * torch.tanh(settings.scale * credit))
        return sign * torch.maximum(moved, advantage.abs().clamp(max=settings.min_advantage))
    # Beyond these bounds the clip decides, and the exponential would overflow.
    factor = (sign * settings.scale * credit).clamp(-30, 30).exp().clamp(1 - settings.clip, 1 + settings.clip)
    return advantage * (1 - settings.weight + settings.weight * factor)


def gather_steps(
    credit: Float[Tensor, " tokens"], steps: Sequence[tuple[int, int]], gather: Gather
) -> Float[Tensor, " tokens"]:
    """Give every token the credit of its step: the mean or the lowest of the step's tokens.

    Args:
        credit: of each token of one rollout.
        steps: half-open token ranges, in order. Tokens before the first are a step of their own.
        gather: `token` changes nothing.
    """
    if gather == "token" or not len(credit):
        return credit
    bounds = sorted({0, *(start for start, _ in steps), len(credit)})
    parts = [credit[start:stop] for start, stop in pairwise(bounds)]
    values = [part.mean() if gather == "step_mean" else part.min() for part in parts]
    return torch.cat([value.expand(len(part)) for value, part in zip(values, parts, strict=True)])


def conserve(modulated: Float[Tensor, " tokens"], advantage: float) -> Float[Tensor, " tokens"]:
    """Rescale one rollout's token advantages so that their mean is the rollout's own advantage."""
    mean = modulated.mean()
    return modulated if mean == 0 else modulated * (advantage / mean)


def contrast(right: Float[Tensor, " tokens"], wrong: Float[Tensor, "contexts tokens"]) -> Float[Tensor, " tokens"]:
    """Compute log p(y_t | right context) − log mean_k p(y_t | wrong context k), from log-probabilities.

    The student's own log-probability cancels, and with it whatever any context of this form does to a token.
    """
    return right - log_mean_exp(wrong)


def log_mean_exp(log_probs: Float[Tensor, "contexts tokens"]) -> Float[Tensor, " tokens"]:
    """Return the logarithm of the mean probability over contexts."""
    return log_probs.logsumexp(0) - math.log(len(log_probs))
