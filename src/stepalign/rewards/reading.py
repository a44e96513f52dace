"""Reading of answers: from the text of a box to a typed value.

Left out: prose. What cannot be read to its end is words, which equal only the same words.
"""

import re
from dataclasses import replace
from functools import lru_cache
from typing import Any

from stepalign.rewards import notation
from stepalign.rewards.latex import read_scalar
from stepalign.rewards.notation import is_one, split
from stepalign.rewards.relations import RELATION, read_relation
from stepalign.rewards.scalars import Scalar, as_expression, exact, free_symbols
from stepalign.rewards.values import Choice, Matrix, Named, RealSet, Sequence, Value, Words, as_set, distinct, ratio_of

_SEPARATOR = re.compile(r"(?<![A-Za-z\\])(?:and|or)(?![a-z])|\\(?:lor|land|wedge|vee)(?![a-zA-Z])|&(?!=)")
_MATRIX = re.compile(
    r"(?P<factor>[^=\[]*?) ?(?P<open>\[)?\\begin\{(?P<kind>[pbB]?)(?:small)?(?:matrix|array)\}(?:\{[lcr|]+\})?"
    r"(?P<body>(?:(?!\\begin).)*)\\end\{(?P=kind)(?:small)?(?:matrix|array)\}(?(open)\])",
    re.DOTALL,
)
_CHOICE = re.compile(
    r"\(?([A-J])\)?(?:[).] ?| ?: )(?! *=)"
    r"(?!(?:and|or|nor|but|is|isn't|was|wrong|incorrect|not (?:sure|right|correct))\b|no[,. ]*$|no[,.]|[,/&?+])"
    r"(?!.*(?:\b[A-J]\)|\b(?:or|no|not),? [A-J]\b|\?$))\S.*"
)
_COMMA = re.compile(r",(?!,)|(?<=\))\s+(?=\()")


@lru_cache(maxsize=4096)
def read(answer: str) -> Value:
    """Read an answer as it stands in a box."""
    return _read(notation.clean(answer))


def _read(text: str) -> Value:
    text = text.strip()
    if choice := _CHOICE.fullmatch(text):
        return Choice(choice[1])
    if letter := re.fullmatch(r"\(?([A-Z])[).]", text):
        return _read(letter[1])
    if head := re.fullmatch(
        r"(yes|no|true|false)\b[,.:;-] *(?!.*\b(?:but|or|maybe|yes|no|true|false)\b).*", text, re.IGNORECASE
    ):
        return Words(head[1])
    for reader in (
        read_scalar,
        _read_matrix,
        _read_pieces,
        _read_equation,
        _read_brackets,
        _read_braces,
        _read_sets,
        _read_signs,
        _read_ratio,
    ):
        if (value := reader(text)) is not None:
            return value
    return Words(text)


def _read_equation(text: str) -> Value | None:
    return read_relation(text, _read)


def _read_matrix(text: str) -> Value | None:
    match = _MATRIX.fullmatch(text)
    if match is None:
        return None
    factor = f"{match['factor']}1" if match["factor"] in ("", "-") else match["factor"]
    if read_scalar(factor) is None:
        return None
    rows = [row for row in re.split(r"\\\\(?:\[[^\]]*\])?|\\cr(?![a-z])", match["body"]) if row.strip()]
    if factor != "1":
        rows = [" & ".join(rf"({factor}) \cdot ({cell})" for cell in row.split("&")) for row in rows]
    return Matrix(tuple(tuple(_read(cell) for cell in row.split("&")) for row in rows))


def _read_pieces(text: str) -> Value | None:
    """Read `a; b`, `a or b`, `a, b`."""
    if text[:1] not in "([\\":
        text = re.sub(r"(?<![\d,.])\d{1,3}(?:,\d{3})+(?![\d,])", lambda number: number[0].replace(",", ""), text)
    for separator in (re.compile(";"), _SEPARATOR, _COMMA):
        pieces = [piece for piece in split(text, separator) if piece]
        if len(pieces) > 1:
            if separator is _SEPARATOR:
                pieces = [part for piece in pieces for part in split(piece.strip(", "), _COMMA) if part]
            items = [_read(piece) for piece in pieces]
            if separator.pattern == ";":
                items = [replace(item, kind="tuple") if isinstance(item, Sequence) else item for item in items]
            return _list(items, text)
    return None


def _list(items: list[Value], text: str) -> Value:
    from sympy import EmptySet, Intersection, Union

    if any(isinstance(item, Words) and re.search(r"dots|[a-z]{3}", item.text) for item in items):
        return Words(text)
    names = [item.name for item in items if isinstance(item, Named)]
    if names and isinstance(items[0], Named) and len(set(names)) == 1 and len(names) in (1, len(items)):
        values = [item.value if isinstance(item, Named) else item for item in items]
        if all(isinstance(value, RealSet) for value in values):
            is_either = re.search("or|vee", text)
            points = (Union if is_either else Intersection)(*map(as_set, values))
            if points is not EmptySet:
                return Named(names[0], _real_set(points))
        return Named(names[0], Sequence("list", _spread(values)))
    comma = re.fullmatch(r"([+-]?\d+),(\d{1,2}|\d{4,})", text)
    return Sequence("list", _spread(items), read_scalar(f"{comma[1]}.{comma[2]}") if comma else None)


def _spread(items: list[Value]) -> tuple[Value, ...]:
    """Take apart the lists in a list, which ± makes."""
    spread: list[Value] = []
    for item in items:
        spread += item.items if isinstance(item, Sequence) and item.kind == "list" else (item,)
    return tuple(spread)


def _read_brackets(text: str) -> Value | None:
    """Read what stands in one pair of brackets: a tuple, an interval, or a value in parentheses."""
    left, inner, right = text[:1], text[1:-1], text[-1:]
    if not text or left not in "([]" or right not in ")][" or not is_one(inner):
        return None
    pieces = split(inner, re.compile(";" if ";" in inner else ","))
    if len(pieces) == 1:
        return _read(inner) if left == "(" and right == ")" else None
    items = [_read(piece) for piece in pieces]
    if (len(items) == 2 and (left, right) != ("(", ")")) or any(_is_infinite(item) for item in items):
        return _interval(items, left, right)
    return None if any(isinstance(item, Words) for item in items) else Sequence("tuple", tuple(items))


def _read_braces(text: str) -> Value | None:
    """Read a set: its elements, or a condition on them."""
    if not (text.startswith("\\{") and text.endswith("\\}")) or not is_one(inner := text[2:-2].strip()):
        return None
    condition = re.split(r"\||:", inner, maxsplit=1)
    if len(condition) == 2 and RELATION.search(condition[1]):
        found = read_relation(condition[1].strip(), _read)
        return found.value if isinstance(found, Named) else found
    pieces = split(inner, re.compile(";" if ";" in inner else ","))
    return Sequence("set", distinct(_spread([_read(piece) for piece in pieces if piece])))


def _is_infinite(item: Value) -> bool:
    return isinstance(item, Scalar) and bool(as_expression(item.value).is_infinite)


def _interval(items: list[Value], left: str, right: str) -> Value | None:
    """Return an interval; without points in it a tuple that only equal brackets equal."""
    from sympy import EmptySet, Interval

    ends = [as_expression(item.value) for item in items if isinstance(item, Scalar) and not free_symbols(item.value)]
    if len(ends) != 2 or not all(end.is_extended_real for end in ends):
        return None
    points = Interval(*ends, left_open=left in "(]", right_open=right in ")[")
    return Sequence("tuple", (Words(left + right), *items)) if points is EmptySet else RealSet(points)


def _read_sets(text: str) -> Value | None:
    """Read unions, intersections and differences."""
    from sympy import Complement, Intersection, Interval, Union, oo

    if text == "\\emptyset":
        return Sequence("set", ())
    if text == r"\mathbb{R}" or re.fullmatch(r"all real(?:s| numbers)", text, re.IGNORECASE):
        return RealSet(Interval(-oo, oo))
    for command, operation in (("setminus|backslash", Complement), ("cup", Union), ("cap", Intersection)):
        pieces = split(text, re.compile(rf"\\(?:{command})(?![a-zA-Z])"))
        if len(pieces) > 1:
            sets = [as_set(_read(piece)) for piece in pieces]
            if all(points is not None for points in sets):
                return _real_set(operation(*sets))
            is_simple = operation is not Complement and not any("\\c" in piece or "\\s" in piece for piece in pieces)
            return Words(f" \\{command} ".join(sorted(pieces))) if is_simple else None
    return None


def _real_set(points: Any) -> Value:
    from sympy import EmptySet, FiniteSet

    if points is EmptySet or isinstance(points, FiniteSet):
        return Sequence("set", tuple(Scalar(exact(point)) for point in points))
    return RealSet(points)


def _read_signs(text: str) -> Value | None:
    """Read ± as two values."""
    if not re.search(r"\\pm(?![a-zA-Z])", text):
        return None
    signs = [
        re.sub(r"\\pm(?![a-zA-Z])", plus, re.sub(r"\\mp(?![a-zA-Z])", minus, text)) for plus, minus in ("+-", "-+")
    ]
    items = [read_scalar(re.sub(r"^\+", "", one)) for one in signs]
    return Sequence("list", tuple(item for item in items if item)) if all(items) else None


def _read_ratio(text: str) -> Value | None:
    if half := re.fullmatch(r"(\d{1,2})(?: ?: ?([0-5]\d))? ?([ap])\.? ?m\.?", text, re.IGNORECASE):
        text = f"{int(half[1]) % 12 + (12 if half[3] in 'pP' else 0)}:{half[2] or '00'}"
    pieces = [piece.strip() for piece in text.split(":")]
    terms = [read_scalar(piece) for piece in pieces]
    if len(terms) < 2 or not all(terms):
        return None
    return ratio_of([term for term in terms if term], text)
