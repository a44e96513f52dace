"""Marks around a model's thought, and the character at which its response begins.

The marks come from the chat template where one is known (`Chat.thought_marks`). A text alone is read with the marks of
known families. Left out: thoughts in a field of their own, which a server removes from the text.
"""

import re
from collections.abc import Iterable

ThoughtMarks = tuple[str, str]
"""The texts that open and close a thought."""

THOUGHT_MARKS: tuple[ThoughtMarks, ...] = (
    *((f"<{name}>", f"</{name}>") for name in ("think", "thought", "thinking", "reasoning", "longcat_think")),
    ("<seed:think>", "</seed:think>"),
    ("[THINK]", "[/THINK]"),
    ("◁think▷", "◁/think▷"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<|inner_prefix|>", "<|inner_suffix|>"),
    ("<|think|>", "<|content|>"),
    ("<|channel|>analysis<|message|>", "<|channel|>final<|message|>"),
    ("<|channel>thought", "<channel|>"),
    ("<unused94>thought", "<unused95>"),
)
"""The pairs of Qwen, DeepSeek, EXAONE, LongCat, Seed, Magistral, Kimi, OpenThinker, Cohere, Apertus, Solar, gpt-oss,
Gemma and MedGemma. Upper and lower case are the same."""

_WORDS: tuple[ThoughtMarks, ...] = (("Here is my thought process:", "Here is my response:"),)
"""Marks in plain words, which count only where the template holds them (Granite 3.2)."""
_CLOSING = re.compile(
    r"(?P<left>[<\[◁]\|?)(?:/|end_of_)(?P<name>[\w:]*(?:think|thought|reason)\w*)(?P<right>\|?[>\]▷])", re.IGNORECASE
)


def thought_marks(template: str, tokens: Iterable[str]) -> tuple[ThoughtMarks, ...]:
    """Find the marks of a chat template and of a tokenizer's added tokens; the known families' are always among them.

    Returns:
        The marks, without duplicates: `</NAME>`, `[/NAME]`, `<|end_of_NAME|>` … close a thought where NAME speaks of
        thinking, and the template or the vocabulary also has what opens it.
    """
    known = "\n".join((template, *tokens))
    found = [marks for marks in _WORDS if all(mark in known for mark in marks)]
    for match in _CLOSING.finditer(known):
        begin = "begin_of_" if "end_of_" in match.group().lower() else ""
        opening = f"{match['left']}{begin}{match['name']}{match['right']}"
        if opening in known:
            found.append((opening, match.group()))
    return tuple(dict.fromkeys((*THOUGHT_MARKS, *found)))


def response_start(text: str, *, marks: tuple[ThoughtMarks, ...] = THOUGHT_MARKS, opened: bool = False) -> int:
    """Return the character after the last thought: 0 without one, the text's end if the first never ends.

    Args:
        text: a model's completion.
        marks: what opens and closes a thought.
        opened: whether the prompt ended inside a thought, so that the text begins in one.
    """
    lowered = _lowered(text)
    ends = (start + len(closing) for _, closing in marks if (start := lowered.rfind(closing.lower())) >= 0)
    is_open = opened or lowered.lstrip().startswith(tuple(opening.lower() for opening, _ in marks))
    return max(ends, default=len(text) if is_open else 0)


def answer_end(text: str, begin: int) -> int:
    """Return the character from `begin` on at which another thought opens, which nothing closes; or the text's end."""
    lowered = _lowered(text)
    starts = (lowered.find(opening.lower(), begin) for opening, _ in THOUGHT_MARKS)
    return min((start for start in starts if start >= 0), default=len(text))


def ends_in_thought(prompt_end: str, marks: tuple[ThoughtMarks, ...]) -> bool:
    """Return whether the end of a prompt, written by the template alone, opens a thought without closing it."""
    lowered = _lowered(prompt_end)
    opened, closed = (max(lowered.rfind(pair[side].lower()) for pair in marks) for side in (0, 1))
    return opened > closed


def _lowered(text: str) -> str:
    lowered = text.lower()
    return lowered if len(lowered) == len(text) else text  # a few characters have a lower form of two
