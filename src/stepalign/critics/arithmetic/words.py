"""Rewrite equations in words as equations in figures: `thirteen plus seven is twenty-one` as `13 + 7 = 21`.

For the checks, which ask whether a text holds a false equation. The program critic repairs a solver's own text, so it
reads figures alone. Left out: fractions in words and pronouns, because a wrong guess would refuse a faultless critique.
"""

import re

_SMALL = {
    "zero": 0, "one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9,
    "ten": 10, "eleven": 11, "twelve": 12, "thirteen": 13, "fourteen": 14, "fifteen": 15, "sixteen": 16,
    "seventeen": 17, "eighteen": 18, "nineteen": 19,
}  # fmt: skip
_TENS = {
    "twenty": 20, "thirty": 30, "forty": 40, "fifty": 50, "sixty": 60, "seventy": 70, "eighty": 80, "ninety": 90,
}  # fmt: skip
_SCALES = {"hundred": 100, "thousand": 1_000, "million": 1_000_000, "billion": 1_000_000_000}
_FIRST = "|".join([*_SMALL, *_TENS])
_ANY = "|".join([*_SMALL, *_TENS, *_SCALES])
_JOIN = r"(?:-|[ \t]{1,3}(?:(?:(?<=hundred )|(?<=thousand )|(?<=million ))and[ \t]{1,3})?)"
_CARDINAL = re.compile(rf"\b(?:{_FIRST})(?:{_JOIN}(?:{_ANY})){{0,12}}\b", re.IGNORECASE)

_UNITS = (
    r"(?:[ \t]{1,3}(?!(?:and|to|by|from|with|of|is|are|gives?|makes?|equals?|leaves|yields?|times|plus|minus)\b)"
    r"[a-z]{2,20}){0,2}"
)
_NUMBER = rf"[$€£]?\d(?:[\d,]{{0,24}}\d)?(?:\.\d{{1,20}})?%?{_UNITS}"
_LAST = rf"{_NUMBER}(?![ \t]{{0,3}}(?:[-+*/×÷,]|and\b|times\b|plus\b|minus\b|\.?\d))"
_PHRASES = [
    (re.compile(pattern.replace("A", rf"(?P<a>{_NUMBER})").replace("B", rf"(?P<b>{_LAST})"), re.IGNORECASE), formula)
    for pattern, formula in (
        (r"\bsum of A and B", r"(\g<a> + \g<b>)"),
        (r"\bproduct of A and B", r"(\g<a> * \g<b>)"),
        (r"\b(?:difference (?:of|between)) A and B", r"(\g<a> - \g<b>)"),
        (r"\bquotient of A and B", r"(\g<a> / \g<b>)"),
        (r"\b(?:add|adding) A (?:and|to|with) B", r"(\g<a> + \g<b>)"),
        (r"\b(?:subtract|subtracting|take|taking) A (?:away )?from B", r"(\g<b> - \g<a>)"),
        (r"\b(?:multiply|multiplying) A (?:and|by|with) B", r"(\g<a> * \g<b>)"),
        (r"\b(?:divide|dividing) A by B", r"(\g<a> / \g<b>)"),
        (r"\bA and B(?=[ \t](?:together )?makes?\b)", r"(\g<a> + \g<b>)"),
        (r"(?<![\w.,+*/×÷-] )A (?:subtracted|taken away) from B", r"(\g<b> - \g<a>)"),
    )
]
_EMPHASIS = re.compile(r"(?<![\w*])([*_]{1,3})([$€£]?\d[\d,]{0,24}(?:\.\d{1,20})?%?)\1(?![\w*])")
_FACTORS = {
    r"\bhalf of": "1/2 of", r"\b(?:a|one|1) third of": "1/3 of", r"\b(?:a|one|1) (?:quarter|fourth) of": "1/4 of",
    r"\btwice": "2 *", r"\b(?:double|doubling)": "2 *", r"\b(?:triple|tripling)": "3 *",
}  # fmt: skip
_SHARES = [
    (
        re.compile(pattern + r"(?=[ \t]{1,3}[$€£]?\d)(?![ \t]{1,3}[$€£]?[\d,.]{1,24}[ \t]{0,3}[-+−–])", re.IGNORECASE),
        sign,
    )
    for pattern, sign in _FACTORS.items()
]
_POWERS = [
    (re.compile(rf"(?<=\d)[ \t]{{1,3}}{word}\b", re.IGNORECASE), power)
    for word, power in (("squared", "^2"), ("cubed", "^3"))
]
_ARROW = re.compile(
    r"[ \t]{0,3}(?:→|⇒|=>|->|\\(?:to|rightarrow|Rightarrow|implies)(?![A-Za-z]))"
    r"(?=[ \t]{0,3}[$€£]?\d[\d,.]{0,30}(?:[ \t][a-z]{2,20}){0,3}[$.;)\]]{0,3}[ \t]{0,3}(?:\n|\Z))"
)
_ADDED = re.compile(r"(?<=\d)[ \t]{1,3}(?:added to|and another|together with)[ \t]{1,3}(?=[$\d])", re.IGNORECASE)

_RESULT = r"[ \t]{1,3}(?:(?:exactly|equal to|a total of|a sum of)[ \t]{1,3})?(?=[$€£(\[\\-]{0,3}\d)"
_PLAIN = r"(?!-?[$€£]?\d[\d,.]{0,24}[ \t]{0,3}[-+*/×÷−–=])"
_EQUALS = re.compile(
    rf"(?:,?[ \t](?:which|that|this|it)\b)?[ \t]{{1,3}}(?:equals?|is equal to|are equal to){_RESULT}", re.IGNORECASE
)
_IS = re.compile(
    r"(?<=[\d)\]}%])(?P<unit>(?:[ \t]{1,3}(?!is\b|are\b|and\b|was\b|were\b|which\b|that\b|of\b)[a-z]{2,20}){0,2})"
    r"[$,]{0,2}(?:[ \t]{1,3}(?:which|that|this))?[ \t]{1,3}"
    r"(?:(?P<be>is|are|was|were)|gives?|makes?|yields?|totals?|leaves|comes to|adds up to|results in|amounts to)"
    + _RESULT
    + _PLAIN,
    re.IGNORECASE,
)
_AMOUNT = r"[$€£]?\d[\d,.]{0,24}"
_REVERSED = re.compile(
    rf"(?:\A|(?<=[.;:\n]))(?P<intro>[ \t]{{0,3}}(?:(?:so|thus|hence|therefore),?[ \t])?{_AMOUNT})[ \t]{{1,3}}"
    r"(?:is equal to|is|equals?)"
    rf"(?=[ \t]{{1,3}}{_AMOUNT}[ \t]{{0,3}}(?:[-+*/×÷−–]|plus|minus|times)[ \t]{{0,3}}{_AMOUNT}(?:\n|\Z))",
    re.IGNORECASE,
)
_SIGN = re.compile(
    r"[\d)%][^\d]{0,40}?(?:[-+*×÷−–^²³]|[ \t]/|\b(?:plus|minus|times|by|x)\b|(?:%|\bpercent) of\b)", re.IGNORECASE
)
_INTRO = """
so thus then hence therefore now and because since that we get have find the total sum result answer value of adding
together step first next finally here this means know see note indeed but correct corrected actually a in all add
compute text is
"""
_INTRO_WORDS = frozenset(_INTRO.split())
"""Words before a computation that is the whole subject of its clause."""
_CLAUSE = re.compile(r"[;:\n=≈]|[.,!?](?!\d)")
_DIGIT = re.compile(r"[\d(]")
_MAX_CLAUSE = 200


def in_figures(text: str) -> str:
    """Return a text with numbers, operations and equality in figures and signs, where words state them."""
    text = _CARDINAL.sub(_cardinal, _EMPHASIS.sub(r"\2", text))
    for pattern, sign in (*_SHARES, *_POWERS):
        text = pattern.sub(sign, text)
    for pattern, formula in _PHRASES:
        text = pattern.sub(formula, text)
    text = _EQUALS.sub(_equality, _REVERSED.sub(r"\g<intro> =", _ADDED.sub(" + ", text)))
    return _IS.sub(_equality, _ARROW.sub(_equality, text))


_OPERATOR = (
    "(?:plus|minus|times|divided|multiplied|by|equals?|is|are|and|makes?|gives?|leaves|added|subtracted|from|to|of"
    "|adding|subtracting|over|twice|double|triple|total)"
)
_BEFORE = re.compile(rf"(?:[-+*/×÷−–=≈(]|\b{_OPERATOR})[ \t]{{0,3}}\Z", re.IGNORECASE)
_AFTER = re.compile(
    rf"[ \t]{{0,3}}[-+*/×÷−–=≈)%]|[ \t]{{1,3}}(?:[a-z]{{2,20}}[ \t]{{1,3}}){{0,2}}?{_OPERATOR}\b", re.IGNORECASE
)


def _cardinal(match: re.Match[str]) -> str:
    """Return a number in figures; words that are no one number, or no operand, stay."""
    text = match.string
    if not (_BEFORE.search(text, max(match.start() - 16, 0), match.start()) or _AFTER.match(text, match.end())):
        return match[0]
    total = part = 0
    last = ""
    for word in re.split(r"[\s-]+(?:and\s+)?", match[0].lower()):
        if word in _SMALL:
            if last in _SMALL or (last in _TENS and not 0 < _SMALL[word] < 10):
                return match[0]
            part += _SMALL[word]
        elif word in _TENS:
            if last in _SMALL or last in _TENS:
                return match[0]
            part += _TENS[word]
        elif word == "hundred":
            if part > 20:
                return match[0]
            part = max(part, 1) * 100
        else:
            total, part = total + max(part, 1) * _SCALES[word], 0
        last = word
    return str(total + part)


def _equality(match: re.Match[str]) -> str:
    """Return an equals sign for a verb or an arrow whose subject is a computation without a result."""
    groups = match.groupdict("")
    unit, text = groups.get("unit", ""), match.string
    if unit and not groups["be"]:
        return match[0]  # `2 + 3 eggs make 24 cakes`
    before = text[max(match.start() - _MAX_CLAUSE, 0) : match.start()]
    breaks = list(_CLAUSE.finditer(before))
    clause = before[breaks[-1].end() :] if breaks else before
    has_result = bool(breaks) and breaks[-1][0] in "=≈"
    number = _DIGIT.search(clause)
    if has_result or number is None or not _SIGN.search(clause, number.start()):
        return match[0]
    intro = re.findall(r"[a-z]+", clause[: number.start()].lower())
    return f"{unit} = " if match.re is _EQUALS or _INTRO_WORDS.issuperset(intro) else match[0]
