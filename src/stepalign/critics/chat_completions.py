"""Chat completions of a served model, with a cache of its replies on disk.

A request's content is its key, and no reply is paid for twice. The cache is an append log: several processes, on
several hosts, may share it, and a kill at any moment loses at most the line that is being written. Memory holds keys
and places in the file, not texts. What the checks made of a reply is not kept, so checks and validation may change.
Left out: eviction, because the file is the run's, a few kB a reply.
"""

import asyncio
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from pydantic import TypeAdapter
from pydantic.dataclasses import dataclass

from stepalign import config
from stepalign.append_log import AppendLog
from stepalign.critics.llm import MAX_CHARS_PER_TOKEN, ModelReply, without_thinking
from stepalign.io import home_expanded
from stepalign.serving.client import Call, Client, to_json
from stepalign.serving.endpoints import Endpoints

_CHECK_TIMEOUT_S = 60.0
_ENVELOPE = 2**20
"""Bytes of a reply besides its text."""
_LEAST_LOGPROB = -9999.0
"""The log-probability of an impossible token, as vLLM writes it."""


@dataclass(frozen=True, kw_only=True)
class CachedReply:
    """A line of the cache."""

    key: str
    reply: ModelReply


_LINE = TypeAdapter(CachedReply)


class ReplyCache:
    """A mapping from keys to replies in a file. For one thread a process, and any number of processes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._log = AppendLog(path, CachedReply)
        self._places: dict[str, tuple[int, int]] = {}
        self._read_new()

    @classmethod
    def of(cls, settings: config.ServedModelConfig, folder: Path) -> Self | None:
        """Open the cache that a table names, `run` in the run's folder; None for `off`."""
        path = {"run": folder / "critic-cache.jsonl", "off": None}.get(settings.cache, home_expanded(settings.cache))
        return None if path is None else cls(path)

    def get(self, key: str) -> ModelReply | None:
        """Return the first reply under a key, from any process."""
        if key not in self._places:
            self._read_new()
        if key not in self._places:
            return None
        start, end = self._places[key]
        with self.path.open("rb") as file:
            file.seek(start)
            *_, line = file.read(end - start).splitlines()
        return _LINE.validate_json(line).reply

    def put(self, key: str, reply: ModelReply) -> None:
        """Add a reply. It is in the file when this returns."""
        self._log.append(CachedReply(key=key, reply=reply))

    def _read_new(self) -> None:
        start = self._log.offset
        for line in self._log.read():
            self._places.setdefault(line.key, (start, self._log.offset))
            start = self._log.offset


class ChatCompletions:
    """Asynchronous context manager: a critic's endpoints, with a cache in front."""

    def __init__(
        self,
        settings: config.ServedModelConfig,
        key: str | None,
        cache: ReplyCache | None,
        *,
        table: str,
        max_tokens: int,
    ) -> None:
        """`table` is the name of the settings' table, for messages; a reply has at most `max_tokens`."""
        lost = f"With {table}.cache = 'off' its replies to unfinished steps are lost."
        kept = f"Its replies so far are kept in {cache.path}." if cache else lost
        endpoints = Endpoints(
            settings.base_url,
            name=table,
            cooldown_s=settings.cooldown_s,
            max_outage_s=settings.max_outage_s,
            failures=3,  # one prompt that always fails is no outage
            trial_s=settings.timeout_s,
            advice=f"{kept} When the server is back, the same command goes on from here.",
        )
        self._client = Client(
            endpoints,
            key=key,
            max_retries=settings.max_retries,
            total_timeout_s=settings.total_timeout_s,
            refusal_advice=f"Look at {table}.base_url, {table}.model, the key in the environment variable "
            f"{settings.api_key_env} and its credit; the same command then goes on from here.",
        )
        self._timeout_s = settings.timeout_s
        self._cache, self._max_chars = cache, max_tokens * MAX_CHARS_PER_TOKEN
        self._pending: dict[str, asyncio.Task[ModelReply]] = {}

    async def __aenter__(self) -> Self:
        await self._client.__aenter__()
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._pending.values():
            task.cancel()
        await asyncio.gather(*self._pending.values(), return_exceptions=True)
        await self._client.__aexit__()

    async def check(self, request: Mapping[str, Any]) -> None:
        """Ask every endpoint for one token, or for a whole reply where it refuses so little. Errors: `Client.check`."""
        whole = {"messages": [{"role": "user", "content": "Say yes."}], **request}
        timeout_s = min(self._timeout_s, _CHECK_TIMEOUT_S)
        calls = [
            Call(
                path="/chat/completions", body=to_json(body), read=self._read, max_bytes=_ENVELOPE, timeout_s=timeout_s
            )
            for body in ({**whole, "max_tokens": 1}, whole)  # some hosts refuse less than 16, or too few to think
        ]
        await self._client.check(*calls)

    async def ask(self, request: Mapping[str, Any]) -> ModelReply:
        """Return the cached reply, that of an equal request under way, or a new one. Errors are `Client.post`'s."""
        body = to_json(request)
        key = hashlib.sha256(body).hexdigest()
        if self._cache and (cached := self._cache.get(key)) is not None:
            return cached
        if (task := self._pending.get(key)) is None:
            task = self._pending[key] = asyncio.create_task(self._ask(key, body, request))
            task.add_done_callback(lambda _: self._pending.pop(key))
        return await asyncio.shield(task)  # equal requests wait for one task: cancelling one leaves the other

    async def _ask(self, key: str, body: bytes, request: Mapping[str, Any]) -> ModelReply:
        max_bytes = _ENVELOPE + 4 * self._max_chars  # a character is at most four bytes, an escaped one six
        reply = await self._client.post(
            Call(path="/chat/completions", body=body, read=self._read, max_bytes=max_bytes, timeout_s=self._timeout_s)
        )
        if self._cache and _is_answer(reply, request):
            self._cache.put(key, reply)
        return reply

    def _read(self, body: bytes | None) -> ModelReply:
        if body is None:
            return ModelReply(text="", truncated=True)
        try:
            completion = json.loads(body, parse_int=float)  # an integer of 5,000 digits is an error
            choice = completion["choices"][0]
            content = self._client.redact.text(_text(choice["message"].get("content")))  # it may be in parts
            usage = completion.get("usage")
            tokens = {name: _count(usage, name) for name in ("prompt_tokens", "completion_tokens")}
            text = without_thinking(content)  # thinking in a field of its own is not read
            text = text.encode(errors="replace").decode()  # half a surrogate pair could not be written to a file
            finish = choice.get("finish_reason")
            truncated = finish == "length" or len(text) > self._max_chars
            finish = "stop" if truncated else str(finish)[:80]
            top_logprobs = _top_logprobs(choice.get("logprobs"))
        except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
            raise ValueError("not a chat completion") from None
        return ModelReply(
            text=text[: self._max_chars], truncated=truncated, finish=finish, top_logprobs=top_logprobs, **tokens
        )


def _is_answer(reply: ModelReply, request: Mapping[str, Any]) -> bool:
    """Tell whether a reply has what was asked for, so that it is kept. An empty or unfinished one may not recur."""
    asked_for = reply.top_logprobs if request.get("logprobs") else reply.text.strip() or reply.truncated
    return reply.finish == "stop" and bool(asked_for)


def _text(content: object) -> str:
    """Return a message's content. Of a list of parts it is their text; thinking, images and tool calls are not read."""
    if isinstance(content, list):
        return "".join(
            part if isinstance(part, str) else _text(part.get("text"))
            for part in content
            if isinstance(part, str) or part.get("type", "text") in ("text", "output_text")
        )
    if not isinstance(content, str | None):
        raise ValueError("neither a text nor a list of parts")
    return content or ""


def _top_logprobs(logprobs: Any) -> dict[str, float]:
    """Return the likeliest first tokens with their log-probabilities; empty where the server gives none.

    JSON holds no infinity and no NaN, so each is between `_LEAST_LOGPROB` and 0.
    """
    content = logprobs.get("content") if isinstance(logprobs, dict) else None
    likeliest = content[0].get("top_logprobs") if content else None
    return {str(one["token"]): min(max(_LEAST_LOGPROB, float(one["logprob"])), 0.0) for one in likeliest or []}


def _count(usage: object, name: str) -> int:
    """Return a number of tokens; 0 where the server gives none that makes sense."""
    value = usage.get(name) if isinstance(usage, dict) else None
    return int(value) if isinstance(value, float) and 0 <= value < 2**53 else 0
