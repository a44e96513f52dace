"""What each token's loss is multiplied by: the mask and the denominator in one tensor.

An optimizer step sums Σ_t weight_t · loss_t over all its micro-batches and ranks. With the denominator
taken over the whole of it, how rollouts are cut into micro-batches changes nothing: a mean of means would
give a token of a short micro-batch more say.
"""

from typing import Literal

from jaxtyping import Bool, Float
from torch import Tensor


def token_weights(
    counted: Bool[Tensor, "rows positions"],
    normalize: Literal["sequence", "token"],
    *,
    denominator: int,
) -> Float[Tensor, "rows positions"]:
    """Weights that make the step's sum a mean over sequences of means over tokens, or a mean over tokens.

    Args:
        counted: the tokens of a micro-batch that are in the loss: in the completion, past `skip_first`,
            within the horizon.
        normalize: `sequence` or `token`.
        denominator: over the whole accumulation window and all ranks, how many sequences have a counted token
            (`sequence`), or how many tokens are counted (`token`).

    Raises:
        ValueError: where the denominator is less than what this micro-batch alone holds.
    """
    lengths = counted.sum(-1)
    own = int((lengths > 0).sum() if normalize == "sequence" else lengths.sum())
    if denominator < own:
        raise ValueError(f"denominator = {denominator}, but this micro-batch alone has {own} to a {normalize}")
    if normalize == "token":
        return counted.float() / max(1, denominator)
    return counted.float() / lengths.clamp(min=1)[:, None] / max(1, denominator)
