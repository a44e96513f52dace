"""Sampler protocol: prompt ids in, the very ids that were sampled out. Problems and prompts' wording stay outside."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from stepalign import config
from stepalign.records import FinishReason, TokenIds


@dataclass(frozen=True, kw_only=True)
class Request:
    """One completion to sample.

    The completion depends on seed and prompt, not on the other requests, but for the rounding of products of another
    batch size: equal lists of requests get equal completions, bit for bit on the CPU.
    """

    id: str
    prompt_ids: TokenIds
    seed: int


@dataclass(frozen=True, kw_only=True)
class Completion:
    """The ids sampled for a request; a sampled end-of-sequence token is the last of them."""

    id: str
    ids: TokenIds
    finish: FinishReason
    logprobs: tuple[float, ...] | None = None
    """The sampler's own log-probabilities of the ids, at temperature 1, of the whole vocabulary; None: not computed."""


@runtime_checkable
class Sampler(Protocol):
    """Source of completions, in the order in which they finish."""

    def sample(
        self, requests: Sequence[Request], sampling: config.SamplingConfig, *, adapter: str | None
    ) -> Iterator[Completion]:
        """Sample one completion per request from the base (`adapter` None) or from the adapter named so.

        Raises:
            StepalignError: naming the request, where a prompt leaves no room in the model's context.
        """


@dataclass(frozen=True, kw_only=True)
class AdapterVersion:
    """A PEFT adapter in a folder, under a name that no other version ever had."""

    name: str
    number: int
    """Counts the versions that were loaded, from 1."""
    folder: Path


@runtime_checkable
class RemoteSampler(Sampler, Protocol):
    """Sampler with weights of its own. It loads each new adapter; weights are never merged."""

    def load_adapter(self, version: AdapterVersion) -> None:
        """Load an adapter, and sample from it wherever an adapter is named."""

    def prompt_logprobs(self, prompts: Sequence[TokenIds], *, adapter: str | None) -> Mapping[str, list[list[float]]]:
        """Score each prompt's tokens but the first, given those before, at temperature 1, by server's name."""

    def sleep(self) -> None:
        """Free the device memory that training needs, until the next request."""

    def close(self) -> None:
        """Stop what was started."""


def sampling_limit(sampler: config.SamplerConfig, context_limit: int | None) -> int | None:
    """Return the most tokens of a prompt and its completion; None is no limit.

    `context_limit` is the model's own. vLLM may be started with fewer positions.
    """
    own = sampler.max_model_len if isinstance(sampler, config.VllmConfig) else None
    return min((limit for limit in (context_limit, own) if limit is not None), default=None)
