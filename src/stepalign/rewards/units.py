"""Units: their spellings, and equal amounts in different ones.

A known unit is a factor and powers of base units; conversions are exact. Other words after a number (`eggs`, `dollars
per day`) are a unit by themselves. Left out: offsets (degrees Celsius are not kelvins).
"""

import re
from dataclasses import dataclass
from fractions import Fraction

_PREFIXED = """
m meter metre; g gram gramme; L l liter litre; J joule; W watt; Pa pascal; N newton; V volt; ohm Ω; Hz hertz; bit; byte
"""
_PREFIXES = {"k": "1000", "kilo": "1000", "c": "1/100", "centi": "1/100", "m": "1/1000", "milli": "1/1000", "d": "1/10"}
_OTHERS = """
s = 1 s: sec second; min = 60 s: minute; h = 3600 s: hr hour; day = 86400 s; week = 604800 s: wk; month = 1 month;
year = 12 month: yr; in = 254/10000 m: inch inche; ft = 3048/10000 m: feet foot; yd = 9144/10000 m: yard;
mi = 1609344/1000 m: mile; mph = 1609344/3600000 m/s; kph = 1000/3600 m/s: kmph kmh; lb = 45359237/100000 g: pound;
cc = 1/1000000 m^3; gal = 3785411784/1000000000000 m^3: gallon; qt = 946352946/1000000000000 m^3: quart;
pt = 473176473/1000000000000 m^3: pint; cup = 473176473/2000000000000 m^3;
oz = 28349523125/1000000000 g: ounce; t = 1000000 g: tonne; ha = 10000 m^2: hectare; acre = 40468564224/10000000 m^2;
mcm = 1/1000000 m: μm micron micrometer; nm = 1/1000000000 m: nanometer;
dollar = 1 dollar: usd buck; cent = 1/100 dollar;
euro = 1 euro: eur €; £ = 1 £: gbp; yuan = 1 yuan: rmb; rupee = 1 rupee: rs inr;
deg = 1 deg: degree; rad = 1 rad: radian; °C = 1 °C: celsius; °F = 1 °F: fahrenheit; K = 1 K: kelvin; mol = 1 mol: mole;
permille = 1/1000; person = 1 person: people; yen = 1 yen: jpy
"""


@dataclass(frozen=True)
class Unit:
    """A unit as a factor times powers of base units, or as words (factor 1)."""

    factor: Fraction
    powers: tuple[tuple[str, int], ...]

    def __str__(self) -> str:
        return " ".join(base if power == 1 else f"{base}^{power}" for base, power in self.powers)


def _table() -> dict[str, Unit]:
    table: dict[str, Unit] = {}
    for entry in _PREFIXED.split(";"):
        symbol, *names = entry.split()
        base = Unit(Fraction(1, 1000), (("m", 3),)) if symbol == "L" else Unit(Fraction(1), ((symbol, 1),))
        for name in (symbol, *names):
            table[name] = base
            for prefix, factor in _PREFIXES.items():
                if (len(prefix) == 1) == (len(name) <= 2):
                    table[prefix + name] = Unit(base.factor * Fraction(factor), base.powers)
    for entry in _OTHERS.split(";"):
        definition, _, synonyms = entry.partition(":")
        symbol, _, amount, *defined = definition.split()
        for name in (symbol, *synonyms.split()):
            table[name] = Unit(Fraction(amount), _powers(defined[0]) if defined else ())
    return table


def _powers(text: str) -> tuple[tuple[str, int], ...]:
    above, _, below = text.partition("/")
    base, _, power = above.partition("^")
    return ((base, int(power or 1)), *([(below, -1)] if below else []))


_UNITS = _table()
_TOKEN = re.compile(
    r"(?P<over>/|\bper\b)|(?P<name>\^\\circ ?[CF]?|[^\W\d_]+|£|€)\.?(?: ?\^? ?\{?(?P<power>-?\d)\}?(?!\d))?"
    r"|\\cdot|[ .*-]"
)
_DENYING = """
isnt are was were been not nor never none neither wrong incorrect false untrue right correct true maybe perhaps guess
think believe suppose unsure uncertain unknown about roughly around almost nearly circa least most than under over and
but when unless else except without with minus plus times squared cubed half double twice cannot impossible mod modulo
for where solution solutions root roots all any some every should would could might may must will does did fail fails
failed seem seems doubt doubtful base choose factorial todo remainder rem falsch nicht nein faux pas january february
march april june july august september october november december
"""
_NO_UNIT = frozenset(_DENYING.split())
"""Words that deny, hedge, compare or condition: what they follow is no bare amount. Neither are one or two letters that
are no unit, and words with an apostrophe."""
_POWER_BEHIND = re.compile(r"([a-z]{2,}) (square|cub)e?d\b")
_DENYING_FORM = re.compile(r"[^hkriun]ly$|[不非无未没否错]")
"""Adverbs, but not `daily`, `monthly`, `weekly`, `hourly`; and Chinese denials."""
_CONNECTING = frozenset({"of", "a", "an", "the", "each"})
LARGE_NUMBERS = {"dozen": 12, "hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}


def read_unit(text: str, *, close: bool) -> Unit | None:
    """Read the words after a number as a unit; None if they say something else.

    Args:
        text: words and marks, such as `km/h`, `m/s^{2}`, `square feet`, `eggs`.
        close: whether the number and a single letter stood together, as in `5m`, which is a product.
    """
    text = _POWER_BEHIND.sub(r"\2 \1", text)
    position, sign, factor = 0, 1, Fraction(1)
    powers: dict[str, int] = {}
    unknown = False
    squares = 1
    while position < len(text):
        token = _TOKEN.match(text, position)
        if token is None:
            return None
        position = token.end()
        if token["over"]:
            sign = -1
        if not (name := token["name"]):
            continue
        if name.casefold() in _NO_UNIT or _DENYING_FORM.search(name.casefold()):
            return None
        if name in _CONNECTING and text[position : position + 1] == " ":
            continue
        if name in ("square", "sq", "cubic", "cu", "cub"):
            squares = 2 if name.startswith("sq") else 3
            continue
        power = sign * int(token["power"] or 1) * squares
        squares = 1
        unit = _known(name)
        if unit is None and (len(name) < 3 or close) and name.isascii():
            return None
        unknown |= unit is None
        for base, exponent in (unit or Unit(Fraction(1), ((_singular(name), 1),))).powers:
            powers[base] = powers.get(base, 0) + exponent * power
        factor *= unit.factor**power if unit else 1
    if close and len(text.strip()) == 1 and text.strip().isascii():
        return None
    if not powers and factor == 1:
        return None
    ordered = powers.items() if unknown else sorted(powers.items())
    return Unit(factor, tuple((base, power) for base, power in ordered if power))


def _known(name: str) -> Unit | None:
    if name.startswith("^"):
        name = "°" + name[-1] if name[-1] in "CF" else "deg"
    lowered = name.casefold() if len(name) > 2 else name
    return _UNITS.get(name) or _UNITS.get(lowered) or _UNITS.get(lowered.removesuffix("s"))


def _singular(name: str) -> str:
    name = name.casefold()
    return name[:-1] if len(name) > 3 and name.endswith("s") and not name.endswith("ss") else name
