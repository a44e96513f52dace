"""Running text as the tokens that equations are made of: numbers, signs, units, LaTeX commands.

A number that is part of a name is none: `x2`, `3rd`, `12:30`, the 2 of `### Step 2`, a list's `1.`. Each
pattern is bounded or cannot meet itself again, so that time is linear in the text, whatever the text.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

from stepalign.critics.arithmetic.expressions import Number

MAX_DIGITS = 24
"""A longer number is a name."""

_PATTERN = re.compile(
    r"""
    (?P<annotation><<|>>)
  | (?P<relation>=>|->|<=|>=|!=|[⇒→≤≥≠<>])
  | (?P<rough>≈|\\approx(?![A-Za-z]))
  | (?P<equals>==?)
  | (?P<symbol>\d{1,9}:\d{1,9})
  | (?P<number>\d{1,3}(?:(?:,|\{,\})\d{3}){1,8}(?!\d)(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+)
  | (?P<fraction>\\[dt]?frac(?![A-Za-z]))
  | (?P<boxed>\\boxed(?![A-Za-z]))
  | (?P<unit>\\(?:text|mathrm|textbf|mathbf|textrm|mbox)\s{0,3}\{[^{}\n]*\})
  | (?P<times>\\times(?![A-Za-z])|\\cdot(?![A-Za-z])|[×·⋅∙]|\*(?!\*))
  | (?P<divide>\\div(?![A-Za-z])|[÷/])
  | (?P<plus>\+)
  | (?P<minus>[-−–])
  | (?P<power>\*\*|\^)
  | (?P<square>[²³])
  | (?P<percent>\\?%|percent(?![^\W_]))
  | (?P<newline>\\\\|\n)
  | (?P<skip>[ \t\r&~]+|\\[,;:!\ ]|\\(?:q?quad|left|right|displaystyle)(?![A-Za-z])|\\?[$]|[€£]|\\[\[\]()])
  | (?P<command>\\[A-Za-z]+)
  | (?P<open>\()
  | (?P<close>\))
  | (?P<left>\{)
  | (?P<right>\})
  | (?P<word>[^\W\d_]{2,}(?:-[^\W\d_]{2,})*|[aAI](?![^\W_]))
  | (?P<letter>[^\W\d_]|_)
  | (?P<punctuation>.)
    """,
    re.VERBOSE | re.DOTALL,
)


@dataclass(frozen=True)
class Token:
    """A token; `kind` is the name of its group in the pattern, `symbol` for a name."""

    kind: str
    start: int
    end: int
    text: str
    number: Number | None = None
    bullet: bool = False
    """Whether it is a list's mark at the beginning of a line."""


def scan(text: str) -> list[Token]:
    """The tokens of a text, without spaces, currency, bold type and the signs that set mathematics apart."""
    tokens: list[Token] = []
    fresh = True  # at the beginning of a line
    for match in _PATTERN.finditer(text):
        kind, start, end = str(match.lastgroup), match.start(), match.end()
        if kind == "skip" or (match[0] == "**" and not _between_digits(text, start, end)):  # bold type
            continue
        number = None
        if kind == "number":
            label = (fresh and _ITEM.match(text, end)) or (tokens and tokens[-1].text.lower() in ("step", "steps"))
            if label or _named(text, start, end) or end - start > MAX_DIGITS:
                kind = "symbol"
            else:
                plain = match[0].replace("{,}", "").replace(",", "")
                number = Number(start, end, match[0], Fraction(plain))
        bullet = fresh and kind in ("minus", "times", "plus") and text[end : end + 1] == " "
        tokens.append(Token(kind, start, end, match[0], number, bullet))
        fresh = kind == "newline"
    return tokens


_ITEM = re.compile(r"[.)](?=\s)")
_ORDINAL = re.compile(r"(?:st|nd|rd|th)(?![^\W_])|[^\W\d_²³](?![^\W\d_])")


def _named(text: str, start: int, end: int) -> bool:
    """Whether a number is part of a name: `x2`, `3rd`, `3y`. In `3x4` it is not."""
    before, behind = text[start - 1 : start], text[end : end + 1]
    if before == "_" or (before.isalpha() and (before not in "xX" or not text[start - 2 : start - 1].isdigit())):
        return True
    times = behind in ("x", "X") and text[end + 1 : end + 2].isdigit()
    return not times and _ORDINAL.match(text, end) is not None


def _between_digits(text: str, start: int, end: int) -> bool:
    return text[start - 1 : start].isdigit() and text[end : end + 1].isdigit()


def streams(text: str) -> Iterator[list[Token]]:
    """The text's tokens without its `<<48/2=24>>` annotations, and each annotation's by itself."""
    outer: list[Token] = []
    inner: list[Token] | None = None
    for token in scan(text):
        if token.kind == "annotation" and token.text == "<<":
            if inner is not None:
                outer += inner
            inner = []
        elif token.kind == "annotation" and inner is not None:
            yield inner
            inner = None
        else:
            (outer if inner is None else inner).append(token)
    yield outer + (inner or [])
