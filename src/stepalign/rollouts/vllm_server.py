"""Sampling with vLLM servers over HTTP: token ids in, the very ids that were sampled out.

Each server loads every new adapter from its folder (`/v1/load_lora_adapter`), under a name that no other version had.
Requests go to the server with the fewest under way. A server that does not answer gets none for a while
(`serving.endpoints`). A server that was restarted has lost its adapter and answers 404: it loads the adapter again.

    VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 vllm serve MODEL --enable-lora --max-lora-rank 64

Left out: streaming, because a rollout counts once it is whole.
"""

import asyncio
import json
import math
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from itertools import islice
from typing import Any, TypeVar

from stepalign import config
from stepalign.distributed.process import SINGLE, World
from stepalign.errors import StepalignError
from stepalign.records import TokenIds
from stepalign.rollouts import AdapterVersion, Completion, Request
from stepalign.serving.client import Call, Client, TransientError, UnansweredError, read_key, to_json
from stepalign.serving.endpoints import Endpoint, Endpoints, TimeLimit, check_urls
from stepalign.serving.loop_thread import LoopThread

T = TypeVar("T")

_COOLDOWN_S = 1.0
"""The first cooldown of a server that did not answer; the longest is eight times as long."""
_LOAD_TIMEOUT_S = 60.0
"""For loading an adapter, or scoring a prompt."""
_BYTES_PER_TOKEN, _ENVELOPE = 2**11, 2**20
"""More than a token takes in an answer: ids, log-probabilities, texts."""
_PLAIN: dict[str, Any] = {
    # The server would fill these in from the model's generation_config.
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    # The trainer's chat template names the tokens that end a completion, not the server.
    "ignore_eos": True,
    "return_token_ids": True,
}


class ServerSampler:
    """vLLM servers that share the load."""

    def __init__(
        self,
        settings: config.VllmServerConfig,
        *,
        model: config.ModelConfig,
        eos_ids: frozenset[int],
        world: World = SINGLE,
        **_: object,
    ) -> None:
        """Connect; nothing is sent yet. The processes of `world` share `max_num_seqs`, at least one request each."""
        check_urls("sampler.base_url", settings.base_url)
        self._model = settings.model or model.location
        self._concurrency = max(1, settings.max_num_seqs // world.size)
        self.seeded, self._timeout_s, self._eos_ids = settings.seeded, settings.timeout_s, sorted(eos_ids)
        self._adapter: AdapterVersion | None = None
        self._has_answered = False
        self._endpoints = Endpoints(
            settings.base_url,
            name="sampler",
            cooldown_s=_COOLDOWN_S,
            max_outage_s=settings.max_outage_s,
            failures=1,
            trial_s=_COOLDOWN_S,  # a completion may take half an hour: the others do not wait for its end
            advice="When a server is back, the same command goes on from here.",
        )
        self._client = Client(
            self._endpoints,
            key=read_key(settings.api_key_env),
            refusal_advice="Look at sampler.base_url, sampler.model (or model.name_or_path) and the key in the "
            f"environment variable {settings.api_key_env}. Were the servers started with "
            "VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 and --enable-lora?",
        )
        self._thread = LoopThread("sampler")
        self._thread.run(self._client.__aenter__())

    def sample(
        self, requests: Sequence[Request], sampling: config.SamplingConfig, *, adapter: str | None
    ) -> Iterator[Completion]:
        """Sample completions. See `Sampler`."""
        waiting: set[Future[Completion]] = set()
        try:
            unsent = iter(requests)
            while True:
                for request in islice(unsent, self._concurrency - len(waiting)):
                    waiting.add(self._thread.start(self._sample(request, sampling, adapter)))
                if not waiting:
                    return
                done, waiting = wait(waiting, None, FIRST_COMPLETED)
                yield from (future.result() for future in done)
        finally:
            for future in waiting:  # the caller stopped early, or a request failed
                future.cancel()

    def load_adapter(self, version: AdapterVersion) -> None:
        """Load an adapter on every server. One that is down loads it when it is back."""
        before, self._adapter = self._adapter, version

        async def change(server: Endpoint) -> None:
            await self._load(server)
            if before is not None:
                try:
                    await self._post_adapter(server, "/unload_lora_adapter", {"lora_name": before.name})
                except UnansweredError as error:
                    if error.status != 404:  # it was restarted since
                        raise

        self._thread.run(self._everywhere(change))

    def prompt_logprobs(self, prompts: Sequence[TokenIds], *, adapter: str | None) -> Mapping[str, list[list[float]]]:
        """Score prompts on every server that answers."""

        async def score(server: Endpoint, ids: TokenIds) -> list[float]:
            def read(choice: Mapping[str, Any]) -> list[float]:
                scored = zip(ids, choice["prompt_logprobs"], strict=True)
                return [float(tokens[str(token)]["logprob"]) for token, tokens in scored if tokens is not None]

            body = {"prompt": list(ids), "max_tokens": 1, "prompt_logprobs": 1}
            return await self._client.post_to(server, self._completion(body, adapter, read, _LOAD_TIMEOUT_S))

        async def score_all(server: Endpoint) -> list[list[float]]:
            return [await score(server, ids) for ids in prompts]

        return self._thread.run(self._everywhere(score_all))

    def sleep(self) -> None:
        """Do nothing: the servers' devices are not the trainer's."""

    def close(self) -> None:
        """Cancel what is under way and disconnect."""
        if not self._thread.loop.is_closed():
            self._thread.close(self._client.__aexit__())

    # ── in the event loop's thread ────────────────────────────────────────────────────────────────────────────

    async def _sample(self, request: Request, sampling: config.SamplingConfig, adapter: str | None) -> Completion:
        def read(choice: Mapping[str, Any]) -> Completion:
            if (finish := choice["finish_reason"]) not in ("length", "stop"):  # vLLM's others: abort, error, repetition
                raise TransientError("server", f"an unfinished completion (finish_reason {str(finish)[:80]!r})")
            if choice.get("token_ids") is None:
                raise StepalignError("sampler: no token ids in a server's answer: a newer vLLM is needed")
            ids, logprobs = choice["token_ids"], (choice.get("logprobs") or {}).get("token_logprobs")
            if logprobs is None:  # without them mismatch and importance ratios would be left out in silence
                raise StepalignError("sampler: no log-probabilities in a server's answer: a newer vLLM is needed")
            if not all(type(token) is int for token in ids) or not all(map(math.isfinite, logprobs)):
                raise ValueError("a token id or a log-probability that is no number")
            return Completion(
                id=request.id,
                ids=tuple(ids),
                finish=finish,
                logprobs=tuple(round(value, 6) for value in logprobs),
            )

        body: dict[str, Any] = {
            "prompt": list(request.prompt_ids),
            "max_tokens": sampling.max_new_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k,
            "stop_token_ids": self._eos_ids,
            "logprobs": 0,
        }
        if self.seeded:
            body["seed"] = request.seed
        try:
            return await self._client.post(self._completion(body, adapter, read, self._timeout_s))
        except UnansweredError as error:
            raise StepalignError(f"{request.id}: {error.detail}") from None

    def _completion(
        self, body: dict[str, Any], adapter: str | None, read: Callable[[Mapping[str, Any]], T], timeout_s: float
    ) -> Call[T]:
        def read_choice(answer: bytes | None) -> T:
            if answer is None:
                raise StepalignError("sampler: a server's answer is longer than its tokens can be")
            try:
                return read(json.loads(answer)["choices"][0])
            except (ValueError, TypeError, LookupError, AttributeError, RecursionError, OverflowError):
                raise ValueError("not a completion") from None

        return Call(
            path="/completions",
            body=to_json({"model": self._name(adapter), **body, **_PLAIN}),
            read=read_choice,
            max_bytes=_ENVELOPE + _BYTES_PER_TOKEN * (len(body["prompt"]) + body["max_tokens"]),
            timeout_s=timeout_s,
            on_missing=None if adapter is None else self._load,
        )

    async def _everywhere(self, act: Callable[[Endpoint], Awaitable[T]]) -> dict[str, T]:
        """Do something on every server that answers, at least one, and return the results by URL.

        Before the first answer, servers that cannot be connected to end the run: they were never started.
        """
        results: dict[str, T] = {}
        unreachable: dict[str, str] = {}

        async def attempt(server: Endpoint) -> None:
            try:
                results[server.url] = await act(server)
            except TransientError as error:
                if error.unreachable:
                    unreachable[server.url] = error.detail

        while True:
            try:
                await asyncio.gather(*map(attempt, self._endpoints.available()))
            except UnansweredError as error:
                raise self._client.fatal(error) from None
            if results:
                self._has_answered = True
                return results
            if not self._has_answered and len(unreachable) == len(self._endpoints.urls):
                reasons = "; ".join(f"{url}: {fault}" for url, fault in unreachable.items())
                raise StepalignError(f"no sampler endpoint works ({reasons}). Start it, then the same command")
            self._endpoints.release(await self._endpoints.lease(TimeLimit(None)))

    async def _load(self, server: Endpoint) -> None:
        assert self._adapter is not None
        body = {"lora_name": self._adapter.name, "lora_path": str(self._adapter.folder.absolute())}
        try:
            await self._post_adapter(server, "/load_lora_adapter", body)
        except UnansweredError as error:
            if error.status != 400 or "already" not in error.detail:  # another process was faster
                raise

    async def _post_adapter(self, server: Endpoint, path: str, body: Mapping[str, str]) -> None:
        call = Call(path=path, body=to_json(body), read=lambda _: None, max_bytes=_ENVELOPE, timeout_s=_LOAD_TIMEOUT_S)
        await self._client.post_to(server, call)

    def _name(self, adapter: str | None) -> str:
        if adapter is None:
            return self._model
        if self._adapter is None:
            raise StepalignError(f"adapter {adapter!r} was never loaded on the servers")
        return self._adapter.name
