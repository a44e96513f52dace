"""Views: a prompt's ids followed by the very ids that were sampled, never text encoded again.

The student's and the teacher's view of a rollout share the completion ids.
"""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from stepalign.records import TokenIds


@dataclass(frozen=True, kw_only=True)
class View:
    """Prompt ids, completion ids, and the span of the completion that carries loss."""

    prompt_ids: TokenIds
    completion_ids: TokenIds
    loss_start: int
    """The first completion token in the loss, counted from 0."""
    loss_stop: int
    """The end of the loss span, exclusive."""

    def __post_init__(self) -> None:
        if not self.prompt_ids or not 0 <= self.loss_start <= self.loss_stop <= len(self.completion_ids):
            raise ValueError(
                f"a view needs a prompt ({len(self.prompt_ids)} ids) and a span within the completion's "
                f"{len(self.completion_ids)} ids (found {self.loss_start} … {self.loss_stop})"
            )

    @classmethod
    def whole(cls, prompt_ids: TokenIds, completion_ids: TokenIds) -> "View":
        """Build a view whose whole completion carries loss."""
        return cls(prompt_ids=prompt_ids, completion_ids=completion_ids, loss_start=0, loss_stop=len(completion_ids))

    @property
    def num_loss_tokens(self) -> int:
        """The number of tokens in the loss."""
        return self.loss_stop - self.loss_start

    @property
    def input_ids(self) -> TokenIds:
        """The ids a model reads to predict every loss token, and nothing after them."""
        return (*self.prompt_ids, *self.completion_ids[: max(self.loss_stop - 1, 0)])


@runtime_checkable
class TrainingExample(Protocol):
    """One rollout as an algorithm trains on it."""

    @property
    def rollout_id(self) -> str:
        """The rollout's id."""

    @property
    def student(self) -> View:
        """The view of the student's forward and backward pass."""

    @property
    def sampler_logprobs(self) -> tuple[float, ...] | None:
        """The sampler's own log-probabilities of the loss tokens, at temperature 1; None where it gave none."""

    @property
    def max_input_len(self) -> int:
        """The tokens of the longest pass over the example."""
