"""Read equations in running text and tell true ones from false ones.

A chain is expressions joined by equals signs (`12 \\times 3 = 36`, `2*(3 + 4) = 2*7 = $14`, `30% of 160 = 48`), with
units and currency around the numbers. An equation that arithmetic alone cannot decide (a variable, a root, a remainder,
a compound quantity like `2 hours 30 minutes`) stays undecided, and so does `60 / 3/4`, which is read in two ways.

Left out: algebra and inequalities, because a wrong guess would put the first error into a correct step. `in_figures`
rewrites words first, for the checks alone.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import lru_cache
from typing import cast

from stepalign.critics.arithmetic.chains import CONVERTIBLE, Chain, Link
from stepalign.critics.arithmetic.expressions import (
    MAX_BITS,
    NUMBER,
    Expression,
    Number,
    Token,
    split_annotations,
    tokenize,
)

MAX_OPERANDS = 64
MAX_DEPTH = 8


@lru_cache(maxsize=1024)
def find_equations(text: str) -> tuple[Chain, ...]:
    """Return the chains of a text in the order of their first characters."""
    chains = [chain for tokens in split_annotations(text) for chain in _Parser(text, tokens).chains()]
    return tuple(sorted(chains, key=lambda chain: chain.start))


def false_links(text: str) -> list[Link]:
    """Return the equations of a text that do not hold."""
    return [link for chain in find_equations(text) for link in chain.false_links()]


def last_result(text: str) -> Fraction | None:
    """Return the value that the last decidable equation of a text computes."""
    return next((chain.result for chain in reversed(find_equations(text)) if chain.result is not None), None)


def find_numbers(text: str) -> list[Number]:
    """Return the numbers of a text, except in names (`x2`, `3rd`, `12:30`)."""
    return [token for token in tokenize(text) if isinstance(token, Number)]


def evaluate(text: str) -> Fraction | None:
    """Return the value of one expression with units and currency. None for any other text."""
    tokens = [token for token in tokenize(text) if token.kind != "newline"]
    parser = _Parser(text, tokens)
    expression = parser.expression(0)
    is_whole = all(token.kind in ("word", "unit", "punctuation") for token in tokens[parser.position :])
    return (
        expression.values()[-1] if expression and expression.is_certain and expression.values() and is_whole else None
    )


_SIGNS = {"plus": "+", "minus": "-", "times": "*", "divide": "/"}
_WORD_SIGNS = {"plus": "+", "minus": "-", "times": "*", "x": "*"}
_OPERATOR_WORDS = {
    "half", "twice", "thrice", "double", "triple", "times", "plus", "minus", "over", "squared", "cubed", "by",
}  # fmt: skip
"""Words that compute with the number after them."""
_PART_WORDS = {
    "half", "third", "thirds", "quarter", "quarters", "fourth", "fourths", "fifth", "fifths", "tenth", "tenths",
    "square", "cube", "root", "double", "product", "sum", "difference", "average", "mean",
}  # fmt: skip
"""Words that, with `of`, compute with the number after it."""
_SCALE_WORDS = {
    "remainder", "dozen", "dozens", "hundred", "thousand", "million", "billion", "trillion", "am", "pm",
}  # fmt: skip
"""Units that scale the number before them, so that the numbers alone do not decide the equation."""
_FREE_COMMANDS = {
    r"\implies", r"\Rightarrow", r"\rightarrow", r"\therefore", r"\iff", r"\to", r"\end", r"\begin"
}  # fmt: skip
_NO_UNITS = _SCALE_WORDS | {"and", "or", "is", "are", "was", "were"}
_OF = re.compile(r"\b(?:of|by|times|plus|minus|over)\b")
_COMPARING_WORDS = {"more", "less", "fewer", "greater", "larger", "smaller", "higher", "lower", "short", "off"}
"""Words with which a number compares (`7 more than 5`)."""
_CONNECTIVES = {
    "so", "thus", "then", "hence", "therefore", "total", "sum", "is", "are", "have", "has", "get", "gets", "and",
    "because", "since", "result", "answer",
}  # fmt: skip
"""Words before a number that claims to be a result."""
_AFTER_UNITS = {"equals", "approximately", "close"}
_OPERAND = {"number", "open", "minus", "fraction", "boxed", "left"}


@dataclass
class _Parser:
    """Recursive-descent parser over tokens. `position` is the first token after the last expression."""

    text: str
    tokens: Sequence[Token]
    position: int = 0
    _literals: list[Number] = field(default_factory=list)
    _code: list[str] = field(default_factory=list)
    _end: int = 0
    """End of the last token that belongs to the value and not to its unit."""

    def chains(self) -> Iterator[Chain]:
        """Yield every chain of at least two parts."""
        at = 0
        while at < len(self.tokens):
            if (part := self.expression(at)) is None:
                at += 1
                continue
            parts, approximate = [part], []
            while (sign := self._equals_sign()) is not None:
                if self._kind(sign + 1) in ("letter", "word") and self._kind(sign + 2) == "equals":
                    sign += 2  # 13 + 7 = x = 20
                if (part := self.expression(sign + 1)) is None:
                    break
                approximate.append(self.tokens[sign].kind == "approximately")
                parts.append(part)
            at = self.position
            if len(parts) > 1:
                yield Chain(tuple(parts), tuple(approximate))

    def expression(self, at: int) -> Expression | None:
        """Return the expression that begins at a token."""
        if self._kind(at) not in _OPERAND or self.tokens[at].is_bullet:
            return None
        before, self.position, self._literals, self._code = self.position, at, [], []
        if not self._sum(0):
            self.position = before
            return None
        start, end = self.tokens[at].start, self._end
        is_certain = self._is_free_before(at) and self._is_free_after(self.position) and not self._is_ambiguous(at)
        after = self._after_units(self.position)
        is_cents = self._word(self.position) in ("cent", "cents")
        units = {self._word(place).rstrip("s") for place in range(at, after)}
        has_unit = self.tokens[self.position - 1].kind in ("word", "unit")
        word = self._word(at - 1)
        is_label = has_unit or after > self.position or (bool(word) and word not in _CONNECTIVES)
        code, literals = tuple(self._code), tuple(self._literals)
        return Expression(
            start, end, self.text[start:end], code, literals, is_certain, CONVERTIBLE & units, is_cents, is_label
        )  # fmt: skip

    def _is_ambiguous(self, at: int) -> bool:
        """Tell whether a spaced division stands before a tight fraction (`60 / 3/4`)."""
        tokens = self.tokens[at : self.position]
        divisions = [i for i, token in enumerate(tokens) if token.kind == "divide" and 0 < i < len(tokens) - 1]
        tight = {i for i in divisions if tokens[i - 1].end == tokens[i].start and tokens[i].end == tokens[i + 1].start}
        return any(i not in tight and i + 2 in tight for i in divisions)

    def _sum(self, depth: int) -> bool:
        return self._series(lambda: self._series(lambda: self._factor(depth), ("*", "/")), ("+", "-"))

    def _series(self, operand: Callable[[], bool], signs: tuple[str, str]) -> bool:
        """Read operands and operators from left to right, as far as possible."""
        if not operand():
            return False
        while (operator := self._operator(self.position)) is not None and operator[0] in signs:
            state = self.position, self._end, len(self._literals), len(self._code)
            self.position = operator[1]
            if not operand():
                self.position, self._end = state[:2]
                del self._literals[state[2] :], self._code[state[3] :]
                break
            self._code.append(operator[0])
        return True

    def _factor(self, depth: int) -> bool:
        kind = self._kind(self.position)
        if kind == "minus":
            self.position += 1
            if depth >= MAX_DEPTH or not self._factor(depth + 1):
                return False
            self._code.append("neg")
            return True
        if not self._base(kind, depth):
            return False
        if self._kind(self.position) == "square":
            self._take("^2" if self.tokens[self.position].text == "²" else "^3")
        elif self._kind(self.position) == "power":
            self._power()
        if self._kind(self.position) == "percent":
            self._take("%")
        units = self._after_units(self.position)
        if units > self.position and (self._operator(units) or self._kind(units) in _AFTER_UNITS):
            self.position = units
        return True

    def _base(self, kind: str, depth: int) -> bool:
        if kind == "number":
            self._literals.append(cast(Number, self.tokens[self.position]))
            self._take(NUMBER)
            return True
        if depth >= MAX_DEPTH or kind not in _OPERAND:
            return False
        if kind in ("open", "left"):
            return self._group(kind, "close" if kind == "open" else "right", depth)
        self.position += 1
        if kind != "fraction":
            return self._group("left", "right", depth)
        if not (self._group("left", "right", depth) and self._group("left", "right", depth)):
            return False
        self._code.append("/")
        return True

    def _group(self, opening: str, closing: str, depth: int) -> bool:
        if self._kind(self.position) != opening:
            return False
        self.position += 1
        if not self._sum(depth + 1) or self._kind(self.position) != closing:
            return False
        self._take()
        return True

    def _power(self) -> None:
        """Read a whole power after `^`, with or without braces."""
        has_braces = self._kind(self.position + 1) == "left"
        at = self.position + 1 + has_braces
        number = self.tokens[at] if at < len(self.tokens) else None
        is_closed = not has_braces or self._kind(at + 1) == "right"
        if isinstance(number, Number) and number.value.denominator == 1 and number.value <= MAX_BITS and is_closed:
            self.position = at + has_braces
            self._take(f"^{number.value}")

    def _take(self, *code: str) -> None:
        self._end = self.tokens[self.position].end
        self.position += 1
        self._code += code

    def _kind(self, at: int) -> str:
        return self.tokens[at].kind if 0 <= at < len(self.tokens) else "newline"

    def _is_text(self, at: int, texts: str) -> bool:
        return at < len(self.tokens) and self.tokens[at].text in texts

    def _word(self, at: int) -> str:
        return self.tokens[at].text.lower() if self._kind(at) in ("word", "letter") else ""

    def _equals_sign(self) -> int | None:
        """Return the index of the next equals sign, after at most three line breaks."""
        ahead = range(self.position, self.position + 4)
        at = next((at for at in ahead if self._kind(at) != "newline"), self.position)
        return at if self._kind(at) in ("equals", "approximately") else None

    def _operator(self, at: int) -> tuple[str, int] | None:
        """Return the operator at a token and the index of its operand. None without one."""
        if len(self._literals) >= MAX_OPERANDS:
            return None
        kind, word, operand = self._kind(at), self._word(at), at + 1
        if kind == "open" and self.tokens[at].start == self.tokens[at - 1].end:
            return ("*", at) if self._kind(at - 1) in ("number", "close", "right") else None  # 2(3 + 4)
        sign = _SIGNS.get(kind) or _WORD_SIGNS.get(word)
        if word == "x" and self._kind(operand) == "minus":
            return None  # a variable: (3/2)x - 5
        if word in ("divided", "multiplied") and self._word(at + 1) == "by":
            sign, operand = ("/" if word == "divided" else "*"), at + 2
        elif word == "of" and self._is_share(at):
            sign = "*"  # 30% of, 1/2 of, \frac{1}{2} of
        return (sign, operand) if sign and self._kind(operand) in _OPERAND else None

    def _is_share(self, at: int) -> bool:
        """Tell whether a percentage or a fraction stands before a token."""
        return self._kind(at - 1) in ("percent", "right") or self._kind(at - 2) == "divide"

    def _after_units(self, at: int) -> int:
        """Return the index of the first token after the words that name a unit."""
        for _ in range(5):
            is_part = self._word(at) == "of" and (
                self._kind(at - 1) in ("percent", "right") or self._kind(at - 2) == "divide"
            )
            is_word = self._kind(at) == "word" and self._word(at) not in _NO_UNITS and self._operator(at) is None
            is_word = is_word and not is_part
            if is_word or self._kind(at) == "unit":
                at += 1
            elif self._kind(at) == "divide" and self._kind(at + 1) in ("word", "unit"):
                at += 2
            else:
                break
        return at

    def _is_free_before(self, at: int) -> bool:
        """Tell whether nothing before an expression belongs to it."""
        if at == 0:
            return True
        token, first = self.tokens[at - 1], self.tokens[at]
        is_touching = token.end == first.start
        behind_number = self._kind(at - 2) == "number"
        is_joined = (
            (token.text == "," and behind_number and (is_touching or len(first.text) == 3))  # a mistyped 13,2000
            or (self._word(at - 1) == "and" and behind_number and self._kind(at + 1) == "divide")  # 1 and 1/4
            or (first.kind == "left" and (token.kind in ("right", "close") or is_touching))  # \\frac{x}{2}
            or (first.kind == "open" and (token.kind in ("right", "close") or (is_touching and token.text in "'′")))
            or (first.kind == "minus" and token.text == "|")  # |A| - 3
            or (token.kind == "unit" and _OF.search(token.text) is not None)
        )
        if is_joined and token.kind not in ("open", "equals"):
            return False
        if token.kind in _SIGNS:
            return token.is_bullet
        if first.kind == "minus" and token.kind in ("word", "unit", "close", "percent", "right"):
            # A sign touches its number; a subtraction stands apart from it.
            return not is_touching and at + 1 < len(self.tokens) and first.end == self.tokens[at + 1].start
        if token.kind == "word":
            word = token.text.lower()
            kinds = (self._kind(at - 2), self._kind(at - 3))
            is_part = word == "of" and (self._word(at - 2) in _PART_WORDS or "number" in kinds or "percent" in kinds)
            return word not in _OPERATOR_WORDS and not is_part and not (is_touching and first.kind == "open")
        return {
            "letter": token.text == "s" and self._is_text(at - 2, "'’"),  # that's
            "open": self._kind(at - 2) not in _SIGNS,
            "left": self._kind(at - 2) == "boxed",
            "command": token.text in _FREE_COMMANDS,
            "punctuation": token.text != "√",
        }.get(token.kind, token.kind not in ("letter", "name", "number", "power", "square"))

    def _is_free_after(self, at: int) -> bool:
        """Tell whether nothing after an expression belongs to it."""
        if at >= len(self.tokens):
            return True
        token, next_kind = self.tokens[at], self._kind(at + 1)
        if token.kind in _SIGNS:
            is_end = next_kind in ("newline", "punctuation", "equals") and not self._is_text(at + 1, "|√")
            return is_end or (token.kind == "divide" and next_kind in ("word", "unit"))
        if token.kind in ("word", "letter"):
            words = {self._word(at), self._word(at + 1)}
            is_compound = next_kind == "number"  # 2 hours 30 minutes
            is_scaled = words & (_SCALE_WORDS | _COMPARING_WORDS) or (self._word(at), self._word(at + 1)) == (
                "times",
                "as",
            )
            return token.kind == "word" and not is_compound and self._word(at) != "of" and not is_scaled
        if token.kind == "command":
            return token.text in _FREE_COMMANDS
        if token.kind in ("open", "punctuation"):
            return token.start != self.tokens[at - 1].end or token.text not in "(!¢√:"
        return token.kind not in ("number", "name", "power", "square", "fraction", "percent")
