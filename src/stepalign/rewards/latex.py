"""Reading of one value: literal numbers here, other LaTeX by latex2sympy, which refuses what it cannot read to the end.

Decimals become fractions before sympy sees them. Words, marks of doubt, or two numbers side by side are no value.
"""

import re
from dataclasses import replace
from fractions import Fraction
from functools import lru_cache
from typing import Any

from stepalign.rewards.scalars import Scalar, exact, free_symbols
from stepalign.rewards.units import LARGE_NUMBERS, Unit, read_unit

_MAX_EXPONENT = 4000
_NUMBER = re.compile(
    r"(?P<sign>[+-]?) ?"
    r"(?:(?P<grouped>\d{1,3}(?:(?P<mark>,,?| |')\d{3})(?:(?P=mark)\d{3})*|\d{1,2}(?:,\d\d)+,\d{3})|(?P<plain>\d*))"
    r"(?:\.(?P<decimals>\d+(?: \d{3})*|(?<=\d\.)))?(?: ?[eE](?P<exponent>[+-]?\d+))?"
)
_EUROPEAN = re.compile(
    r"([+-]?)(\d{1,3}(?:\.\d{3}){2,}|\d{1,3}(?: \d{3})+(?=,)|\d{1,3}(?:\.\d{3})+(?=,)|\d+(?=,,))(?:,,?(\d+))?"
)
_BASE = re.compile(
    r"\(?(?P<digits>(?![A-Z]\b|[A-Z]_)[0-9A-Z]+)\)? ?"
    r"(?:_ ?\{?[ (]*(?:base )?(?P<base>\d+|[a-z]+)[ )]*\}?| \(?(?:in )?base (?P<word>\d+|[a-z]+)\)?)"
)
_BASE_NAMES = "two three four five six seven eight nine ten eleven twelve"
_BASES = {name: base for base, name in enumerate(_BASE_NAMES.split(), 2)}
_REPEATING = re.compile(
    r"(?<![\d.])(?P<whole>\d*)\.(?P<fixed>\d*)"
    r"(?:\\(?:overline|bar|dot) ?(?:\{(?P<line>\d+)\}|(?P<digit>\d))(?P<more>\d*\\dot ?\{?\d\}?)?"
    r"|\((?P<paren>\d+)\)|(?P<block>\d{1,6}?)(?P=block){2,} ?(?:\\[lc]?dots|\.\.\.))"
)
_TAIL = re.compile(
    r"(?P<head>.*?[\d)}]|.*\\pi)(?P<gap> ?)"
    r"(?P<unit>(?![eE][+-]?\d)(?:\^\\circ ?[CF]?(?![a-zA-Z])|[^\W\d_]|€|£)[^=<>]*)",
    re.DOTALL,
)
_MONEY = {
    **dict.fromkeys(("\\$", "US\\$", "USD "), "dollar"),
    **dict.fromkeys(("€", "EUR "), "euro"),
    **dict.fromkeys(("₹", "Rs. ", "Rs "), "rupee"),
    **{"£": "£", "GBP ": "£", "¥": "yen"},
}
_LARGE = re.compile(rf"(?P<head>.*?[\d)}}]) ?(?P<word>{'|'.join(LARGE_NUMBERS)})s?(?P<unit> .*)?")
_SIGN = re.compile(rf"-?({'|'.join(map(re.escape, _MONEY))})")
_AMOUNT = re.compile(rf"^[^a-z]*\d(?: (?:{'|'.join(LARGE_NUMBERS)}))?|^[^ ]+")
_UNIT_FRACTION = re.compile(r"(?<=[\d}]) ?\\frac ?\{ ?([a-zA-Z]+(?: [a-zA-Z]+)*) ?\}\{ ?([a-zA-Z](?:[^{}]|\{\d\})*)\}$")
_TRIGONOMETRIC = re.compile(r"\\(?:sin|cos|tan|cot|sec|csc)(?![a-zA-Z])")
_COMPOUND = re.compile(r"(\d[\d.,]* ?[a-z]+\.?)(?:,? and|,)? (\d.*)")
_ARGUMENTS = [
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"_ ?(\w)(?!\w)", r"_{\1}"),
        (r"\\frac ?(\w|\\[a-z]+)", r"\\frac{\1}"),
        (r"\\frac(\{(?:[^{}]|\{[^{}]*\})*\}) ?(\w|\\[a-z]+(?![a-z{]))", r"\\frac\1{\2}"),
        (r"\\sqrt ?\(([^()]*)\)", r"\\sqrt{\1}"),
        (r"\\sqrt ?(\[\d+\])? ?(\d+|[a-z](?![a-z])|\\pi)", r"\\sqrt\1{\2}"),
        (r"\\sqrt(\[\d*[13579]\]) ?\{ ?- ?(\d+|\\frac\{\d+\}\{\d+\})\}", r"(-\\sqrt\1{\2})"),
        (r"\\binom ?(\d|[a-z]) ?(\d|[a-z])", r"\\binom{\1}{\2}"),
        (r"\\log(?![a-zA-Z_ ]* ?_)", r"\\ln"),
    )
]
"""Braces around the arguments of commands. A logarithm without a base is natural."""
_LATEX: list[tuple[re.Pattern[str], Any]] = [
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"\^ ?\(([^()]*)\)", r"^{\1}"),
        (r"\^ ?(-?\d*\.?\d+|-[a-z])", r"^{\1}"),
        (r"(?<![\d.,}])(\d+) ?\\frac\{(\d+)\}\{(\d+)\}", r"(\1+\\frac{\2}{\3})"),
        (r"(?<![\d.,/^{}]) *(?<![\d.,/^{}])\b(\d+) (\d+)/(\d+)(?![\d.])", r"(\1+\\frac{\2}{\3})"),
        (r"(\d*)\.(\d+)", lambda m: rf"\frac{{{int(m[1] + m[2])}}}{{1{'0' * len(m[2])}}}"),
        (r"(?<=\)) ?(?=[(\d])|(?<=\d) ?(?=\()", r"\\cdot "),
        (r"(\d)i\b", r"\1 i"),
        (r"\^\\circ", ""),
    )
]  # fmt: skip
_UNREADABLE = re.compile(
    r"\d{4}-\d\d-\d\d|\b\d\d?/\d\d?/\d{4}\b|\d \d|\d ?\)? ?_|['?:;,=<>]|!!|\\%"
    r"|\\(?!(?:frac|over|begin|end|sqrt|binom|cdot|infty|circ|exp|ln|log|lg|(?:arc)?(?:sin|cos|tan|cot|sec|csc)h?|[lr](?:floor|ceil)"
    r"|vec|hat|mathbb|mathcal|[aA]lpha|[bB]eta|[gG]amma|[dD]elta|(?:var)?epsilon|[zZ]eta|[eE]ta|(?:var)?theta|Theta|iota"
    r"|[kK]appa|[lL]ambda|[mM]u|[nN]u|[xX]i|[pP]i|[rR]ho|[sS]igma|[tT]au|[uU]psilon|(?:var)?phi|Phi|[cC]hi|[pP]si|[oO]mega)"
    r"(?![a-zA-Z]))[a-zA-Z]+"
    r"|(?<![\\a-zA-Z{_])(?:[a-zA-Z]{4,}|and|not|nor)|(?:^| )(?![xyz]+\b)[a-zA-Z]{2,3}(?= |$)"
)
_COMPLEX_J = re.compile(r"[-+\d. ]*\d ?j")


@lru_cache(maxsize=4096)
def read_scalar(text: str) -> Scalar | None:
    """Read cleaned text as one value; None if it is none."""
    text = text.strip()
    if (number := _number(text)) is not None:
        return number
    if sign := _SIGN.match(text):
        text = _AMOUNT.sub(rf"\g<0> {_MONEY[sign[1]]} ", text.replace(sign[1], "", 1), count=1).strip()
    text = _UNIT_FRACTION.sub(r" \1/\2", re.sub(r"(?<=\d) ?\\Omega$", " ohm", text))
    for reader in (_percent, _large, _compound, _amount):
        if (scalar := reader(text)) is not None:
            return scalar
    value = _expression(text)
    return None if value is None else Scalar(value)


def _percent(text: str) -> Scalar | None:
    inner = read_scalar(text.removesuffix("\\%")) if text.endswith("\\%") else None
    return None if inner is None or inner.unit or inner.percent else replace(inner, percent=True)


def _large(text: str) -> Scalar | None:
    """Read `2.5 million`, perhaps with a unit."""
    match = _LARGE.fullmatch(text)
    head = read_scalar(match["head"]) if match else None
    if match is None or head is None or head.unit or not isinstance(head.value, Fraction):
        return None
    return read_scalar(f"{head.value * LARGE_NUMBERS[match['word']]}{match['unit'] or ''}")


def _compound(text: str) -> Scalar | None:
    """Read `5 feet 6 inches` as a sum."""
    match = _COMPOUND.fullmatch(text)
    parts = [read_scalar(part) for part in match.groups()] if match else []
    units = [part.unit for part in parts if part and part.unit and isinstance(part.value, Fraction)]
    if len(units) < 2 or units[0].powers != units[1].powers or units[0].factor <= units[1].factor:
        return None
    amount = sum(part.value * part.unit.factor for part in parts if part and part.unit)
    return Scalar(amount, unit=Unit(Fraction(1), units[0].powers))


def _amount(text: str) -> Scalar | None:
    """Read a number with a unit. An angle in a function is none."""
    tail = None if _TRIGONOMETRIC.search(text) else _TAIL.fullmatch(text)
    unit = read_unit(tail["unit"], close=not tail["gap"]) if tail else None
    head = read_scalar(tail["head"]) if tail and unit else None
    if unit is None or head is None or head.unit or free_symbols(head.value):
        return None
    return replace(head, unit=unit) if unit.powers else Scalar(head.value * unit.factor)


def _number(text: str) -> Scalar | None:
    if (european := _EUROPEAN.fullmatch(text)) and not _NUMBER.fullmatch(text):
        text = f"{european[1]}{re.sub('[. ]', '', european[2])}.{european[3] or ''}"
    match = _NUMBER.fullmatch(text)
    if match is None or not (match["grouped"] or match["plain"] or match["decimals"]):
        return None
    whole = re.sub(r"\D", "", match["grouped"] or match["plain"])
    decimals, exponent = (match["decimals"] or "").replace(" ", ""), int((match["exponent"] or "0")[:9])
    if abs(exponent) > _MAX_EXPONENT or (match["exponent"] and not whole + decimals):
        return None
    value = Fraction(int(whole + decimals or 0), 10 ** len(decimals)) * Fraction(10) ** exponent
    is_decimal = match["decimals"] is not None or match["exponent"] is not None
    places = len(decimals) - exponent if is_decimal else None
    return Scalar(-value if match["sign"] == "-" else value, places, len((whole + decimals).lstrip("0")))


def _repeating(match: re.Match[str]) -> str:
    fixed, block = match["fixed"], match["line"] or match["paren"] or match["block"] or match["digit"]
    if match["more"]:
        block += re.sub(r"\D", "", match["more"])
    value = Fraction(
        int(match["whole"] + fixed + block) - int(f"0{match['whole']}{fixed}"),
        (10 ** len(block) - 1) * 10 ** len(fixed),
    )
    return rf"\frac{{{value.numerator}}}{{{value.denominator}}}"


@lru_cache(maxsize=4096)
def _expression(text: str) -> Any:
    """Return a fraction, a sympy expression, or None."""
    if re.fullmatch(r"[a-zA-Z]", text) and text not in "ie":
        from sympy import Symbol

        return Symbol(text)
    if (base := _BASE.fullmatch(text)) and (found := base["base"] or base["word"]):
        return _in_base(base["digits"], _BASES.get(found) or (int(found) if found.isdigit() else 0))
    if simple := re.fullmatch(r"(-?) ?(?:\\frac ?\{(-?\d+)\}\{(\d+)\}|(-?\d+) ?/ ?(\d+))", text):
        above, below = int(simple[2] or simple[4]), int(simple[3] or simple[5])
        return Fraction(-above if simple[1] else above, below) if below else None
    text = _REPEATING.sub(_repeating, text)
    if _COMPLEX_J.fullmatch(text):
        text = text.replace("j", "i")
    text = re.sub(r"(?<=\d)(?:,,|,(?=[^(]*$))(?=\d{3}(?!\d))", "", text)
    text = re.sub(r"(\d+(?:\.\d+)?)[eE]([+-]?\d{1,3})(?![\d.])", r"\1\\cdot 10^{\2}", text)
    for pattern, braced in _ARGUMENTS:
        text = pattern.sub(braced, text)
    if _UNREADABLE.search(re.sub(r"(\d) (?=\d+/\d)", r"\1+", text)) or re.fullmatch(
        r"(?![xyz]+$)[a-zA-Z]{2,}|\W*", text
    ):
        return None
    if _TRIGONOMETRIC.search(text):
        text = re.sub(r"(\d*\.?\d+|[a-zA-Z]) ?\^\\circ", r"(\1\\cdot \\frac{\\pi}{180})", text)
    for pattern, replacement in _LATEX:
        text = pattern.sub(replacement, text)
    return _evaluated(text)


def _in_base(digits: str, base: int) -> Fraction | None:
    try:
        return Fraction(int(digits, base)) if 2 <= base <= 36 else None
    except ValueError:
        return None


def _evaluated(latex: str) -> Any:
    from latex2sympy2_extended import latex2sympy
    from latex2sympy2_extended.latex2sympy2 import ConversionConfig
    from sympy import Expr, I, Symbol, binomial, nan, zoo
    from sympy.core.function import AppliedUndef

    options = ConversionConfig(interpret_as_mixed_fractions=False, lowercase_symbols=False)
    try:
        value = latex2sympy(latex, normalization_config=None, conversion_config=options)
    except MemoryError:
        raise
    except Exception:  # the parser raises anything
        return None
    if not isinstance(value, Expr) or value.is_Matrix:
        return None
    value = value.xreplace({Symbol("i"): I}).doit()
    value = value.xreplace({call: Symbol(str(call)) for call in value.atoms(AppliedUndef)})
    if value.has(binomial):
        value = value.expand(func=True)
    if value.has(nan, zoo):
        return None
    return exact(value)
