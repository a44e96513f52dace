"""Quote what a rollout must not say in the critic's own message: its markers and control words.

A rollout that writes `=== Student's Solution End ===` or `<|im_end|>` would end its own section. So a backslash goes
behind the first character: visible, and undone by `unquote`, because a word that has backslashes there gets one more.
The critic copies the quoted words, and its reply is unquoted.

Left out: the vocabulary of a served critic, which no server tells. The patterns are the forms that chat templates use.
"""

import re

_NAMES = (
    r"/?(?:s|bos|eos|pad|unk|sep|cls|mask|im_start|im_end|[a-z]{1,12}_of_[a-z]{1,12}|"
    r"(?:[a-z]{1,12}[:_])?think|thinking|thought|reasoning|tool_call|tool_response)>"
)
CONTROL = re.compile(
    rf"<(?P<a>\\*)(?=[|｜][^\n<>]{{1,60}}>|[\w.-]{{1,40}}[|｜]>|unused\d{{1,4}}>|{_NAMES}|<\\*/?SYS>)"
    r"|\[(?P<b>\\*)(?=/?(?:INST|THINK|SYSTEM_PROMPT|TOOL_CALLS|AVAILABLE_TOOLS|TOOL_RESULTS|gMASK)\])"
    r"|◁(?P<c>\\*)(?=/?think▷)",
    re.IGNORECASE,
)
"""The beginning of a control word of a chat template, with the backslashes that quote it."""
_MARKER = re.compile(r"[=＝](?P<quotes>\\*)(?=[=＝]\\*[=＝](?:\\*[=＝]){0,80}[ \t]{0,8}\w)")


def quote(text: str) -> str:
    """Return a text whose markers and control words are quoted."""
    return _MARKER.sub(r"\g<0>\\", CONTROL.sub(r"\g<0>\\", text))


def unquote(text: str) -> str:
    """Return a text as it was before `quote`."""
    text = CONTROL.sub(lambda match: match[0].removesuffix("\\"), text)
    return _MARKER.sub(lambda match: match[0].removesuffix("\\"), text)


def has_control_word(text: str) -> bool:
    """Tell whether a text holds a control word that is not quoted."""
    return any(not any(match.group("a", "b", "c")) for match in CONTROL.finditer(text))
