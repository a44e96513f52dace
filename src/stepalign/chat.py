"""Conversion of messages to prompt ids, and of sampled ids to text.

Only the chat template emits control tokens. All that a person or a model wrote is encoded as plain text, so that a
problem with `<|im_end|>` or `</think>` in it cannot end a turn. Sampled ids are decoded once, for reading, and never
encoded again.

Control tokens are the special tokens, every EOS, and the added tokens of the chat template. Other added tokens are
text (in Gemma: line breaks, runs of spaces).
"""

import datetime
import logging
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import accumulate, product
from pathlib import Path

from jinja2 import TemplateError
from transformers import AutoTokenizer, GenerationConfig, PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import _compile_jinja_template

from stepalign import config
from stepalign.errors import StepalignError, first_line
from stepalign.io import read_text
from stepalign.plain_text import PlainTextEncoder
from stepalign.prompts.conversation import Turn
from stepalign.records import TokenIds
from stepalign.trace.thoughts import ThoughtMarks, ends_in_thought, thought_marks

log = logging.getLogger("stepalign")

CHAT_TEMPLATE = "chat-template.jinja"
"""Name under which the words of a chat template are kept."""
_SLOT, _SLOTS = "\ue000{}\ue001", r"\ue000(\d+)\ue001"
"""Placeholder of a message while the template is rendered, in private-use characters."""


class Chat:
    """A tokenizer with its chat template: messages to prompt ids, sampled ids to text."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        eos_ids: frozenset[int] = frozenset(),
        date: datetime.date | None = None,
    ) -> None:
        """Wrap a fast tokenizer with a chat template.

        Args:
            tokenizer: the tokenizer.
            eos_ids: tokens that end a response beside the tokenizer's own EOS.
            date: the date that a template may show; None is today.
        """
        self.tokenizer = tokenizer
        self._noon = datetime.datetime.combine(date or datetime.datetime.now().date(), datetime.time(12))
        where = f"tokenizer of {tokenizer.name_or_path}"
        if not tokenizer.is_fast:
            raise StepalignError(f"{where}: a fast tokenizer (tokenizer.json) is needed")
        if not tokenizer.chat_template:
            raise StepalignError(f"{where}: it has no chat template; name a Jinja file as model.chat_template_path")
        own = frozenset() if tokenizer.eos_token_id is None else frozenset({tokenizer.eos_token_id})
        self.eos_ids = eos_ids | own
        if not self.eos_ids:
            raise StepalignError(f"{where}: neither it nor the generation config names an end-of-sequence token")
        self.thought_marks = thought_marks(str(tokenizer.chat_template), tokenizer.get_added_vocab())
        self.control_ids = self._control_ids()
        self._first = PlainTextEncoder(tokenizer, self.control_ids)
        bare = PlainTextEncoder(tokenizer, self.control_ids, prefix_space=False)
        alone, token = self._first.encode_blindly("a"), tokenizer.convert_ids_to_tokens(min(self.eos_ids))
        self._after_control = self._first if self._encode_control(f"{token}a")[1:] == alone else bare
        self._alone = self._first if self._decode(alone) == "a" else bare

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
        rendered = self._render(_messages([turn.role for turn in turns]), thinking)
        if close_think:
            rendered += self._closing(rendered)
        pieces = re.split(_SLOTS, rendered)
        if pieces[1::2] != [str(number) for number in range(len(turns))]:
            raise StepalignError("the chat template does not show every turn exactly once and in order")

        def filled(text: str) -> str:
            return re.sub(_SLOTS, lambda slot: turns[int(slot[1])].content, text)

        # Text of the template and of a turn is encoded together up to the next control token, as the tokenizer does.
        ids: list[int] = []
        written = 0
        for token, start, end in self._control_tokens(rendered):
            ids += [*self._encode(filled(rendered[written:start]), first=not written), token]
            written = end
        return (*ids, *self._encode(filled(rendered[written:]), first=not written))

    def encode_text(self, text: str) -> TokenIds:
        """Encode plain text without control tokens, so that it is decoded to itself.

        Raises:
            StepalignError: the vocabulary can write the text only with control tokens.
        """
        return tuple(self._alone.encode(text))

    def _encode(self, text: str, *, first: bool) -> list[int]:
        return (self._first if first else self._after_control).encode(text) if text else []

    def completion_ids(self, text: str) -> TokenIds:
        """Encode a text as a response that ends: plain text, and the tokenizer's EOS."""
        own = self.tokenizer.eos_token_id
        return (*self.encode_text(text), min(self.eos_ids) if own is None else own)

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

    def check_template(self) -> None:
        """Check how the template begins and ends an assistant's turn, and let its end stop completions.

        A template that shows no assistant's turn at all is not checked.

        Raises:
            StepalignError: the prompt does not end where an assistant's turn begins, or no token ends that turn.
        """
        try:
            last, inner = (self._shown(roles) for roles in (("user", "assistant"), ("user", "assistant", "user")))
            prompts = [self._render(_messages(("user",)), False, generation=generation) for generation in (True, False)]
        except StepalignError:
            return
        name = f"the chat template of {self.tokenizer.name_or_path}"
        header = last[0].removeprefix(prompts[0]) if last[0].startswith(prompts[0]) else ""
        if prompts[0] == prompts[1] and re.sub(r"</?think>", "", header).strip():
            raise StepalignError(
                f"{name} has no generation prompt: an assistant's turn begins with {header!r}, which no prompt ends "
                "with. Name one that adds it where add_generation_prompt is true, as model.chat_template_path"
            )
        ends = [next((token for token, _, _ in self._control_tokens(after)), None) for after in (last[1], inner[1])]
        if any(token in self.eos_ids for token in ends):
            return
        names = ", ".join(sorted(self.token_text(token) for token in self.eos_ids))
        found = next((token for token in ends if token is not None), None)
        if found is None:
            raise StepalignError(
                f"{name} ends an assistant's turn with {last[1]!r}, without an end-of-sequence token ({names}): the "
                "solver would write the next turn as well. Name one that ends each assistant's turn with such a token, "
                "as model.chat_template_path"
            )
        log.warning(
            "%s ends an assistant's turn with %s, which is not among the end-of-sequence tokens (%s): completions end "
            "with it too",
            name,
            self.token_text(found),
            names,
        )
        self.eos_ids |= {found}

    def check_turns(self, turns: Sequence[Turn]) -> None:
        """Check that the template shows turns as they are, white space aside.

        Many templates leave the thought out of an assistant's turn. Prompts show turns whole, and would differ from
        all that such a model was trained on.

        Raises:
            StepalignError: naming the turn.
        """
        roles = [*(turn.role for turn in turns), "user"]
        for number, turn in enumerate(turns):
            messages = _messages(roles)
            slot, messages[number]["content"] = messages[number]["content"], turn.content
            expected = self._render(_messages(roles), False).replace(slot, turn.content)
            if "".join(self._render(messages, False).split()) != "".join(expected.split()):
                raise StepalignError(
                    f"prompts: the chat template does not show this turn of the {turn.role} as it is: "
                    f"{turn.content[:80]!r}. Leave out what it removes, such as a thought"
                )

    def _shown(self, roles: Sequence[str]) -> tuple[str, str]:
        """Render a conversation, and return the text before the assistant's words and the text after them."""
        before, shown, after = self._render(_messages(roles), False, generation=False).partition(_SLOT.format(1))
        if not shown:
            raise StepalignError("the chat template shows no turn of an assistant")
        return before, re.split(_SLOTS, after)[0]

    def _render(self, messages: list[dict[str, str]], thinking: bool, *, generation: bool = True) -> str:
        try:
            # transformers gives templates no functions of the caller's, and the time of the rendering as the date.
            template = _compile_jinja_template(self.tokenizer.get_chat_template())
            template.globals["strftime_now"] = self._noon.strftime
            rendered = self.tokenizer.apply_chat_template(
                messages,
                tokenize=False,
                add_generation_prompt=generation,
                enable_thinking=thinking,
            )
        except TemplateError as error:
            raise StepalignError(f"the chat template: {error}") from None
        return str(rendered)

    def _control_ids(self) -> frozenset[int]:
        """Return the ids of the special tokens and of the added tokens with a function.

        Those end a response, or are emitted by the template or `close_think`. Words and white space remain text.
        """
        roles = ("system", "user", "assistant")
        rendered = "".join(self._thought_tokens() or ())
        for conversation, thinking in product([roles, *((role,) for role in roles)], (False, True)):
            with suppress(StepalignError, TypeError):  # a template may refuse a conversation
                rendered += self._render([{"role": role, "content": ""} for role in conversation], thinking)
        candidates = self.eos_ids.union(self._encode_control(rendered))
        return frozenset(
            id
            for id, token in self.tokenizer.added_tokens_decoder.items()
            if token.special or (id in candidates and re.search(r"[^\w\s]", token.content))
        )

    def _control_tokens(self, rendered: str) -> Iterator[tuple[int, int, int]]:
        """Yield each control token of a rendered template with its first character and the one after it."""
        encoded = self.tokenizer(rendered, add_special_tokens=False, return_offsets_mapping=True)
        added = self.tokenizer.added_tokens_decoder
        for token, (start, end) in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True):
            # An unknown character of a text has the id of a control token, but not its text.
            if token in self.control_ids and str(added[token]) in rendered[start:end]:
                yield token, start, end

    def _closing(self, rendered: str) -> str:
        tokens = self._thought_tokens()
        if tokens is None:
            raise StepalignError(
                "teacher.close_think: the tokenizer has no <think> and </think> tokens, nor another family's"
            )
        opening, closing = tokens
        if rendered.rstrip().endswith(closing):
            return ""
        return f"\n{closing}\n\n" if rendered.rstrip().endswith(opening) else f"{opening}\n\n{closing}\n\n"

    def _thought_tokens(self) -> ThoughtMarks | None:
        """Return the added tokens around a thought, those of the template before others."""
        added = {str(token) for token in self.tokenizer.added_tokens_decoder.values()}
        pairs = [pair for pair in self.thought_marks if added.issuperset(pair)]
        return next((pair for pair in pairs if pair[1] in str(self.tokenizer.chat_template)), next(iter(pairs), None))

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


def load_tokenizer(model: config.ModelConfig) -> tuple[PreTrainedTokenizerBase, frozenset[int]]:
    """Load a model's tokenizer, and every token that ends a response: its own EOS, and its generation config's."""
    location = model.location
    try:
        tokenizer = AutoTokenizer.from_pretrained(location, revision=model.revision)
    except Exception as error:  # tokenizers raises a type of its own
        raise StepalignError(
            f"model.name_or_path = {model.name_or_path!r}: no tokenizer there: {first_line(error)}"
        ) from None
    try:
        eos = GenerationConfig.from_pretrained(location, revision=model.revision).eos_token_id
        ids = frozenset(map(int, eos if isinstance(eos, list) else [] if eos is None else [eos]))
    except OSError as error:
        ids = frozenset()
        if not Path(location).is_dir():  # a local folder may lack the file; the hub may also be out of reach
            log.warning("%s: no generation_config.json (%s): only the tokenizer's EOS ends a completion",
                        model.name_or_path, first_line(error))  # fmt: skip
    except Exception as error:
        reason = f"its generation_config.json cannot be read: {first_line(error)}"
        raise StepalignError(f"model.name_or_path = {model.name_or_path!r}: {reason}") from None
    own = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    return tokenizer, ids | frozenset(own)


def load_chat(model: config.ModelConfig, before: Sequence[Turn] = (), date: datetime.date | None = None) -> Chat:
    """Load a model's tokenizer, its template, and every EOS of its generation config.

    Args:
        model: the recipe's.
        before: turns that every prompt begins with.
        date: the date that a template may show, where the recipe names none.

    Raises:
        StepalignError: there is no tokenizer, or its template cannot be used, or not with these turns.
    """
    tokenizer, eos_ids = load_tokenizer(model)
    if model.chat_template_path is not None:
        try:
            tokenizer.chat_template = read_text(model.chat_template_path)
        except StepalignError as error:
            raise StepalignError(f"model.chat_template_path = {error}") from None
    chat = Chat(tokenizer, eos_ids, model.chat_template_date or date)
    chat.check_template()
    chat.check_turns(before)
    return chat


def _messages(roles: Sequence[str]) -> list[dict[str, str]]:
    """Return messages with slots in place of their texts."""
    return [{"role": role, "content": _SLOT.format(number)} for number, role in enumerate(roles)]
