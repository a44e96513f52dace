"""Log-probabilities of sampled tokens, and the likeliest tokens in their place.

The difference of teacher and student is the credit of Eq. 4 (arXiv 2606.11173):

    A_t = log p(ŷ_t | x, c, y_<t) − log p(ŷ_t | x, y_<t)

Credit is at temperature 1, also where rollouts were sampled at another. Logits exist for a chunk of tokens at a time,
so memory does not grow with the number of tokens. Left out: gradients, because credit has none.

    python bench/probe.py
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from stepalign.losses.lm_head import chunk_tokens, logit_dtype, project, tile_rows


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Log-probabilities of tokens under one model, in nats."""

    log_probs: Float[Tensor, " tokens"]
    top_ids: Int[Tensor, "tokens top"]
    """The likeliest entries of the vocabulary, the likeliest first."""
    top_log_probs: Float[Tensor, "tokens top"]


@torch.no_grad()
def scores(
    hidden: Float[Tensor, "tokens hidden"],
    head: Float[Tensor, "vocab hidden"],
    targets: Int[Tensor, " tokens"],
    *,
    top: int = 0,
    temperature: float = 1.0,
) -> Scores:
    """Compute log-probabilities of tokens.

    Args:
        hidden: final hidden states (after the last norm) at the positions that predict the tokens.
        head: the output embedding. Hidden states are cast to its dtype; the softmax is in float32.
        targets: the tokens themselves.
        top: the number of likeliest entries to return beside them.
        temperature: divides the logits. A half-precision hidden state that it divided would be rounded.
    """
    tokens, vocab, device, dtype = len(targets), len(head), head.device, logit_dtype(head)
    chunk = max(1, chunk_tokens(tokens, vocab, device))
    rows = min(chunk, tile_rows(vocab, device))
    logits = torch.empty((chunk, vocab), dtype=dtype, device=device)
    log_probs = torch.empty(tokens, dtype=dtype, device=device)
    top_ids = torch.empty((tokens, top), dtype=torch.long, device=device)
    top_log_probs = torch.empty((tokens, top), dtype=dtype, device=device)
    # Autocast would make half-precision products of float32 factors.
    with torch.autocast(device.type, enabled=False):
        for first in range(0, tokens, chunk):
            part = hidden[first : first + chunk].to(head.dtype)
            project(part, head, logits[: len(part)])
            if temperature != 1:
                logits[: len(part)].div_(temperature)
            for start in range(0, len(part), rows):
                tile = logits[start : min(start + rows, len(part))]
                at = slice(first + start, first + start + len(tile))
                total = tile.logsumexp(-1)
                log_probs[at] = tile.gather(-1, targets[at, None]).squeeze(-1) - total
                if top:
                    best = tile.topk(top, -1)
                    top_ids[at], top_log_probs[at] = best.indices, best.values - total[:, None]
    return Scores(log_probs=log_probs, top_ids=top_ids, top_log_probs=top_log_probs)
