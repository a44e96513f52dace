"""Drawing completions from a policy: the protocol that every engine follows.

Token ids go in and the very ids that were sampled come out; nothing here knows problems or prompts' wording.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from stepalign import config
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


@runtime_checkable
class Sampler(Protocol):
    """Draws completions, in the order in which they finish."""

    def sample(
        self, requests: Sequence[Request], sampling: config.SamplingConfig, *, adapter: str | None
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


@dataclass(frozen=True, kw_only=True)
class AdapterVersion:
    """A policy on its way to an engine: a PEFT adapter under a name that no other version ever had."""

    name: str
    number: int
    """Counts hand-overs, from 1."""
    folder: Path


@runtime_checkable
class Engine(Sampler, Protocol):
    """A sampler with weights of its own. It is handed each new adapter, never merged weights."""

    def load_adapter(self, version: AdapterVersion) -> None:
        """Sample from this adapter from now on, wherever an adapter is asked for.

        Raises:
            StepalignError: it cannot be loaded.
        """
        ...

    def sample_logprobs(
        self, prompts: Sequence[TokenIds], *, adapter: str | None
    ) -> Mapping[str, list[tuple[int, float]]]:
        """For each of the engine's servers, by name: a token drawn behind each prompt and its log-probability.

        At temperature 1, from the whole vocabulary.
        """
        ...

    def sleep(self) -> None:
        """Give back what the device needs for training, until the next request."""
        ...

    def close(self) -> None:
        """End what was started."""
        ...
