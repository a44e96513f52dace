"""GRPO: group-normalized advantages and the clipped ratio, in bounded memory (Shao et al., arXiv 2402.03300).

For a token t of a rollout i with advantage A_i (Eq. 2 of arXiv 2606.11173), ratio ρ = π(y_t) / π_old(y_t) and the
base π_0:

    A_i  = (r_i − mean r) / (std r + 1e-4)                      over the group's rewards, std with n − 1
    L_t  = −min(ρ·A_i, clip(ρ, 1 − epsilon, 1 + epsilon_high)·A_i) + kl_coef·(q − log q − 1),   q = π_0(y_t) / π(y_t)

Values and gradients equal those of TRL 1.16 with `loss_type="grpo"`. Logits are divided by the sampling temperature,
because the policy is the one that sampled. The forward pass makes the gradient, a chunk of tokens at a time, as in
`divergence`.

Left out: the renormalization by top-p and top-k, because a token that leaves its set has no ratio any more.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from stepalign.losses import fused, lm_head
from stepalign.losses.gradient import with_gradient
from stepalign.losses.importance import ImportanceSampling

_EPSILON = 1e-4
"""Added to the standard deviation, so that advantages stay finite where rewards hardly differ."""


class Clip(NamedTuple):
    """Bounds of the probability ratio: 1 − epsilon and 1 + epsilon_high."""

    epsilon: float = 0.2
    epsilon_high: float | None = None
    """None is `epsilon`."""


SYMMETRIC_CLIP = Clip()


@dataclass(frozen=True, kw_only=True)
class Metrics:
    """Measures of each token, without gradients."""

    log_probs: Float[Tensor, " tokens"]
    """Under the current policy. A further update on the same rollouts takes them as `old_log_probs`."""
    entropy: Float[Tensor, " tokens"]
    clipped: Float[Tensor, " tokens"]
    """1 where the clip removes the token's gradient, else 0."""
    kl: Float[Tensor, " tokens"]
    """The estimate of KL(policy‖base); NaN without a base."""
    importance_ratio: Float[Tensor, " tokens"] | None
    """None without an importance correction."""


def advantages(rewards: Float[Tensor, "groups group"]) -> Float[Tensor, "groups group"]:
    """Normalize each rollout's reward over its group (Eq. 2); equal rewards give 0."""
    return (rewards - rewards.mean(-1, keepdim=True)) / (rewards.std(-1, keepdim=True) + _EPSILON)


def policy_gradient(
    hidden: Float[Tensor, "tokens hidden"],
    head: Float[Tensor, "vocab hidden"],
    targets: Int[Tensor, " tokens"],
    advantage: Float[Tensor, " tokens"],
    weights: Float[Tensor, " tokens"],
    *,
    temperature: float,
    clip: Clip = SYMMETRIC_CLIP,
    kl_coef: float = 0.0,
    chunk_tokens: int | None = None,
    old_log_probs: Float[Tensor, " tokens"] | None = None,
    base_log_probs: Float[Tensor, " tokens"] | None = None,
    lengths: Sequence[int] | None = None,
    importance: ImportanceSampling | None = None,
    sampled_log_probs: Float[Tensor, " tokens"] | None = None,
) -> tuple[Float[Tensor, ""], Metrics]:
    """Compute Σ_t weights_t · L_t, with its gradient to `hidden`, and to a head that is trained.

    Args:
        hidden: the policy's final hidden states at the positions that predict the tokens.
        head: the output embedding. The softmax is in float32.
        targets: the tokens that were sampled.
        advantage: each token's rollout's.
        weights: mask and denominator in one (`losses.weights`).
        temperature: the temperature of sampling.
        clip: the bounds of the ratio.
        kl_coef: the weight of KL(policy‖base).
        chunk_tokens: tokens whose logits exist at once; None chooses by vocabulary and device.
        old_log_probs: log-probabilities under the policy that sampled; None where that is this policy.
        base_log_probs: the same under the base, at this temperature; needed where `kl_coef` is not 0.
        lengths: tokens of each sequence, in order; None is one sequence.
        importance: the correction for an engine that sampled with other numbers than π_old's. It weighs the first term
            of each L_t, and not the KL, as in TRL.
        sampled_log_probs: that engine's log-probabilities, at this temperature; None is π_old's, whose ratio is 1.

    Raises:
        StepalignError: the head is trained in half precision.
        ValueError: `kl_coef` without `base_log_probs`.
    """
    if kl_coef and base_log_probs is None:
        raise ValueError(f"kl_coef = {kl_coef}, but base_log_probs is None")
    wants_gradient = torch.is_grad_enabled() and hidden.requires_grad
    of_head = lm_head.head_gradient(head) if wants_gradient else None
    with torch.no_grad(), torch.autocast(head.device.type, enabled=False):
        losses, measures, gradient = _evaluate(
            hidden, head, targets, advantage, weights, clip, kl_coef, chunk_tokens,
            temperature=temperature, old=old_log_probs, base=base_log_probs, wants_gradient=wants_gradient,
            of_head=of_head,
        )  # fmt: skip
        ratios = None
        if importance is not None:
            old = measures["log_probs"] if old_log_probs is None else old_log_probs
            sampled = old if sampled_log_probs is None else sampled_log_probs.to(old.dtype)
            ratios = importance.ratios(old, sampled, [len(old)] if lengths is None else lengths)
            if kl_coef or of_head is not None:
                # The KL has no ratio. A ratio may depend on later tokens, so a head's sum over tokens is made again.
                losses, _, gradient = _evaluate(
                    hidden, head, targets, advantage * ratios, weights, clip, kl_coef, chunk_tokens,
                    temperature=temperature, old=old_log_probs, base=base_log_probs, wants_gradient=wants_gradient,
                    of_head=None if of_head is None else of_head.zero_(),
                )  # fmt: skip
            else:
                losses = losses * ratios
                if gradient is not None:
                    gradient.mul_(ratios[:, None])
        loss = torch.linalg.vecdot(weights.to(losses.dtype), losses)
    metrics = Metrics(importance_ratio=ratios, **measures)
    if gradient is not None:
        loss = with_gradient(loss, (hidden, gradient), *([] if of_head is None else [(head, of_head)]))
    return loss, metrics


def _evaluate(
    hidden: Float[Tensor, "tokens hidden"],
    head: Float[Tensor, "vocab hidden"],
    targets: Int[Tensor, " tokens"],
    advantage: Float[Tensor, " tokens"],
    weights: Float[Tensor, " tokens"],
    clip: Clip,
    kl_coef: float,
    chunk: int | None,
    *,
    temperature: float,
    old: Float[Tensor, " tokens"] | None,
    base: Float[Tensor, " tokens"] | None,
    wants_gradient: bool,
    of_head: Float[Tensor, "vocab hidden"] | None,
) -> tuple[Float[Tensor, " tokens"], dict[str, Float[Tensor, " tokens"]], Float[Tensor, "tokens hidden"] | None]:
    """Return L_t, each token's measures by name, and d weights_t · L_t / d hidden_t.

    The gradient in the head, which is a sum over tokens, is added to `of_head`.
    """
    tokens, vocab, device, dtype = len(hidden), len(head), head.device, lm_head.logit_dtype(head)
    chunk = max(1, min(tokens, chunk or lm_head.chunk_tokens(tokens, vocab, device)))
    kernels = fused.kernels(device, dtype)
    rows = chunk if kernels else min(chunk, lm_head.tile_rows(vocab, device))
    logits = torch.empty((chunk, vocab), dtype=dtype, device=device)
    scratch = torch.empty((0 if kernels else rows, vocab), dtype=dtype, device=device)
    log_probs, entropy, losses, clipped, kl = torch.empty((5, tokens), dtype=dtype, device=device)
    gradient = torch.zeros_like(hidden, dtype=dtype) if wants_gradient else None

    for first in range(0, tokens, chunk):
        here = slice(first, min(first + chunk, tokens))
        part = hidden[here].to(head.dtype)
        chunk_logits = logits[: len(part)]
        lm_head.project(part, head, chunk_logits)
        if temperature != 1:
            chunk_logits.div_(temperature)
        room = lm_head.gradient_room(chunk_logits, head)
        for start in range(here.start, here.stop, rows):
            tile = slice(start, min(start + rows, here.stop))
            inside = slice(tile.start - first, tile.stop - first)
            of_tile = chunk_logits[inside]
            if kernels:
                log_probs[tile], entropy[tile], total = kernels.token_scores(of_tile, targets[tile])
            else:
                total = of_tile.logsumexp(-1)
                log_probs[tile] = of_tile.gather(-1, targets[tile, None]).squeeze(-1) - total
                probabilities = torch.sub(of_tile, total[:, None], out=scratch[: len(of_tile)]).exp_()
                entropy[tile] = total - torch.linalg.vecdot(probabilities, of_tile)
            losses[tile], slope, clipped[tile], kl[tile] = _token_loss(
                log_probs[tile],
                advantage[tile].to(dtype),
                clip,
                kl_coef,
                old=None if old is None else old[tile],
                base=None if base is None else base[tile],
            )
            if wants_gradient:
                # log p_y = z_y − log Σ_j exp z_j, so d log p_y / dz = onehot_y − p
                slope = slope * weights[tile].to(dtype) / temperature
                if kernels:
                    kernels.token_gradient(of_tile, targets[tile], total, slope, room[inside])
                    continue
                probabilities.mul_(-slope[:, None]).scatter_add_(-1, targets[tile, None], slope[:, None])
                room[inside].copy_(probabilities)
        if gradient is not None:
            gradient[here] = lm_head.pull_back(room, head)
            if of_head is not None:
                of_head.addmm_(room.T, part)
    return losses, {"log_probs": log_probs, "entropy": entropy, "clipped": clipped, "kl": kl}, gradient


def _token_loss(
    log_probs: Float[Tensor, " rows"],
    advantage: Float[Tensor, " rows"],
    clip: Clip,
    kl_coef: float,
    *,
    old: Float[Tensor, " rows"] | None,
    base: Float[Tensor, " rows"] | None,
) -> tuple[Float[Tensor, " rows"], Float[Tensor, " rows"], Float[Tensor, " rows"], Float[Tensor, " rows"]]:
    """Return each token's loss, its slope in log π(y_t), 1 where it is clipped, and its KL to the base."""
    ratio = torch.ones_like(log_probs) if old is None else (log_probs - old).exp()
    bounded = ratio.clamp(1 - clip.epsilon, 1 + (clip.epsilon if clip.epsilon_high is None else clip.epsilon_high))
    clipped = bounded * advantage < ratio * advantage
    loss = -torch.where(clipped, bounded, ratio) * advantage
    slope = (-ratio * advantage).masked_fill(clipped, 0.0)
    if base is None:
        kl = torch.full_like(log_probs, torch.nan)
    else:
        gap = base - log_probs
        kl = gap.exp() - gap - 1
        loss = loss + kl_coef * kl
        slope = slope + kl_coef * (1 - gap.exp())
    return loss, slope, clipped.to(log_probs.dtype), kl
