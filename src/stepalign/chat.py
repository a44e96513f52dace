"""Conversion of messages to prompt ids, and of sampled ids to text.

Only the chat template emits control tokens. All that a person or a model wrote is encoded as plain text, so that a
problem with `<|im_end|>` or `</think>` in it cannot end a turn. Sampled ids are decoded
once, for reading, and never encoded again.

Control tokens are the special tokens, every EOS, and the added tokens of the chat template. Other added tokens are
text (in Gemma: line breaks, runs of spaces).
"""

import json
import os
import re
from collections.abc import Sequence
from contextlib import suppress
from itertools import accumulate, product
from typing import Any

from jinja2 import TemplateError
from tokenizers import Tokenizer
from transformers import AutoTokenizer, GenerationConfig, PreTrainedTokenizerBase

from stepalign import config
from stepalign.errors import StepalignError, first_line
from stepalign.io import read_text
from stepalign.prompts.conversation import Turn
from stepalign.records import TokenIds
from stepalign.trace.thoughts import ends_in_thought, thought_marks

_SLOT = "\ue000{}\ue001"
"""Placeholder of a message while the template is rendered, in private-use characters."""


class Chat:
    """A tokenizer with its chat template: messages to prompt ids, sampled ids to text."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, eos_ids: frozenset[int] = frozenset()) -> None:
        """Wrap a fast tokenizer with a chat template; `eos_ids` end a response beside its own EOS."""
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
        self.control_ids = self._control_ids()
        self.thought_marks = thought_marks(str(tokenizer.chat_template), tokenizer.get_added_vocab())
        self._plain, self._text_ids = _without_control_tokens(tokenizer, self.control_ids)

    def prompt_ids(self, turns: Sequence[Turn], *, thinking: bool = False, close_think: bool = False) -> TokenIds:
        """Encode a conversation as a prompt that ends with the assistant's header.

        Args:
            turns: messages; their content is encoded as plain text.
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
            before, separator, rendered = rendered.partition(slot)
            if not separator or slot in rendered:
                raise StepalignError("the chat template does not show every turn exactly once and in order")
            ids += [*self._encode_control(before), *self.encode_text(turn.content)]
        return (*ids, *self._encode_control(rendered))

    def encode_text(self, text: str) -> TokenIds:
        """Encode plain text without control tokens.

        Raises:
            StepalignError: the vocabulary can write the text only with control tokens.
        """
        ids: list[int] = []
        pieces = [text]
        while pieces:
            piece = pieces.pop()
            encoded = self._plain.encode(piece, add_special_tokens=False).ids
            encoded = [self._text_ids.get(token, token) for token in encoded]
            if self.control_ids.isdisjoint(encoded):
                ids += encoded
                continue
            # A word-level vocabulary can hold a control token as a word: cut each such word after one character.
            words = [str(self.tokenizer.convert_ids_to_tokens(token)) for token in encoded if token in self.control_ids]
            word = next((word for word in words if len(word) > 1 and word in piece), None)
            if word is None:
                raise StepalignError(f"text that the tokenizer can only write with control tokens: {text[:80]!r}")
            first, *rest = piece.split(word)
            heads, tails = [first, *(word[1:] + part for part in rest)], [word[0]] * len(rest) + [""]
            pieces += [head + tail for head, tail in zip(heads, tails, strict=True)][::-1]
        return tuple(ids)

    def decode(self, ids: Sequence[int]) -> tuple[str, tuple[int, ...]]:
        """Decode sampled ids to text and the character at which each id's text begins.

        Special tokens are decoded as text. A final EOS has no text and begins at the end. An id with a part of a
        character begins where that character does.
        """
        body = list(ids[:-1]) if ids and ids[-1] in self.eos_ids else list(ids)
        text, starts = self._decode_alone(body) or self._decode_in_windows(body)
        return text, (*starts, *[len(text)] * (len(ids) - len(body)))

    def opens_thought(self, turns: Sequence[Turn], *, thinking: bool) -> bool:
        """Return whether the prompt for a conversation ends inside a thought that the template opened."""
        messages = [{"role": turn.role, "content": _SLOT.format("")} for turn in turns]
        return ends_in_thought(self._render(messages, thinking).rpartition(_SLOT.format(""))[2], self.thought_marks)

    def token_text(self, token: int) -> str:
        """Decode a single id; a part of a character becomes the replacement character."""
        return self._decode([token])

    def has_thinking_switch(self) -> bool:
        """Return whether `enable_thinking` changes the rendered prompt."""
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

    def _control_ids(self) -> frozenset[int]:
        """Return the ids of the special tokens and of the added tokens with a function.

        Those end a response, or are emitted by the template or `close_think`. Words and white space remain text.
        """
        roles = ("system", "user", "assistant")
        rendered = "<think></think>"  # emitted by `close_think`
        for conversation, thinking in product([roles, *((role,) for role in roles)], (False, True)):
            with suppress(StepalignError, TypeError):  # a template may refuse a conversation
                rendered += self._render([{"role": role, "content": ""} for role in conversation], thinking)
        candidates = self.eos_ids.union(self._encode_control(rendered))
        return frozenset(
            id
            for id, token in self.tokenizer.added_tokens_decoder.items()
            if token.special or (id in candidates and re.search(r"[^\w\s]", token.content))
        )

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
        """Decode each id alone, which is fast; return None if the pieces do not join to the text."""
        pieces = [self._decode([token]) for token in ids]
        text = self._decode(ids)
        if "".join(pieces) != text or "\ufffd" in text:
            return None
        return text, list(accumulate(map(len, pieces), initial=0))[:-1]

    def _decode_in_windows(self, ids: list[int]) -> tuple[str, list[int]]:
        """Decode in growing windows, for characters of several ids and context-dependent tokenizers."""
        text, starts = self._decode(ids), [0]
        written, settled, done = 0, 0, 0
        for position in range(1, len(ids)):
            before = self._decode(ids[settled:done])
            new = self._decode(ids[settled:position])[len(before) :]
            # The window differs from the whole text where a character is still incomplete.
            agreed = len(os.path.commonprefix([new, text[written : written + len(new)]]))
            starts.append(max(starts[-1], written + agreed))
            if agreed == len(new) and not new.endswith("\ufffd"):
                written, settled, done = written + agreed, done, position
        return text, starts


def load_tokenizer(model: config.ModelConfig, *, key: str = "model") -> tuple[PreTrainedTokenizerBase, frozenset[int]]:
    """Load a model's tokenizer, and every token that ends a response: its own EOS, and its generation config's.

    `key` is the recipe's table of the model, for the error.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(model.location, revision=model.revision)
    except Exception as error:  # tokenizers raises a type of its own
        raise StepalignError(
            f"model.name_or_path = {model.name_or_path!r}: no tokenizer there: {first_line(error)}"
        ) from None
    try:
        eos = GenerationConfig.from_pretrained(model.location, revision=model.revision).eos_token_id
        ids = frozenset(map(int, eos if isinstance(eos, list) else [] if eos is None else [eos]))
    except OSError:
        ids = frozenset()
    except Exception as error:
        reason = f"its generation_config.json cannot be read: {first_line(error)}"
        raise StepalignError(f"model.name_or_path = {model.name_or_path!r}: {reason}") from None
    own = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    return tokenizer, ids | frozenset(own)


def load_chat(model: config.ModelConfig) -> Chat:
    """Load a model's tokenizer, its template, and every EOS of its generation config."""
    tokenizer, eos_ids = load_tokenizer(model)
    if model.chat_template_path is not None:
        try:
            tokenizer.chat_template = read_text(model.chat_template_path)
        except StepalignError as error:
            raise StepalignError(f"model.chat_template_path = {error}") from None
    return Chat(tokenizer, eos_ids)


def _without_control_tokens(
    tokenizer: PreTrainedTokenizerBase, control_ids: frozenset[int]
) -> tuple[Tokenizer, dict[int | None, int]]:
    """Remove a tokenizer's control tokens, and map its remaining added tokens to their original ids.

    The ids differ because added tokens beyond the model's own vocabulary are numbered in order.
    """
    description: dict[str, Any] = json.loads(tokenizer.backend_tokenizer.to_str())
    added = [token for token in description["added_tokens"] if token["id"] not in control_ids]
    description |= {"added_tokens": added, "post_processor": None, "truncation": None, "padding": None}
    plain = Tokenizer.from_str(json.dumps(description))
    return plain, {plain.token_to_id(token["content"]): token["id"] for token in added}
