"""Cross-entropy of given tokens, in bounded memory: −Σ_t weight_t · log π(y_t)."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from stepalign.losses.grpo import Metrics, policy_gradient


def cross_entropy(
    hidden: Float[Tensor, "tokens hidden"],
    head: Float[Tensor, "vocab hidden"],
    targets: Int[Tensor, " tokens"],
    weights: Float[Tensor, " tokens"],
    *,
    chunk_tokens: int | None = None,
) -> tuple[Float[Tensor, ""], Metrics]:
    """Compute the loss, with its gradient to `hidden`.

    It is the policy gradient with an advantage of 1 on every token, so that it shares its chunks. Only the value
    differs. See `policy_gradient`.
    """
    ones = torch.ones_like(weights)
    loss, metrics = policy_gradient(hidden, head, targets, ones, weights, temperature=1.0, chunk_tokens=chunk_tokens)
    value = -torch.linalg.vecdot(weights.to(metrics.log_probs.dtype), metrics.log_probs)
    return loss + (value - loss).detach(), metrics
