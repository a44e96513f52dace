"""Encoding of text that a person or a model wrote: never as control tokens, whatever is in it.

Left out: templates (`chat`), which alone emit control tokens.
"""

import json
from typing import Any

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from stepalign.errors import StepalignError


class PlainTextEncoder:
    """A tokenizer without its control tokens."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, control_ids: frozenset[int], *, prefix_space: bool = True
    ) -> None:
        """Remove control tokens, and map the remaining added tokens to their original ids.

        The ids differ because added tokens beyond the model's own vocabulary are numbered in order.

        Args:
            tokenizer: a fast tokenizer.
            control_ids: the tokens to remove.
            prefix_space: keep the space that some tokenizers put before every text.
        """
        self._tokenizer, self._control_ids = tokenizer, control_ids
        description: dict[str, Any] = json.loads(tokenizer.backend_tokenizer.to_str())
        added = [token for token in description["added_tokens"] if token["id"] not in control_ids]
        description |= {"added_tokens": added, "post_processor": None, "truncation": None, "padding": None}
        if not prefix_space:
            for part in ("normalizer", "pre_tokenizer"):
                description[part] = _without_prefix_space(description[part])
        self._plain = Tokenizer.from_str(json.dumps(description))
        self._ids: dict[int | None, int] = {self._plain.token_to_id(token["content"]): token["id"] for token in added}

    def encode(self, text: str) -> list[int]:
        """Encode a text.

        Raises:
            StepalignError: the vocabulary can write the text only with control tokens.
        """
        ids: list[int] = []
        pieces = [text]
        while pieces:
            piece = pieces.pop()
            encoded = self.encode_blindly(piece)
            if self._control_ids.isdisjoint(encoded):
                ids += encoded
                continue
            # A word-level vocabulary can hold a control token as a word: cut each such word after one character.
            controls = (token for token in encoded if token in self._control_ids)
            words = [str(self._tokenizer.convert_ids_to_tokens(token)) for token in controls]
            word = next((word for word in words if len(word) > 1 and word in piece), None)
            if word is None:
                raise StepalignError(f"text that the tokenizer can only write with control tokens: {text[:80]!r}")
            first, *rest = piece.split(word)
            heads, tails = [first, *(word[1:] + part for part in rest)], [word[0]] * len(rest) + [""]
            pieces += [head + tail for head, tail in zip(heads, tails, strict=True)][::-1]
        return ids

    def encode_blindly(self, text: str) -> list[int]:
        """Encode a text with control tokens where they are words of the vocabulary."""
        ids = self._plain.encode(text, add_special_tokens=False).ids
        return [self._ids.get(token, token) for token in ids]


def _without_prefix_space(part: dict[str, Any] | None) -> dict[str, Any] | None:
    """Switch the space off that a part of a tokenizer's description puts before a text."""
    if part is None or part["type"] == "Prepend":
        return None
    if part["type"] == "Sequence":
        key = "normalizers" if "normalizers" in part else "pretokenizers"
        return {**part, key: [each for each in map(_without_prefix_space, part[key]) if each is not None]}
    off = {"add_prefix_space": False, "prepend_scheme": "never"}
    return part | {key: value for key, value in off.items() if key in part}
