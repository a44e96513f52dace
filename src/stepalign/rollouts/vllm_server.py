"""Sampling with vLLM servers over HTTP: token ids in, the very ids that were sampled out.

Each server is handed every new adapter as a folder (`/v1/load_lora_adapter`), under a name that no other version had.
Requests go to the server with the fewest under way. A server that does not answer is left alone and asked again later;
one that was started anew has lost its adapter, says so with 404, and is given it again.

    VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 vllm serve MODEL --enable-lora --max-lora-rank 64

Left out: streaming, since a rollout counts once it is whole.
"""

import asyncio
import os
import time
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass
from threading import Thread
from typing import Any, TypeVar

import openai

from stepalign import config
from stepalign.distributed.process import World
from stepalign.errors import StepalignError
from stepalign.records import TokenIds
from stepalign.rollouts import AdapterVersion, Completion, Request

T = TypeVar("T")

_REST_S = 5.0
"""How long a server that did not answer is left alone."""
_ALIVE_S = 30.0
"""A server that loses a request after so long was at work until then: its outage begins now, not with the request."""
_LEAST_S = 60.0
"""For loading an adapter, or drawing one token."""
_PLAIN: dict[str, Any] = {
    # The server would fill these in from the model's generation_config.
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    # What ends a completion is the trainer's chat template's word, not the server's.
    "ignore_eos": True,
    "return_token_ids": True,
}


@dataclass
class _Server:
    url: str
    client: openai.AsyncOpenAI
    under_way: int = 0
    down_until: float = 0.0


class _AllDown(StepalignError):
    pass


class ServerSampler:
    """vLLM servers that share the load."""

    def __init__(
        self, settings: config.VllmServerConfig, model: str, *, eos_ids: frozenset[int], concurrency: int
    ) -> None:
        """Connect; nothing is sent yet.

        Args:
            settings: the recipe's table.
            model: the name under which the base is served.
            eos_ids: what ends a completion.
            concurrency: requests of this process that may be under way.

        Raises:
            StepalignError: a base URL is none.
        """
        for url in settings.base_url:
            if not url.startswith(("http://", "https://")):
                raise StepalignError(f"sampler.base_url: a URL like http://localhost:8000/v1 is wanted, found {url!r}")
        self._settings, self._model, self._concurrency = settings, model, concurrency
        self._eos_ids = sorted(eos_ids)
        self._adapter: AdapterVersion | None = None
        self._loop = asyncio.new_event_loop()
        self._thread = Thread(target=self._loop.run_forever, name="sampler", daemon=True)
        self._thread.start()
        key = os.environ.get(settings.api_key_env) or "none"
        self._servers = [
            _Server(url, openai.AsyncOpenAI(base_url=url, api_key=key, max_retries=0, timeout=settings.timeout_s))
            for url in settings.base_url
        ]

    @classmethod
    def from_config(
        cls,
        settings: config.VllmServerConfig,
        *,
        model: config.ModelConfig,
        eos_ids: frozenset[int],
        world: World,
        **_: object,
    ) -> "ServerSampler":
        """Build the sampler of a recipe; the processes share `max_num_seqs`."""
        concurrency = -(-settings.max_num_seqs // world.size)
        return cls(settings, settings.model or model.location, eos_ids=eos_ids, concurrency=concurrency)

    def sample(
        self, requests: Sequence[Request], sampling: config.SamplingConfig, *, adapter: str | None
    ) -> Iterator[Completion]:
        """Draw one completion a request, in the order in which they end. See `sampling.Sampler`."""
        waiting: set[Future[Completion]] = set()
        try:
            for request in requests:
                waiting.add(self._send(self._draw(request, sampling, adapter)))
                if len(waiting) >= self._concurrency:
                    done, waiting = wait(waiting, None, FIRST_COMPLETED)
                    yield from (future.result() for future in done)
            while waiting:
                done, waiting = wait(waiting, None, FIRST_COMPLETED)
                yield from (future.result() for future in done)
        finally:
            for future in waiting:  # the caller stopped early, or a request failed
                future.cancel()

    def load_adapter(self, version: AdapterVersion) -> None:
        """See `sampling.Engine`. A server that is down is given the adapter when it is back."""
        before, self._adapter = self._adapter, version

        async def change(server: _Server) -> None:
            await self._load(server, version)
            if before is not None:
                await _post(server, "/unload_lora_adapter", {"lora_name": before.name}, missing=True)

        self._run(self._everywhere(change))

    def sample_logprobs(
        self, prompts: Sequence[TokenIds], *, adapter: str | None
    ) -> Mapping[str, list[tuple[int, float]]]:
        """See `sampling.Engine`."""
        found: dict[str, list[tuple[int, float]]] = {}

        async def draw(server: _Server, prompt: TokenIds, seed: int) -> tuple[int, float]:
            body: dict[str, Any] = {"model": self._name(adapter), "prompt": list(prompt)}
            body |= {"seed": seed, "max_tokens": 1, "logprobs": 0}
            body |= {"temperature": 1.0, "top_p": 1.0, "top_k": 0, **_PLAIN}
            choice = await self._complete(server, body, _LEAST_S, adapter)
            return choice["token_ids"][0], choice["logprobs"]["token_logprobs"][0]

        async def ask(server: _Server) -> None:
            drawn = await asyncio.gather(*(draw(server, prompt, seed) for seed, prompt in enumerate(prompts)))
            found[server.url] = list(drawn)

        self._run(self._everywhere(ask))
        return found

    def sleep(self) -> None:
        """Its devices are its own: nothing to give back."""

    def close(self) -> None:
        """Cancel what is under way and disconnect."""
        if not self._thread.is_alive():
            return
        self._run(self._stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    # ── in the event loop's thread ────────────────────────────────────────────────────────────────────────────

    async def _draw(self, request: Request, sampling: config.SamplingConfig, adapter: str | None) -> Completion:
        body = {
            "model": self._name(adapter),
            "prompt": list(request.prompt_ids),
            "seed": request.seed,
            "max_tokens": sampling.max_new_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k,
            "stop_token_ids": self._eos_ids,
            **_PLAIN,
        }
        deadline = time.monotonic() + self._settings.max_outage_s
        while True:
            server = await self._free(deadline)
            sent = time.monotonic()
            server.under_way += 1
            try:
                choice = await self._complete(server, body, self._settings.timeout_s, adapter)
            except openai.NotFoundError as error:
                raise StepalignError(f"{server.url}: {error}") from None
            except openai.BadRequestError as error:
                raise StepalignError(f"{request.id}: {server.url} refuses it: {error}") from None
            except (openai.APIConnectionError, openai.APIStatusError) as error:
                now = time.monotonic()
                server.down_until = now + _REST_S
                if now - sent > _ALIVE_S and not isinstance(error, openai.APITimeoutError):
                    deadline = now + self._settings.max_outage_s
            else:
                ids = choice.get("token_ids")
                if ids is None:
                    raise StepalignError(f"{server.url}: no token ids in its answer: a newer vLLM is needed")
                return Completion(
                    id=request.id,
                    ids=tuple(ids),
                    finish="length" if choice["finish_reason"] == "length" else "stop",
                )
            finally:
                server.under_way -= 1

    async def _complete(
        self, server: _Server, body: dict[str, Any], timeout_s: float, adapter: str | None
    ) -> dict[str, Any]:
        """One completion. A server that was started anew knows no adapter: it is given it again."""
        try:
            return await _ask(server, body, timeout_s)
        except openai.NotFoundError:
            if adapter is None or self._adapter is None:
                raise
            await self._load(server, self._adapter)
            return await _ask(server, body, timeout_s)

    async def _free(self, deadline: float) -> _Server:
        """The server with the fewest requests under way; waits while all are down."""
        while True:
            now = time.monotonic()
            up = [server for server in self._servers if server.down_until <= now]
            if up:
                return min(up, key=lambda server: server.under_way)
            if now > deadline:
                raise _AllDown(
                    f"sampler.base_url: no server has answered for {self._settings.max_outage_s:g} s "
                    f"({', '.join(self._settings.base_url)}); the same command goes on once one does"
                )
            await asyncio.sleep(0.1)

    async def _everywhere(self, act: Any) -> None:
        """Do something on every server that answers; at least one must."""
        deadline = time.monotonic() + self._settings.max_outage_s
        while True:
            done = await asyncio.gather(*(self._try(server, act(server)) for server in self._servers))
            if any(done):
                return
            await self._free(deadline)

    async def _try(self, server: _Server, act: Coroutine[Any, Any, None]) -> bool:
        try:
            await act
        except (openai.APIConnectionError, openai.InternalServerError):
            server.down_until = time.monotonic() + _REST_S
            return False
        except openai.APIStatusError as error:
            hint = ""
            if isinstance(error, openai.NotFoundError):
                hint = " (is it started with VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 and --enable-lora?)"
            raise StepalignError(f"{server.url}: {error}{hint}") from None
        return True

    async def _load(self, server: _Server, version: AdapterVersion) -> None:
        body = {"lora_name": version.name, "lora_path": str(version.folder.absolute())}
        try:
            await _post(server, "/load_lora_adapter", body)
        except openai.BadRequestError as error:
            if "already" not in str(error):  # another process was faster
                raise

    async def _stop(self) -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for server in self._servers:
            await server.client.close()

    def _name(self, adapter: str | None) -> str:
        if adapter is None:
            return self._model
        if self._adapter is None:
            raise StepalignError(f"adapter {adapter!r} was never handed to the servers")
        return self._adapter.name

    def _send(self, work: Coroutine[Any, Any, T]) -> "Future[T]":
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        future = self._send(work)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise


async def _ask(server: _Server, body: dict[str, Any], timeout_s: float) -> dict[str, Any]:
    answer = await server.client.post("/completions", cast_to=object, body=body, options={"timeout": timeout_s})
    choice: dict[str, Any] = answer["choices"][0]  # type: ignore[index]
    return choice


async def _post(server: _Server, path: str, body: dict[str, Any], *, missing: bool = False) -> None:
    try:
        await server.client.post(path, cast_to=str, body=body, options={"timeout": _LEAST_S})
    except openai.NotFoundError:
        if not missing:
            raise
