"""Negative log-likelihood of given tokens, in bounded memory.

Its gradient is that of a policy gradient with advantage 1 at temperature 1, which makes it a chunk at a time.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from stepalign.losses.grpo import policy_gradient


def negative_log_likelihood(
    hidden: Float[Tensor, "tokens hidden"],
    head: Float[Tensor, "vocab hidden"],
    targets: Int[Tensor, " tokens"],
    weights: Float[Tensor, " tokens"],
    *,
    chunk_tokens: int | None = None,
) -> tuple[Float[Tensor, ""], Float[Tensor, " tokens"]]:
    """Compute −Σ_t weights_t · log p(y_t), with its gradient to `hidden`, and each token's −log p(y_t)."""
    ones = torch.ones_like(weights)
    surrogate, metrics = policy_gradient(
        hidden, head, targets, ones, weights, temperature=1.0, chunk_tokens=chunk_tokens
    )
    value = -torch.linalg.vecdot(weights.to(metrics.log_probs.dtype), metrics.log_probs)
    return surrogate - surrogate.detach() + value, -metrics.log_probs
