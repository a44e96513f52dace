"""Between text and token ids, exactly and in one direction at a time.

A chat template's own words become control tokens; everything a person or a model wrote is encoded as plain text,
so that a problem which contains `<|im_end|>` or `</think>` cannot end a turn (`FACTS.md`, traps 1 and 3). Sampled ids
are decoded once, for reading; they are never encoded again.
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import TemplateError
from tokenizers import Tokenizer
from transformers import AutoTokenizer, GenerationConfig, PreTrainedTokenizerBase

from stepalign import config
from stepalign.errors import StepalignError
from stepalign.prompts.conversation import Turn
from stepalign.records import TokenIds

_SLOT = "\ue000{}\ue001"
"""Stands for a message while the template is rendered; private-use characters no template contains."""


class Chat:
    """A tokenizer with its chat template: messages to prompt ids, sampled ids to text."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, eos_ids: frozenset[int] = frozenset()) -> None:
        """
        Args:
            tokenizer: a fast tokenizer with a chat template.
            eos_ids: the ids that end a response, beside the tokenizer's own EOS.

        Raises:
            StepalignError: the tokenizer is slow, has no chat template, or has no EOS.
        """
        self.tokenizer = tokenizer
        where = f"tokenizer of {tokenizer.name_or_path}"
        if not tokenizer.is_fast:
            raise StepalignError(f"{where}: a fast tokenizer (tokenizer.json) is needed")
        if not tokenizer.chat_template:
            raise StepalignError(f"{where}: it has no chat template; name a Jinja file as model.chat_template_path")
        own = frozenset() if tokenizer.eos_token_id is None else frozenset({tokenizer.eos_token_id})
        self.eos_ids = eos_ids | own
        if not self.eos_ids:
            raise StepalignError(f"{where}: neither it nor the generation config names an end-of-sequence token")
        self.control_ids = frozenset(tokenizer.added_tokens_decoder)
        self._plain = _without_control_tokens(tokenizer)

    def prompt_ids(self, turns: Sequence[Turn], *, thinking: bool = False, close_think: bool = False) -> TokenIds:
        """A conversation as the ids of a prompt that ends with the assistant's header.

        Args:
            turns: each one's content is plain text, whatever it contains.
            thinking: the template's `enable_thinking`.
            close_think: end with an empty think block, as thinking-off prompts do, so that the response's
                first token is not expected to be `<think>`.

        Raises:
            StepalignError: the template does not show every turn exactly once and in order, or refuses one.
        """
        slots = [_SLOT.format(number) for number in range(len(turns))]
        messages = [{"role": turn.role, "content": slot} for turn, slot in zip(turns, slots, strict=True)]
        rendered = self._render(messages, thinking)
        if close_think:
            rendered += self._closing(rendered)
        ids: list[int] = []
        for slot, turn in zip(slots, turns, strict=True):
            before, found, rendered = rendered.partition(slot)
            if not found or slot in rendered:
                raise StepalignError("the chat template does not show every turn exactly once and in order")
            ids += [*self._encode_control(before), *self.encode_text(turn.content)]
        return (*ids, *self._encode_control(rendered))

    def encode_text(self, text: str) -> TokenIds:
        """Plain text as ids, none of them a control token.

        Raises:
            StepalignError: the vocabulary has no other way to write what the text contains.
        """
        ids: list[int] = self._plain.encode(text, add_special_tokens=False).ids
        if self.control_ids.isdisjoint(ids):
            return tuple(ids)
        # A word-level vocabulary can hold a control token as a word: write it in two pieces.
        for control in (str(self._plain.id_to_token(token)) for token in ids if token in self.control_ids):
            head, found, tail = text.partition(control)
            if found and len(control) > 1:
                return (*self.encode_text(head + control[:1]), *self.encode_text(control[1:] + tail))
        raise StepalignError(f"text that the tokenizer can only write with control tokens: {text[:80]!r}")

    def decode(self, ids: Sequence[int]) -> tuple[str, tuple[int, ...]]:
        """Sampled ids as text, and for each id the character where its text begins.

        Special tokens are text like any other; a final EOS adds nothing and begins at the end. An id that holds
        only a part of a character begins where that character does.
        """
        body = list(ids[:-1]) if ids and ids[-1] in self.eos_ids else list(ids)
        text, starts = self._decode_alone(body) or self._decode_in_windows(body)
        return text, (*starts, *[len(text)] * (len(ids) - len(body)))

    def token_text(self, token: int) -> str:
        """One id by itself as text; a part of a character shows as the replacement character."""
        return self._decode([token])

    def has_thinking_switch(self) -> bool:
        """Whether the template answers to `enable_thinking`."""
        message = [{"role": "user", "content": "?"}]
        return self._render(message, True) != self._render(message, False)

    def _render(self, messages: list[dict[str, str]], thinking: bool) -> str:
        try:
            rendered = self.tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=True, enable_thinking=thinking
            )
        except TemplateError as error:
            raise StepalignError(f"the chat template: {error}") from None
        return str(rendered)

    def _closing(self, rendered: str) -> str:
        if {"<think>", "</think>"} - {str(token) for token in self.tokenizer.added_tokens_decoder.values()}:
            raise StepalignError("teacher.close_think: the tokenizer has no <think> and </think> tokens")
        if rendered.rstrip().endswith("</think>"):
            return ""
        return "\n</think>\n\n" if rendered.rstrip().endswith("<think>") else "<think>\n\n</think>\n\n"

    def _encode_control(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"] if text else []

    def _decode(self, ids: list[int]) -> str:
        return str(self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))

    def _decode_alone(self, ids: list[int]) -> tuple[str, list[int]] | None:
        """Each id by itself, where the pieces do make up the whole (almost always, and fast)."""
        pieces = [self._decode([token]) for token in ids]
        text = self._decode(ids)
        if "".join(pieces) != text or "\ufffd" in text:
            return None
        ends, end = [], 0
        for piece in pieces:
            end += len(piece)
            ends.append(end)
        return text, [0, *ends[:-1]][: len(ids)]

    def _decode_in_windows(self, ids: list[int]) -> tuple[str, list[int]]:
        """Id by id in growing windows, for characters of several ids and tokenizers that mind what stands before."""
        text, starts = self._decode(ids), [0]
        written, settled, done = 0, 0, 0
        for position in range(1, len(ids)):
            before = self._decode(ids[settled:done])
            new = self._decode(ids[settled:position])[len(before) :]
            # Where a character is still incomplete, the window and the whole text part.
            agreed = len(os.path.commonprefix([new, text[written : written + len(new)]]))
            starts.append(max(starts[-1], written + agreed))
            if agreed == len(new) and not new.endswith("\ufffd"):
                written, settled, done = written + agreed, done, position
        return text, starts


def load_chat(model: config.ModelConfig) -> Chat:
    """The chat of a recipe's model: tokenizer, template, and every id that its generation config calls an EOS."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(model.location, revision=model.revision)
    except (OSError, ValueError) as error:
        raise StepalignError(
            f"model.name_or_path = {model.name_or_path!r}: no tokenizer there: {_first_line(error)}"
        ) from None
    if model.chat_template_path is not None:
        tokenizer.chat_template = _read(model.chat_template_path)
    try:
        configured = GenerationConfig.from_pretrained(model.location, revision=model.revision).eos_token_id
    except OSError:
        configured = None
    ids = [] if configured is None else configured if isinstance(configured, list) else [configured]
    return Chat(tokenizer, frozenset(ids))


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise StepalignError(f"model.chat_template_path = {str(path)!r}: {error.strerror}") from None


def _without_control_tokens(tokenizer: PreTrainedTokenizerBase) -> Tokenizer:
    """The same tokenizer, blind to added tokens: `<|im_end|>` is seven characters and more to it."""
    description: dict[str, Any] = json.loads(tokenizer.backend_tokenizer.to_str())
    description |= {"added_tokens": [], "post_processor": None, "truncation": None, "padding": None}
    return Tokenizer.from_str(json.dumps(description))


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]
