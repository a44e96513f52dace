"""Tokens of equations in running text, and exact values of arithmetic expressions.

Tokens are numbers, signs, units and LaTeX commands. A digit inside a name is not a number: `x2`, `3rd`, `12:30`, the 2
of `### Step 2`, a list's `1.`. Every repetition in the pattern is bounded or unambiguous, so that time is linear in the
length of any text.

Values are `Fraction`s, computed from postfix code (+ − × ÷, whole powers, percentages), never by Python's own
evaluator. A number beyond `MAX_BITS` has no value, so that no expression in a model's text is expensive (`9^{9999}`).
"""

import operator
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from unicodedata import normalize

MAX_DIGITS = 24
"""Characters; a longer number counts as a name."""

_PATTERN = re.compile(
    r"""
    (?P<annotation><<|>>)
  | (?P<relation>=>|->|<=|>=|!=|[⇒→≤≥≠<>])
  | (?P<approximately>≈|\\approx(?![A-Za-z]))
  | (?P<equals>={1,3})
  | (?P<name>\d{1,9}:\d{1,9})
  | (?P<number>\d{1,3}(?:(?:,|\{,\})\d{3}){1,8}(?!\d)(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+)
  | (?P<fraction>\\[cdt]?frac(?![A-Za-z]))
  | (?P<boxed>\\boxed(?![A-Za-z]))
  | (?P<dress>\\(?:text|mathrm|textbf|mathbf|textrm|mbox|underline|boldsymbol)\s{0,3}(?=\{[\d., $%+*/-]+\}))
  | (?P<unit>\\(?:text|mathrm|textbf|mathbf|textrm|mbox)\s{0,3}\{[^{}\n]*\})
  | (?P<times>\\times(?![A-Za-z])|\\cdot(?![A-Za-z])|[×·⋅∙✕✖]|\*(?!\*))
  | (?P<divide>\\div(?![A-Za-z])|[÷/∕⁄➗])
  | (?P<plus>[+➕]) | (?P<minus>[-−–‐‑‒➖]) | (?P<power>\*\*|\^) | (?P<square>[²³])
  | (?P<percent>\\?%|percent(?![^\W_]))
  | (?P<newline>\\\\|\n|\\[\[\]])
  | (?P<skip>[^\S\n]+|[&~`"“”\u200b-\u200d\u2060\ufeff]+|\\[,;:!\ ]
    |\\(?:q?quad|left|right|displaystyle|[bB]igg?[lr]?)(?![A-Za-z])|\\?[$]|[€£]|\\[()])
  | (?P<command>\\[A-Za-z]+)
  | (?P<open>[(\[]) | (?P<close>[)\]]) | (?P<left>\{) | (?P<right>\})
  | (?P<word>[^\W\d_]{2,}(?:-[^\W\d_]{2,})*|[aAI](?![^\W_]))
  | (?P<letter>[^\W\d_]|_)
  | (?P<punctuation>.)
    """,
    re.VERBOSE | re.DOTALL,
)
ANNOTATION = re.compile(r"<<[^<>]*>>")
_LIST_ITEM = re.compile(r"[.)](?=\s)")
_VARIANTS = re.compile("[\uff01-\uff5e\ufe50-\ufe6b\U0001d400-\U0001d7ff]")
"""Full-width, small and mathematical forms of single characters (`１３`, `＋`)."""
_NAME_SUFFIX = re.compile(
    r"(?:st|nd|rd|th)(?![^\W_])|[^\W\d_²³](?![^\W\d_])"
    r"|(?!(?:[kcm]m|[km]?g|ml|lbs?|oz|ft|in|yd|mi|hrs?|min|secs?|mph|kph|[gmk]b|kw|am|pm|cal)(?![^\W_]))"
    r"[^\W\d_]{2,3}(?![^\W_])",
    re.IGNORECASE,
)
"""Ends of a name that begins with a number: an ordinal's end, a letter, letters that are no unit (`3ab`)."""


@dataclass(frozen=True)
class Token:
    """Token of a text. `kind` is its group in the pattern, or `name` for a number that is part of a name."""

    kind: str
    start: int
    end: int
    text: str
    is_bullet: bool
    """True for a list's mark at the beginning of a line."""


@dataclass(frozen=True)
class Number(Token):
    """Number as written in a text."""

    value: Fraction

    @property
    def decimals(self) -> int:
        """Digits after the point."""
        return len(self.text.partition(".")[2])


def tokenize(text: str, first: int = 0, stop: int | None = None) -> list[Token]:
    """Return the tokens of `text[first:stop]` without spaces, currency, bold type and mathematics delimiters."""
    tokens: list[Token] = []
    if not text.isascii():
        text = _VARIANTS.sub(lambda match: normalize("NFKC", match[0]), text)  # one character for one
    at_line_start = first == 0
    for match in _PATTERN.finditer(text, first, len(text) if stop is None else stop):
        kind, start, end = str(match.lastgroup), match.start(), match.end()
        if kind in ("skip", "dress", "annotation"):
            continue
        if match[0] == "**" and not (text[start - 1 : start].isdigit() and text[end : end + 1].isdigit()):
            continue  # bold type; between digits it is a power
        if kind == "number":
            after_step = bool(tokens) and tokens[-1].text.lower() in ("step", "steps")
            is_label = after_step or (at_line_start and _LIST_ITEM.match(text, end))
            kind = "name" if is_label or _is_in_name(text, start, end) or end - start > MAX_DIGITS else kind
        if kind == "number":
            value = Fraction(match[0].replace("{,}", "").replace(",", ""))
            tokens.append(Number(kind, start, end, match[0], False, value))
        else:
            is_bullet = at_line_start and kind in ("minus", "times", "plus") and text[end : end + 1] == " "
            tokens.append(Token(kind, start, end, match[0], is_bullet))
        at_line_start = kind == "newline"
    return tokens


def _is_in_name(text: str, start: int, end: int) -> bool:
    """Tell whether a number is part of a name (`x2`, `3rd`, `3y`), unlike in `3x4`."""
    before, after = text[start - 1 : start], text[end : end + 1]
    if before == "_" or (before.isalpha() and (before not in "xX" or not text[start - 2 : start - 1].isdigit())):
        return True
    is_product = after in ("x", "X") and text[end + 1 : end + 2].isdigit()
    return not is_product and _NAME_SUFFIX.match(text, end) is not None


def replace_spans(text: str, edits: Mapping[int, tuple[int, str]]) -> str:
    """Apply edits, start → end and new text; of overlapping ones the first."""
    pieces, position = [], 0
    for start, (end, new) in sorted(edits.items()):
        if start >= position:
            pieces += [text[position:start], new]
            position = end
    return "".join([*pieces, text[position:]])


def split_annotations(text: str) -> Iterator[list[Token]]:
    """Yield the tokens of each `<<48/2=24>>` annotation, then those of the text around them."""
    outer: list[Token] = []
    position = 0
    for match in ANNOTATION.finditer(text):
        outer += tokenize(text, position, match.start())
        yield tokenize(text, match.start() + 2, match.end() - 2)
        position = match.end()
    yield outer + tokenize(text, position)


MAX_BITS = 4096
NUMBER = "number"


@dataclass(frozen=True)
class Expression:
    """One side of an equation."""

    start: int
    end: int
    text: str
    """From its first number to its last, without the units after it."""
    code: tuple[str, ...]
    """Postfix: `NUMBER` (the next literal), `+ - * /` of two operands, `neg`, `%` and `^2` (whole powers) of one."""
    literals: tuple[Number, ...]
    is_certain: bool
    """False where a neighbour (a variable, a mixed number) makes the value uncertain."""
    units: frozenset[str] = frozenset()
    """Units in and after it that convert into others, singular."""
    is_cents: bool = False
    is_label: bool = False
    """True where words around it may count or name something else: `4 bedrooms`, `after 20`."""

    @property
    def computes(self) -> bool:
        """True if it has an operation besides signs and percentages."""
        return not {NUMBER, "neg", "%"}.issuperset(self.code)

    def with_values(self, values: Sequence[Fraction]) -> "Expression":
        """Return the same expression with other numbers in it."""
        literals = (replace(number, value=value) for number, value in zip(self.literals, values, strict=True))
        return replace(self, literals=tuple(literals))

    def values(self) -> tuple[Fraction, ...]:
        """Return its value under both readings of `%`: a hundredth, a mere unit. Empty for no value (1/0).

        A percentage in a product is a hundredth, unless it is 100 %. Cents are dollars as well.
        """
        readings = (Fraction(1, 100), Fraction(1)) if "%" in self.code else (Fraction(1),)
        if {"*", "/"} & {*self.code} and all(number.value != 100 for number in self.literals):
            readings = readings[:1]
        values = [value for percent in readings if (value := self._evaluate(percent)[-1]) is not None]
        return tuple(dict.fromkeys([*values, *(value / 100 for value in values if self.is_cents)]))

    def intermediate_values(self) -> list[Fraction]:
        """Return the values of its operations, the innermost first."""
        results = zip(self.code, self._evaluate(Fraction(1, 100)), strict=True)
        return [value for item, value in results if item != NUMBER and value is not None]

    def sum_terms(self) -> list[Fraction] | None:
        """Return the signed terms of a plain sum of numbers; None for any other expression."""
        stack: list[list[Fraction]] = []
        literals = iter(self.literals)
        for item in self.code:
            if item == NUMBER:
                stack.append([next(literals).value])
            elif item in ("+", "-", "neg"):
                terms = stack.pop()
                left = [] if item == "neg" else stack.pop()
                stack.append(left + (terms if item == "+" else [-term for term in terms]))
            else:
                return None
        return stack[0]

    def _evaluate(self, percent: Fraction) -> list[Fraction | None]:
        """Return the value of each item of the code. The last one is the whole."""
        stack: list[Fraction | None] = []
        results: list[Fraction | None] = []
        literals = iter(self.literals)
        for item in self.code:
            if item == NUMBER:
                stack.append(next(literals).value)
            else:
                right = stack.pop()
                left = stack.pop() if item in ("+", "-", "*", "/") else Fraction(0)  # `neg` is 0 - right
                stack.append(None if left is None or right is None else _apply(item, left, right, percent))
            results.append(stack[-1])
        return results


def _apply(sign: str, left: Fraction, right: Fraction, percent: Fraction) -> Fraction | None:
    """Compute one operation; None for a division by zero and for numbers beyond `MAX_BITS`."""
    power = int(sign[1:]) if sign[0] == "^" else 1
    bits = sum(n.numerator.bit_length() + n.denominator.bit_length() for n in (left, right))
    if bits * max(power, 1) > MAX_BITS or (sign == "/" and right == 0):
        return None
    if sign[0] == "^":
        return Fraction(right**power)
    return right * percent if sign == "%" else _OPERATORS[sign](left, right)


_OPERATORS: dict[str, Callable[[Fraction, Fraction], Fraction]] = {
    "+": operator.add, "-": operator.sub, "neg": operator.sub, "*": operator.mul, "/": operator.truediv,
}  # fmt: skip
