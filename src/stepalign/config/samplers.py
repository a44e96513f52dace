"""The `[sampler]` tables: the engine that samples rollouts. Without `kind`, transformers."""

from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal

from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt, SerializeAsAny

from stepalign.config.registry import FAMILIES, KEY_VARIABLE, RUNTIME, Probability, Table, Urls, register


class SamplerConfig(Table):
    """Base of every sampler's table."""

    is_remote: ClassVar[bool] = False
    """The sampler has weights and log-probabilities of its own."""
    kind: str
    max_num_seqs: Annotated[PositiveInt, RUNTIME] = 32
    """The most sequences decoded together."""


AnySamplerConfig = Annotated[SerializeAsAny[SamplerConfig], FAMILIES["sampler"]]


@register("sampler", "transformers", implementation="stepalign.rollouts.transformers:TransformersSampler")
class TransformersConfig(SamplerConfig):
    """The training model itself, in process, on any device."""

    kind: Literal["transformers"] = "transformers"


class _RemoteConfig(SamplerConfig):
    """Base of the tables of samplers with weights of their own."""

    is_remote: ClassVar[bool] = True
    tolerance: Annotated[PositiveFloat | None, RUNTIME] = None
    """The largest mean difference (nats a token) between the sampler's log-probabilities and the trainer's, after each
    weight sync; None is 0.001 for float32 and 0.05 for half precision."""
    seeded: bool = True
    """Each request has a seed of its own, so that equal runs sample equal tokens; False is faster in vLLM."""


@register("sampler", "vllm", implementation="stepalign.rollouts.vllm:VllmSampler")
class VllmConfig(_RemoteConfig):
    """vLLM in the training process, on the same device (the paper's)."""

    kind: Literal["vllm"] = "vllm"
    max_num_seqs: Annotated[PositiveInt, RUNTIME] = 256
    gpu_memory_utilization: Annotated[Probability, RUNTIME] = 0.4
    """The share of the device's memory for vLLM."""
    max_model_len: PositiveInt | None = None
    """The most tokens of prompt and completion; None is the model's own limit."""
    enforce_eager: bool = False
    """No CUDA graphs and no compilation: vLLM starts sooner and decodes more slowly."""
    enable_sleep_mode: Annotated[bool, RUNTIME] = True
    """vLLM frees its GPU memory while the policy is trained."""

    def extras(self) -> Iterator[tuple[str, str]]:
        """Yield the need of vLLM."""
        yield "kind = 'vllm'", "vllm"


@register("sampler", "vllm-server", implementation="stepalign.rollouts.vllm_server:ServerSampler")
class VllmServerConfig(_RemoteConfig):
    """vLLM servers over HTTP, started with `--enable-lora` and `VLLM_ALLOW_RUNTIME_LORA_UPDATING=1`."""

    kind: Literal["vllm-server"] = "vllm-server"
    base_url: Annotated[Urls, RUNTIME] = ("http://localhost:8000/v1",)
    """One URL, or a list of URLs that share the load; the servers must see the run's folder at the same path."""
    model: str | None = None
    """The solver's name on the servers; None is `model.name_or_path`."""
    api_key_env: Annotated[str, KEY_VARIABLE] = "STEPALIGN_SAMPLER_API_KEY"
    """The environment variable of the API key."""
    max_num_seqs: Annotated[PositiveInt, RUNTIME] = 256
    """The most requests under way at once, over all servers and training processes; at least one a process."""
    timeout_s: Annotated[PositiveFloat, RUNTIME] = 1800.0
    """Seconds for one completion."""
    max_outage_s: Annotated[NonNegativeFloat, RUNTIME] = 600.0
    """Seconds that a run waits while no server answers, before it stops."""
