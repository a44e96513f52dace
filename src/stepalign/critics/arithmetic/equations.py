"""Equations in running text: found and judged.

A chain is expressions joined by equals signs (`12 \\times 3 = 36`, `2*(3 + 4) = 2*7 = $14`,
`30% of 160 = 48`), with units and currency around the numbers. What a program that knows arithmetic alone
cannot judge (a variable, a root, a remainder, a compound quantity like `2 hours 30 minutes`) is left unjudged
rather than guessed at.

Left out: algebra, inequalities, conversions of units and numbers written as words.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import lru_cache

from stepalign.critics.arithmetic.expressions import MAX_BITS, Expression, Literal, Number, Operation, Tree
from stepalign.critics.arithmetic.lexer import Token, scan, streams

MAX_OPERANDS = 64
MAX_DEPTH = 8


@dataclass(frozen=True)
class Chain:
    """Expressions joined by equals signs; `rough[i]` says whether the sign behind part i is ≈."""

    parts: tuple[Expression, ...]
    rough: tuple[bool, ...]

    @property
    def start(self) -> int:
        """Where its first part begins."""
        return self.parts[0].start

    @property
    def end(self) -> int:
        """Where its last part ends."""
        return self.parts[-1].end

    def links(self) -> Iterator[tuple[Expression, Expression, bool]]:
        """Its neighbouring parts that can be judged: both have a value, and at least one computes it."""
        for left, right, rough in zip(self.parts, self.parts[1:], self.rough, strict=False):
            if linked(left, right):
                yield left, right, rough

    def false_links(self) -> list[tuple[Expression, Expression]]:
        """The links that do not hold."""
        return [(left, right) for left, right, rough in self.links() if not holds(left, right, rough)]

    @property
    def result(self) -> Fraction | None:
        """What it computes, as its last part states it; None where it computes nothing that can be judged."""
        links = list(self.links())
        if not links:
            return None
        left, right, _ = links[-1]
        return (left if right.computes and not left.computes else right).values()[0]


def linked(left: Expression, right: Expression) -> bool:
    """Whether an equation between two expressions can be judged."""
    return left.judged and right.judged and (left.computes or right.computes) and all((left.values(), right.values()))


def holds(left: Expression, right: Expression, rough: bool = False) -> bool:
    """Whether an equation is true, as people write them.

    A side that is one number may be rounded in its last digit (`10 / 3 = 3.33`, `7 / 2 = 4`), though a whole
    number only where the other side divides or is very near. `≈` allows 5 %. A running chain
    (`2 + 3 = 5 + 1 = 6`) holds where the right side's first number is the left side's value.
    """
    return any(agree(a, b, left, right, rough) for a in left.values() for b in right.values()) or any(
        agree(a, right.literals[0].value, left, right, rough) for a in left.values() if right.computes
    )


def agree(a: Fraction, b: Fraction, left: Expression, right: Expression, rough: bool = False) -> bool:
    """Whether two sides' values agree within the rounding that their writing allows."""
    if a == b:
        return True
    if rough:
        return abs(a - b) * 20 <= max(abs(a), abs(b))
    for side, other, shown in ((right, left, b), (left, right, a)):
        if not side.computes:
            decimals = side.literals[0].decimals
            scale = 100 if side.percent and abs(shown) < 1 else 1
            may_round = decimals > 0 or other.divides or abs(a - b) * 1000 < abs(a)
            return may_round and abs(a - b) * scale * 10**decimals < 1
    return False


@lru_cache(maxsize=1024)
def find(text: str) -> tuple[Chain, ...]:
    """The chains in a text, in the order in which they begin."""
    chains = [chain for stream in streams(text) for chain in _Reader(text, stream).chains()]
    return tuple(sorted(chains, key=lambda chain: chain.start))


def numbers(text: str) -> list[Number]:
    """Every number in a text that is not part of a name (`x2`, `3rd`, `12:30`)."""
    return [token.number for token in scan(text) if token.number is not None]


def value(text: str) -> Fraction | None:
    """The value of a text that is one expression, units and currency aside; None for anything else."""
    stream = [token for token in scan(text) if token.kind != "newline"]
    reader = _Reader(text, stream)
    if not stream or (expression := reader.expression(0)) is None or not expression.judged:
        return None
    rest = stream[reader.after :]
    found = expression.values()
    return found[-1] if found and all(token.kind in ("word", "unit", "punctuation") for token in rest) else None


_SIGNS = {"plus": "+", "minus": "-", "times": "*", "divide": "/"}
_SPOKEN = {"plus": "+", "minus": "-", "times": "*"}
_COMPUTING = {
    "half", "twice", "thrice", "double", "triple", "times", "plus", "minus", "over", "squared", "cubed", "by",
}  # fmt: skip
"""Words that compute with the number behind them."""
_SHARES = {
    "half", "third", "thirds", "quarter", "quarters", "fourth", "fourths", "fifth", "fifths", "tenth",
    "tenths", "square", "cube", "root", "double", "product", "sum", "difference", "average", "mean",
}  # fmt: skip
"""Words that, with `of`, compute with the number behind it."""
_INEXACT = {
    "remainder", "dozen", "dozens", "hundred", "thousand", "million", "billion", "trillion", "cent", "cents",
}  # fmt: skip
"""Units that scale the number before them, so that numbers alone do not tell whether an equation holds."""
_FREE_COMMANDS = {
    r"\implies",
    r"\Rightarrow",
    r"\rightarrow",
    r"\therefore",
    r"\iff",
    r"\to",
    r"\end",
    r"\begin",
}

_OPERAND = {"number", "open", "minus", "fraction", "boxed"}


@dataclass
class _Reader:
    """Recursive descent over a list of tokens. `after` is the first token behind what was read last."""

    text: str
    tokens: Sequence[Token]
    after: int = 0
    _literals: list[Number] = field(default_factory=list)
    _end: int = 0
    """Where the last token that belongs to the value, not to its unit, ends."""

    def chains(self) -> Iterator[Chain]:
        """Every chain of at least two parts."""
        at = 0
        while at < len(self.tokens):
            part = self.expression(at)
            if part is None:
                at += 1
                continue
            parts, rough = [part], []
            while (sign := self._equals(self.after)) is not None:
                following = self.expression(sign + 1)
                if following is None:
                    break
                rough.append(self.tokens[sign].kind == "rough")
                parts.append(following)
            at = self.after
            if len(parts) > 1:
                yield Chain(tuple(parts), tuple(rough))

    def expression(self, at: int) -> Expression | None:
        """The expression that begins at a token."""
        if self._kind(at) not in _OPERAND or self.tokens[at].bullet:
            return None
        before, self.after, self._literals = self.after, at, []
        tree = self._sum(0)
        if tree is None:
            self.after = before
            return None
        start, end = self.tokens[at].start, self._end
        judged = self._free_before(at) and self._free_after(self.after)
        return Expression(start, end, self.text[start:end], tree, tuple(self._literals), judged)

    def _sum(self, depth: int) -> Tree | None:
        return self._series(self._product, ("+", "-"), depth)

    def _product(self, depth: int) -> Tree | None:
        return self._series(self._factor, ("*", "/"), depth)

    def _series(self, operand: "Callable[[int], Tree | None]", signs: tuple[str, str], depth: int) -> Tree | None:
        """Operands joined by operators, from left to right; what cannot be read is left behind it."""
        tree = operand(depth)
        while tree is not None and (found := self._operator()) is not None and found[0] in signs:
            state = self.after, self._end, len(self._literals)
            self.after = found[1]
            right = operand(depth)
            if right is None:
                self.after, self._end = state[:2]
                del self._literals[state[2] :]
                break
            tree = Operation(found[0], (tree, right))
        return tree

    def _factor(self, depth: int) -> Tree | None:
        kind = self._kind(self.after)
        if kind == "minus":
            self.after += 1
            inner = self._factor(depth + 1) if depth < MAX_DEPTH else None
            return inner and Operation("neg", (inner,))
        tree = self._base(kind, depth)
        if tree is None:
            return None
        if self._kind(self.after) == "square":
            power = 2 if self.tokens[self.after].text == "²" else 3
            tree = Operation("^", (tree,), power)
            self._take()
        elif self._kind(self.after) == "power" and (exponent := self._exponent()) is not None:
            tree = Operation("^", (tree,), exponent)
        if self._kind(self.after) == "percent":
            tree = Operation("%", (tree,))
            self._take()
        units = self._units(self.after)
        if units > self.after and (self._operator(units) or self._kind(units) in ("equals", "rough", "close")):
            self.after = units
        return tree

    def _base(self, kind: str, depth: int) -> Tree | None:
        if kind == "number":
            number = self.tokens[self.after].number
            assert number is not None
            self._literals.append(number)
            self._take()
            return Literal(len(self._literals) - 1)
        if depth >= MAX_DEPTH:
            return None
        if kind == "open":
            return self._group("open", "close", depth)
        if kind == "boxed":
            self.after += 1
            return self._group("left", "right", depth)
        if kind == "fraction":
            self.after += 1
            above = self._group("left", "right", depth)
            below = self._group("left", "right", depth) if above else None
            return Operation("/", (above, below)) if above and below else None
        return None

    def _group(self, opening: str, closing: str, depth: int) -> Tree | None:
        if self._kind(self.after) != opening:
            return None
        self.after += 1
        tree = self._sum(depth + 1)
        if tree is None or self._kind(self.after) != closing:
            return None
        self._take()
        return tree

    def _exponent(self) -> int | None:
        """A whole power behind `^`, with or without braces."""
        braces = self._kind(self.after + 1) == "left"
        at = self.after + 1 + braces
        number = self.tokens[at].number if at < len(self.tokens) else None
        if number is None or number.value.denominator != 1 or number.value > MAX_BITS:
            return None
        if braces and self._kind(at + 1) != "right":
            return None
        self.after = at + braces
        self._take()
        return int(number.value)

    def _take(self) -> None:
        self._end = self.tokens[self.after].end
        self.after += 1

    def _kind(self, at: int) -> str:
        return self.tokens[at].kind if 0 <= at < len(self.tokens) else "newline"

    def _word(self, at: int) -> str:
        return self.tokens[at].text.lower() if self._kind(at) in ("word", "letter") else ""

    def _equals(self, at: int) -> int | None:
        """The equals sign at a token, which may stand at the beginning of a later line."""
        for place in range(at, at + 4):
            if self._kind(place) in ("equals", "rough"):
                return place if place < len(self.tokens) else None
            if self._kind(place) != "newline":
                return None
        return None

    def _operator(self, at: int | None = None) -> tuple[str, int] | None:
        """The operator at a token, if an operand follows it, and where that operand begins."""
        at = self.after if at is None else at
        if len(self._literals) >= MAX_OPERANDS:
            return None
        kind, word = self._kind(at), self._word(at)
        sign, behind = _SIGNS.get(kind), at + 1
        if kind == "open" and self.tokens[at].start == self.tokens[at - 1].end:
            return ("*", at) if self._kind(at - 1) in ("number", "close") else None  # 2(3 + 4)
        if word == "x" or word in _SPOKEN:
            sign = _SPOKEN.get(word, "*")
        elif word in ("divided", "multiplied") and self._word(at + 1) == "by":
            sign, behind = ("/" if word == "divided" else "*"), at + 2
        elif word == "of" and self._share(at - 1):
            sign = "*"
        return (sign, behind) if sign and self._kind(behind) in _OPERAND else None

    def _share(self, at: int) -> bool:
        """Whether a part of something ends here: `30%`, `1/2`, `\\frac{1}{2}`."""
        return self._kind(at) in ("percent", "right") or self._kind(at - 1) == "divide"

    def _units(self, at: int) -> int:
        """The first token behind the words that name a unit."""
        for _ in range(5):
            if self._kind(at) == "divide" and self._kind(at + 1) == "word":
                at += 2
            elif self._kind(at) == "unit" or (
                self._kind(at) == "word" and self._word(at) not in _INEXACT and self._operator(at) is None
            ):
                at += 1
            else:
                break
        return at

    def _free_before(self, at: int) -> bool:
        """Whether nothing before an expression belongs to it."""
        if at == 0:
            return True
        token, first = self.tokens[at - 1], self.tokens[at]
        touching = token.end == first.start
        if token.kind in ("plus", "minus", "times", "divide"):
            return token.bullet
        if first.kind == "minus" and token.kind in ("word", "unit", "close", "percent", "right"):
            # A sign stands close to its number, a subtraction apart from it.
            return not touching and at + 1 < len(self.tokens) and first.end == self.tokens[at + 1].start
        if token.kind == "word":
            word = token.text.lower()
            kinds = (self._kind(at - 2), self._kind(at - 3))
            shared = word == "of" and (self._word(at - 2) in _SHARES or "number" in kinds or "percent" in kinds)
            return word not in _COMPUTING and not shared and not (touching and first.kind == "open")
        return {
            "left": self._kind(at - 2) == "boxed",
            "command": token.text in _FREE_COMMANDS,
            "punctuation": token.text != "√",
        }.get(token.kind, token.kind not in ("letter", "symbol", "number", "power", "square"))

    def _free_after(self, at: int) -> bool:
        """Whether nothing behind an expression belongs to it."""
        if at >= len(self.tokens):
            return True
        token, touching = self.tokens[at], self.tokens[at].start == self.tokens[at - 1].end
        if token.kind in ("plus", "minus", "divide", "times"):
            unit = token.kind == "divide" and self._kind(at + 1) == "word"
            return unit or self._kind(at + 1) in ("newline", "punctuation", "equals")
        if token.kind in ("word", "letter"):
            near = (self._word(at), self._word(at + 1))
            compound = self._kind(at + 1) == "number"  # 2 hours 30 minutes
            exact = not compound and near[0] != "of" and not any(word in _INEXACT for word in near)
            return token.kind == "word" and exact
        if token.kind == "command":
            return token.text in _FREE_COMMANDS
        if token.kind in ("open", "punctuation"):
            return not (touching and token.text in "(!¢√:")
        return token.kind not in ("number", "symbol", "power", "square", "fraction", "percent")
