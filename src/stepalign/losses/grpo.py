"""GRPO: group-normalized advantages and the clipped ratio, in bounded memory (Shao et al., arXiv 2402.03300).

For a token t of a rollout i with advantage A_i (Eq. 2 of arXiv 2606.11173), ratio ρ = π(y_t) / π_old(y_t) and the
base π_0:

    A_i  = (r_i − mean r) / (std r + 1e-4)                      over the group's rewards, std with n − 1
    L_t  = −min(ρ·A_i, clip(ρ, 1 − clip, 1 + clip_high)·A_i) + kl·(q − log q − 1),     q = π_0(y_t) / π(y_t)

"GRPO" as TRL 1.16 computes it with `loss_type="grpo"`, whose values and gradients these are. The policy is the one
that sampled, so its logits are divided by the sampling temperature. Left out: the renormalization by top-p and
top-k, whose sets change as the policy does (a token that falls out of its set has no ratio any more).

The gradient is made in the forward pass, a chunk of tokens at a time, as in `divergence`.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from stepalign import config
from stepalign.errors import StepalignError
from stepalign.losses.gradient import with_gradient
from stepalign.losses.lm_head import chunk_tokens, gradient_room, logit_dtype, project, pull_back, tile_rows

_EPSILON = 1e-4
"""What keeps a group's advantages finite where its rewards hardly differ."""


@dataclass(frozen=True, kw_only=True)
class Metrics:
    """What the loss saw of each token, without gradients."""

    log_probs: Float[Tensor, " tokens"]
    """Under the policy as it is: what a further update on the same rollouts takes as `old`."""
    entropy: Float[Tensor, " tokens"]
    clipped: Float[Tensor, " tokens"]
    """1 where the clip keeps the token from a gradient, else 0."""
    kl: Float[Tensor, " tokens"]
    """The estimate of KL(policy‖base), whatever its weight; NaN without a base."""


def advantages(rewards: Float[Tensor, "groups group"]) -> Float[Tensor, "groups group"]:
    """Each rollout's reward against its group's (Eq. 2); 0 in a group whose rewards are all the same."""
    return (rewards - rewards.mean(-1, keepdim=True)) / (rewards.std(-1, keepdim=True) + _EPSILON)


def policy_gradient(
    hidden: Float[Tensor, "tokens hidden"],
    head: Float[Tensor, "vocab hidden"],
    targets: Int[Tensor, " tokens"],
    advantage: Float[Tensor, " tokens"],
    weights: Float[Tensor, " tokens"],
    settings: config.GRPOConfig,
    *,
    temperature: float,
    old: Float[Tensor, " tokens"] | None = None,
    base: Float[Tensor, " tokens"] | None = None,
) -> tuple[Float[Tensor, ""], Metrics]:
    """Σ_t weights_t · L_t, with its gradient to `hidden`.

    Args:
        hidden: the policy's final hidden states at the positions that predict the tokens.
        head: the frozen output embedding. The softmax is in float32.
        targets: the tokens that were sampled.
        advantage: each token's rollout's.
        weights: masks and denominators in one (`views.weights`).
        settings: `clip`, `clip_high`, `kl` and `chunk_tokens` are used here.
        temperature: what the rollouts were sampled at.
        old: the tokens' log-probabilities under the policy that sampled them; None where that is this policy.
        base: the same under the base, at this temperature; needed where `settings.kl` is not 0.

    Raises:
        StepalignError: where the head wants a gradient.
        ValueError: `settings.kl` without a base.
    """
    if settings.kl_coef and base is None:
        raise ValueError(f"kl = {settings.kl_coef}, but the base's log-probabilities are not given")
    wants_gradient = torch.is_grad_enabled() and hidden.requires_grad
    if wants_gradient and head.requires_grad:
        raise StepalignError("the policy gradient gives the output head none, but head.requires_grad is set: freeze it")
    with torch.no_grad(), torch.autocast(head.device.type, enabled=False):
        loss, metrics, gradient = _evaluate(
            hidden, head, targets, advantage, weights, settings,
            temperature=temperature, old=old, base=base, wants_gradient=wants_gradient,
        )  # fmt: skip
    return (loss if gradient is None else with_gradient(hidden, loss, gradient)), metrics


def _evaluate(
    hidden: Float[Tensor, "tokens hidden"],
    head: Float[Tensor, "vocab hidden"],
    targets: Int[Tensor, " tokens"],
    advantage: Float[Tensor, " tokens"],
    weights: Float[Tensor, " tokens"],
    settings: config.GRPOConfig,
    *,
    temperature: float,
    old: Float[Tensor, " tokens"] | None,
    base: Float[Tensor, " tokens"] | None,
    wants_gradient: bool,
) -> tuple[Float[Tensor, ""], Metrics, Float[Tensor, "tokens hidden"] | None]:
    """The loss, each token's measures, and d loss / d hidden."""
    tokens, vocab, device, dtype = len(hidden), len(head), head.device, logit_dtype(head)
    chunk = max(1, min(tokens, settings.chunk_tokens or chunk_tokens(tokens, vocab, device)))
    rows = min(chunk, tile_rows(vocab, device))
    logits = torch.empty((chunk, vocab), dtype=dtype, device=device)
    scratch = torch.empty((rows, vocab), dtype=dtype, device=device)
    log_probs, entropy, losses, clipped, kl = torch.empty((5, tokens), dtype=dtype, device=device)
    gradient = torch.zeros_like(hidden, dtype=dtype) if wants_gradient else None

    for first in range(0, tokens, chunk):
        here = slice(first, min(first + chunk, tokens))
        part = hidden[here].to(head.dtype)
        chunk_logits = logits[: len(part)]
        project(part, head, chunk_logits)
        if temperature != 1:
            chunk_logits.div_(temperature)
        room = gradient_room(chunk_logits, head)
        for start in range(here.start, here.stop, rows):
            tile = slice(start, min(start + rows, here.stop))
            inside = slice(tile.start - first, tile.stop - first)
            of_tile = chunk_logits[inside]
            total = of_tile.logsumexp(-1)
            log_probs[tile] = of_tile.gather(-1, targets[tile, None]).squeeze(-1) - total
            probabilities = torch.sub(of_tile, total[:, None], out=scratch[: len(of_tile)]).exp_()
            entropy[tile] = total - torch.linalg.vecdot(probabilities, of_tile)
            losses[tile], slope, clipped[tile], kl[tile] = _token_loss(
                log_probs[tile],
                advantage[tile].to(dtype),
                settings,
                old=None if old is None else old[tile],
                base=None if base is None else base[tile],
            )
            if wants_gradient:
                # log p_y = z_y − log Σ_j exp z_j, so d log p_y / dz = onehot_y − p
                slope = slope * weights[tile].to(dtype) / temperature
                probabilities.mul_(-slope[:, None]).scatter_add_(-1, targets[tile, None], slope[:, None])
                room[inside].copy_(probabilities)
        if gradient is not None:
            gradient[here] = pull_back(room, head)
    loss = torch.linalg.vecdot(weights.to(dtype), losses)
    return loss, Metrics(log_probs=log_probs, entropy=entropy, clipped=clipped, kl=kl), gradient


def _token_loss(
    log_probs: Float[Tensor, " rows"],
    advantage: Float[Tensor, " rows"],
    settings: config.GRPOConfig,
    *,
    old: Float[Tensor, " rows"] | None,
    base: Float[Tensor, " rows"] | None,
) -> tuple[Float[Tensor, " rows"], Float[Tensor, " rows"], Float[Tensor, " rows"], Float[Tensor, " rows"]]:
    """Each token's loss, its slope in log π(y_t), whether it is clipped, and its KL to the base."""
    ratio = torch.ones_like(log_probs) if old is None else (log_probs - old).exp()
    high = settings.epsilon if settings.epsilon_high is None else settings.epsilon_high
    bounded = ratio.clamp(1 - settings.epsilon, 1 + high)
    clipped = bounded * advantage < ratio * advantage
    loss = -torch.where(clipped, bounded, ratio) * advantage
    slope = (-ratio * advantage).masked_fill(clipped, 0.0)
    if base is None:
        kl = torch.full_like(log_probs, torch.nan)
    else:
        gap = base - log_probs
        kl = gap.exp() - gap - 1
        loss = loss + settings.kl_coef * kl
        slope = slope + settings.kl_coef * (1 - gap.exp())
    return loss, slope, clipped.to(log_probs.dtype), kl
