"""Log-probabilities of a step's rollouts under the policy that sampled them, for ratios with the policy as it is."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from stepalign import config
from stepalign.losses.importance import ImportanceSampling
from stepalign.views import TrainingExample


class OldLogProbs:
    """Log-probabilities of each rollout's loss tokens before the step's first update, for the later ones.

    They are the trainer's own under the weights that sampled, so no second pass is spent and no difference between two
    engines enters the ratio.
    """

    def __init__(self) -> None:
        self._values: dict[str, Float[Tensor, " tokens"]] = {}

    def get(self, examples: Sequence[TrainingExample]) -> Float[Tensor, " tokens"] | None:
        """Return a micro-batch's, or None in the first update."""
        if any(example.rollout_id not in self._values for example in examples):
            return None
        return torch.cat([self._values[example.rollout_id] for example in examples])

    def keep(self, examples: Sequence[TrainingExample], log_probs: Float[Tensor, " tokens"]) -> None:
        """Keep those of a micro-batch in its first update."""
        lengths = [example.student.num_loss_tokens for example in examples]
        for example, values in zip(examples, torch.split(log_probs, lengths), strict=True):
            self._values.setdefault(example.rollout_id, values)

    def clear(self) -> None:
        """Drop them at the end of a step."""
        self._values.clear()


def sampler_log_probs(examples: Sequence[TrainingExample], device: torch.device) -> Float[Tensor, " tokens"] | None:
    """Return the sampler's own log-probabilities of a micro-batch's loss tokens, where all its rollouts have them."""
    values = [example.sampler_logprobs for example in examples]
    if any(each is None for each in values):
        return None
    return torch.tensor([value for each in values if each is not None for value in each], device=device)


def importance_of(algorithm: config.PolicyRatioConfig) -> ImportanceSampling | None:
    """Return the importance correction that a recipe's table names; None where it is off."""
    level = algorithm.importance_sampling_level
    return None if level == "off" else ImportanceSampling(level=level, cap=algorithm.importance_sampling_cap)
