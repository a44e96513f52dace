"""Drawing completions from a policy: the protocol that every engine follows.

Token ids go in and the very ids that were sampled come out; nothing here knows problems or prompts' wording.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from stepalign import recipe
from stepalign.records import FinishReason, TokenIds


@dataclass(frozen=True, kw_only=True)
class Request:
    """One completion to draw.

    What is drawn depends on the seed and the prompt, not on what is drawn beside it, but for the rounding of
    products of another batch size: equal lists of requests get equal completions, bit for bit on the CPU.
    """

    id: str
    prompt_ids: TokenIds
    seed: int


@dataclass(frozen=True, kw_only=True)
class Completion:
    """The ids drawn for a request; a sampled end-of-sequence token is the last of them."""

    id: str
    ids: TokenIds
    finish: FinishReason


class Sampler(Protocol):
    """Draws completions, in the order in which they finish."""

    def sample(
        self, requests: Sequence[Request], sampling: recipe.Sampling, *, adapter: str | None
    ) -> Iterator[Completion]:
        """Draw one completion a request.

        Args:
            requests: what to draw, with distinct ids.
            sampling: temperature, top-p, top-k and the length cap.
            adapter: the name of the adapter in use; None samples from the base.

        Raises:
            StepalignError: naming the request, where a prompt leaves no room in the model's context.
        """
        ...
