"""Sampling with vLLM in the training process (the paper's colocated mode).

vLLM holds the base a second time and loads LoRA adapters (`LoRARequest`), which it applies by request. Nothing is
merged, so its base stays bit-identical. Each version of the policy has its own name and number, so that a prefix
cached under an older one is never used for it; the cache is emptied as well, to make room.

Left out: weights pushed into a running engine and tensor parallelism over the training processes, because an adapter
is small and each process has an engine.
"""

import gc
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from stepalign import config
from stepalign.distributed.process import World
from stepalign.errors import StepalignError, first_line, not_installed
from stepalign.records import TokenIds
from stepalign.rollouts import AdapterVersion, Completion, Request


class VllmSampler:
    """vLLM engine in this process."""

    def __init__(
        self,
        settings: config.VllmConfig,
        *,
        model: config.ModelConfig,
        dtype: object,
        rank: int,
        eos_ids: frozenset[int],
        world: World,
        seed: int,
        **_: object,
    ) -> None:
        """Load the base, in the trainer's `torch.dtype`, as an engine in each process of `world`.

        `seed` is for requests without their own (`sampler.seeded = false`). `rank` is the adapter's.
        """
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        try:
            import torch
            import vllm
        except ImportError as error:
            raise not_installed(f"sampler.kind = 'vllm' needs vLLM ({error})", "vllm") from None
        self._vllm: Any = vllm
        self._eos_ids, self.seeded = sorted(eos_ids), settings.seeded
        self._sleeps = settings.enable_sleep_mode and torch.cuda.is_available()
        self._asleep = False
        self._adapter: Any = None
        options: dict[str, Any] = {"gpu_memory_utilization": settings.gpu_memory_utilization}
        if not torch.cuda.is_available():
            # On the CPU a request with a seed ends the engine where its prompt is read in parts (vLLM 0.32).
            options = {"enable_chunked_prefill": False}
        if world.size > 1:  # vLLM must not divide its work over the training processes
            options["distributed_executor_backend"] = "external_launcher"
        try:
            self._llm = vllm.LLM(
                model=model.location,
                revision=model.revision,
                dtype=str(dtype).removeprefix("torch."),
                seed=(seed + world.rank) % 2**32,
                max_model_len=settings.max_model_len,
                max_num_seqs=settings.max_num_seqs,
                enforce_eager=settings.enforce_eager,
                enable_lora=True,
                max_lora_rank=served_rank(rank),
                max_loras=1,
                enable_sleep_mode=self._sleeps,
                enable_prefix_caching=True,
                disable_log_stats=True,
                **options,
            )
        except (ValueError, RuntimeError, OSError) as error:
            raise StepalignError(f"sampler.kind = 'vllm': vLLM cannot start: {first_line(error)}") from None

    def sample(
        self, requests: Sequence[Request], sampling: config.SamplingConfig, *, adapter: str | None
    ) -> Iterator[Completion]:
        """Sample completions. See `Sampler`."""
        self._wake()
        limit = self._llm.model_config.max_model_len
        for request in requests:
            if len(request.prompt_ids) + sampling.max_new_tokens > limit:
                raise StepalignError(
                    f"{request.id}: a prompt of {len(request.prompt_ids)} tokens and max_new_tokens = "
                    f"{sampling.max_new_tokens} exceed the engine's {limit} positions (sampler.max_model_len)"
                )
        engine = self._llm.llm_engine
        options = {
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k,
            "max_tokens": sampling.max_new_tokens,
            "logprobs": 0,
            # The trainer's chat template names the tokens that end a completion, not the engine.
            "ignore_eos": True,
            "stop_token_ids": self._eos_ids,
            "detokenize": False,
        }
        waiting = {request.id for request in requests}
        try:
            for request in requests:
                params = self._vllm.SamplingParams(seed=request.seed if self.seeded else None, **options)
                prompt = {"type": "token", "prompt_token_ids": list(request.prompt_ids)}
                engine.add_request(request.id, prompt, params, lora_request=self._request(adapter))
            while waiting:
                for output in engine.step():
                    if output.finished:
                        waiting.discard(output.request_id)
                        (sampled,) = output.outputs
                        scored = zip(sampled.token_ids, sampled.logprobs, strict=True)
                        yield Completion(
                            id=output.request_id,
                            ids=tuple(sampled.token_ids),
                            finish="length" if sampled.finish_reason == "length" else "stop",
                            logprobs=tuple(round(tokens[token].logprob, 6) for token, tokens in scored),
                        )
        finally:
            if waiting:  # the caller stopped early
                engine.abort_request(list(waiting))

    def load_adapter(self, version: AdapterVersion) -> None:
        """See `RemoteSampler`."""
        self._wake()
        from vllm.lora.request import LoRARequest

        engine = self._llm.llm_engine
        before = self._adapter
        self._adapter = LoRARequest(version.name, version.number, str(version.folder.absolute()))
        try:
            engine.add_lora(self._adapter)
        except Exception as error:  # vLLM raises whatever its loader met
            raise StepalignError(f"{version.folder}: vLLM cannot load this adapter: {error}") from None
        if before is not None:
            engine.remove_lora(before.lora_int_id)
        engine.reset_prefix_cache()

    def prompt_logprobs(self, prompts: Sequence[TokenIds], *, adapter: str | None) -> Mapping[str, list[list[float]]]:
        """See `RemoteSampler`."""
        self._wake()
        params = self._vllm.SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=1, detokenize=False)
        inputs = [{"prompt_token_ids": list(ids)} for ids in prompts]
        outputs = self._llm.generate(inputs, params, use_tqdm=False, lora_request=self._request(adapter))
        return {
            "vLLM": [
                [tokens[token].logprob for token, tokens in zip(ids, output.prompt_logprobs, strict=True) if tokens]
                for ids, output in zip(prompts, outputs, strict=True)
            ]
        }

    def sleep(self) -> None:
        """See `RemoteSampler`."""
        if self._sleeps and not self._asleep:
            self._llm.sleep(level=1)
            self._asleep = True

    def close(self) -> None:
        """Drop the engine and its memory."""
        del self._llm
        gc.collect()

    def _wake(self) -> None:
        if self._asleep:
            self._llm.wake_up()
            self._asleep = False

    def _request(self, adapter: str | None) -> Any:
        if adapter is None:
            return None
        if self._adapter is None:
            raise StepalignError(f"adapter {adapter!r} was never loaded by vLLM")
        return self._adapter


def served_rank(rank: int) -> int:
    """Round a rank up to one that vLLM has kernels for."""
    return next((served for served in (8, 16, 32, 64, 128, 256, 320, 512) if served >= rank), rank)
