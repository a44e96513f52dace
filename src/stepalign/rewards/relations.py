"""Reading of equations and inequalities: a named value, an interval, or a relation that is not solved."""

import re
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

from stepalign.rewards.latex import read_scalar
from stepalign.rewards.notation import compact, split
from stepalign.rewards.scalars import Scalar, as_expression, free_symbols
from stepalign.rewards.values import Named, RealSet, Relation, Value, Words, mentions, relation, same

RELATION = re.compile(
    r"\\(?:le|ge|ne|in|approx|equiv|to|rightarrow|implies|Rightarrow|subset\w*|notin)(?![a-zA-Z])|[=<>]"
)
_NAME = re.compile(
    r"(?:m ?)?(?:\\angle ?|\\triangle ?|\\(?:overline|overrightarrow|vec|hat|bar|widehat) ?)?"
    r"\{?\\?[a-zA-Z]+'*\}?(?:\^ ?(?:\{ ?-1 ?\}|\\cdot))?(?: ?\((?:[^()=]|\([^()=]*\))*\))?"
    r"|\([a-z] ?\\circ ?[a-z]\) ?\([^()=]*\)|\\# ?[A-Z]"
)
_PROBABILITY = re.compile(r"(?:\\?Pr|P) ?\(.*\)")
_SOLVED = re.compile(r"\\(?:sqrt|ln|log|exp|frac|pm|int|sum|lim)(?![a-zA-Z])|\|")
_COMPUTED = re.compile(r"\\(?:cdot|frac|sqrt|pi|binom|ln|log|sin|cos|tan)(?![a-zA-Z])")


def read_relation(text: str, read: Callable[[str], Value]) -> Value | None:
    """Read an equation or inequality, its sides with `read`; None if the text is none."""
    sides = split(text, RELATION)
    if len(sides) < 2 or not all(sides):
        return None
    marks = _marks(text, sides)
    if set(marks) <= {"=", "\\approx"}:
        return _equation(text, sides, read)
    if marks == ["\\in"] and _is_name(sides[0]):
        return Named(_name(sides[0]), read(sides[1]))
    if set(marks) <= {"<", ">", "\\le", "\\ge"} or marks == ["\\ne"]:
        return _inequality(text, sides, marks)
    return Words(text)


def _marks(text: str, sides: list[str]) -> list[str]:
    marks, position = [], 0
    for left, right in pairwise(sides):
        begin = text.index(left, position) + len(left)
        position = text.index(right, begin + 1)
        marks.append(text[begin:position].strip())
    return marks


def _equation(text: str, sides: list[str], read: Callable[[str], Value]) -> Value:
    *names, last = sides
    if len(sides) == 2 and not _is_name(names[0]) and _is_name(last) and re.fullmatch(r"\W*\d[^a-zA-Z]*", names[0]):
        names, last = [last], names[0]
    is_named, value = _is_name(names[0]), read(last)
    is_true = all(_is_long(side) or _agree(read(side), value, may_vary=is_named) for side in names[is_named:])
    exact = read(names[-1]) if is_true and "\\approx" in text else value
    if isinstance(exact, Scalar) and isinstance(value, Scalar) and not mentions(exact):
        value = exact if exact is value else replace(exact, rounded=value)
    if is_named and is_true and (len(names) == 1 or not mentions(value)):
        whole = (
            relation("=", read_scalar(names[0]), read_scalar(last)) if mentions(value) or len(names[0]) > 1 else None
        )
        return Named(_name(names[0]), value, whole)
    if is_true and not any(re.search("[a-zA-Z]", _COMPUTED.sub("", side)) for side in names):
        return value  # a computation with its result
    return (len(sides) == 2 and relation("=", read_scalar(sides[0]), read_scalar(last))) or Relation(compact(text))


def _is_long(text: str) -> bool:
    """Return whether a computation has more than two numbers. Such a one is not checked."""
    return len(re.findall(r"\d+", text)) > 2 and not re.search("[a-zA-Z]", _COMPUTED.sub("", text))


def _agree(side: Value, result: Value, *, may_vary: bool) -> bool:
    """Return whether a computation has its result, perhaps rounded; with variables where it may have them."""
    if (may_vary and mentions(side)) or same(side, result):
        return True
    if not isinstance(side, Scalar) or not isinstance(result, Scalar) or mentions(side) or mentions(result):
        return False
    from sympy import Rational

    distance = abs(as_expression(side.value) - as_expression(result.value)).evalf(30)
    return bool(distance.is_Float and distance < Rational(1, 10**result.places)) if result.places else distance == 0


def _is_name(text: str) -> bool:
    """Return whether the left side of an equation names a quantity: `x`, `f(2)`, `AB`, `a + b`, `\\sin A`, `(a, b)`."""
    bare = re.sub(
        r"^\|([A-W]|[A-Z]{2,}|[a-z] ?[-+] ?[a-z])\|$|^\[([A-Z]{3,})\]$",
        r"\1\2",
        re.sub(r"_ ?(?:\{[^{}]*\}|\w)", "", text.strip()),
    )
    bare = re.sub(r"\\frac ?\{([a-zA-Z]+)\}\{([a-zA-Z]+)\}", r"\1/\2", bare)
    if _SOLVED.search(bare) and not _PROBABILITY.fullmatch(bare):
        return False
    if _NAME.fullmatch(bare) or re.fullmatch(r"[a-zA-Z]+(?: [a-zA-Z]+)+", bare):
        return not re.search(r"\b(?:not|isn't|never|[iI]f|when|suppose|[Ll]et|assume|wrong|incorrect|false)\b", bare)
    if re.fullmatch(r"\\(?:sin|cos|tan|cot|sec|csc|arg|det|deg|angle) ?(?:\(?\\?[a-zA-Z]+\)?|[A-Z]+)", bare):
        return True
    if re.fullmatch(r"\((?: ?\\?[a-zA-Z]+'? ?,?)+\)", bare):
        return True
    several = ":" in bare or len(set(re.findall(r"[a-zA-Z](?: ?_ ?(?:\{[^{}]*\}|\w))?", text))) > 1
    return (
        several
        and bare[:1] not in "-+"
        and not re.search(r"\d", bare)
        and bool(re.fullmatch(r"(?:[a-zA-Z]|\\[a-z]+(?![a-zA-Z])|[-+/: ()]|\\cdot)+", bare))
    )


def _name(text: str) -> str:
    return compact(re.sub(r"\\(?:overline|overrightarrow|vec|hat|bar) ?", "", text)).replace("{", "").replace("}", "")


def _inequality(text: str, sides: list[str], marks: list[str]) -> Value:
    """Return an interval of one variable, or a relation."""
    from sympy import EmptySet, Intersection, Interval, Poly, oo
    from sympy.polys.polyerrors import BasePolynomialError

    values = [read_scalar(side) for side in sides]
    symbols = {symbol for value in values if value for symbol in free_symbols(value.value)}
    parts, relations = [], []
    for (left, right), mark in zip(pairwise(values), marks, strict=True):
        if left is None or right is None:
            return Relation(compact(text))
        low, high = (right, left) if mark in (">", "\\ge") else (left, right)
        is_open = mark in "<>"
        relations.append(relation("\\ne" if mark == "\\ne" else "<" if is_open else "\\le", low, high))
        try:
            slope, constant = Poly(as_expression(low.value) - as_expression(high.value), *symbols).all_coeffs()
            if len(symbols) != 1 or not (slope.is_real and constant.is_extended_real):
                raise ValueError("no interval")
        except (BasePolynomialError, ValueError):
            continue
        bound = -constant / slope
        if mark == "\\ne":
            parts.append(Interval(-oo, oo) - {bound})
        else:
            parts.append(
                Interval(-oo, bound, right_open=is_open) if slope > 0 else Interval(bound, oo, left_open=is_open)
            )
    if len(parts) == len(marks) and (points := Intersection(*parts)) is not EmptySet:
        return Named(str(*symbols), RealSet(points))
    if len(relations) == 1 and relations[0]:
        return relations[0]
    return Relation(compact(text))
