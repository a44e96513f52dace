"""Records of a preview: each view as tokens with their texts."""

from dataclasses import dataclass

from stepalign.chat import Chat
from stepalign.records import CriticResult, Problem, Rollout, TokenIds
from stepalign.views import View


@dataclass(frozen=True, kw_only=True)
class ViewToken:
    """One token of a view."""

    id: int
    text: str
    """Its part of the decoded text; empty where an earlier id begins the same character."""
    is_control: bool
    is_prompt: bool
    in_loss: bool


@dataclass(frozen=True, kw_only=True)
class ViewPreview:
    """One model's view of a rollout."""

    name: str
    """`student`, `teacher`, `critic`; with `teacher 1`, … where an algorithm compares several."""
    tokens: tuple[ViewToken, ...] = ()
    """Empty where a server encodes the message."""
    message: str = ""
    """The message to a served critic; empty where there are tokens."""

    @property
    def ids(self) -> TokenIds:
        """The ids of prompt and completion."""
        return tuple(token.id for token in self.tokens)

    @property
    def text(self) -> str:
        """The whole text, control tokens included."""
        return self.message or "".join(token.text for token in self.tokens)

    @property
    def size(self) -> str:
        """Its length in words."""
        if not self.tokens:
            return f"{len(self.message):,} characters, encoded by the server"
        prompt, loss = sum(token.is_prompt for token in self.tokens), sum(token.in_loss for token in self.tokens)
        return f"{prompt:,} prompt tokens, {len(self.tokens) - prompt:,} completion tokens, {loss:,} in the loss"


@dataclass(frozen=True, kw_only=True)
class RolloutPreview:
    """A rollout with the views of its examples; without any where it carries no gradient."""

    problem: Problem
    rollout: Rollout
    critique: CriticResult | None
    views: tuple[ViewPreview, ...]


def view_preview(chat: Chat, name: str, view: View) -> ViewPreview:
    """Decode a view's tokens. The ids are the view's own."""
    prompt = [(id, text, True, False) for id, text in zip(view.prompt_ids, _texts(chat, view.prompt_ids), strict=True)]
    pairs = zip(view.completion_ids, _texts(chat, view.completion_ids), strict=True)
    completion = [(id, text, False, view.loss_start <= k < view.loss_stop) for k, (id, text) in enumerate(pairs)]
    tokens = tuple(
        ViewToken(id=id, text=text, is_control=id in chat.control_ids, is_prompt=is_prompt, in_loss=in_loss)
        for id, text, is_prompt, in_loss in (*prompt, *completion)
    )
    return ViewPreview(name=name, tokens=tokens)


def _texts(chat: Chat, ids: TokenIds) -> list[str]:
    """Return each id's part of the text; that of a final EOS is its name."""
    text, starts = chat.decode(ids)
    ends = (*starts[1:], len(text))[: len(starts)]
    pieces = [text[start:end] for start, end in zip(starts, ends, strict=True)]
    if ids and ids[-1] in chat.eos_ids:
        pieces[-1] = chat.token_text(ids[-1])
    return pieces
