"""One spelling for the many of an answer: characters, LaTeX's dressing, text commands, phrases around the answer.

`clean` changes no value. What remains are ASCII digits and operators, LaTeX commands with braced arguments, words, and
single spaces.
"""

import re
import unicodedata
from functools import lru_cache

from stepalign.trace import boxed

_CHARACTERS = str.maketrans(  # beside what NFKC maps to ASCII, or to one of these
    {
        **dict.fromkeys("‐‒–—―−➖", "-"),
        **dict.fromkeys("∗⋅·×✕⨯∙•", r"\cdot "),
        **dict.fromkeys("\u200b\u200c\u200d\u2060\ufeff\u00ad", ""),
        **dict.fromkeys("∅⌀", r"\emptyset "),
        **dict.fromkeys("’‘′ʼ", "'"),
        **dict.fromkeys("“”„«»✓✔✅☑", ""),
        "٫": ".",
        "÷": "/", "∕": "/", "∶": ":", "¢": " cents ", "√": r"\sqrt ", "∛": r"\sqrt[3] ", "∜": r"\sqrt[4] ",
         "π": r"\pi ", "∞": r"\infty ", "≤": r"\le ", "⩽": r"\le ", "≥": r"\ge ",
        "⩾": r"\ge ", "≠": r"\ne ", "≈": r"\approx ", "±": r"\pm ", "∓": r"\mp ", "∪": r"\cup ", "∩": r"\cap ",
        "∈": r"\in ", "ℝ": r"\mathbb{R} ", "ℤ": r"\mathbb{Z} ", "ℕ": r"\mathbb{N} ", "ℚ": r"\mathbb{Q} ",
        "ℂ": r"\mathbb{C} ", "°": r"^\circ ", "º": r"^\circ ", "˚": r"^\circ ",
        "θ": r"\theta ", "⟨": r"\langle ", "⟩": r"\rangle ", "‰": " permille", "、": ",",
    }
)  # fmt: skip

_REPLACEMENTS = [
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"(?s)\\\\(?=[a-zA-Z])(?!.*\\end\{)", r"\\"),  # a command written with two backslashes, not a row's end
        (r"</?(?:b|i|u|em|strong|span|p|br) ?/?>|\\math(?:ord|bin|rel|open|close|punct)(?![a-zA-Z])", ""),
        (r"\\(?:left|right|[bB]igg?[lrm]?|mathop|displaystyle|textstyle|limits)(?![a-zA-Z])\.?", ""),
        (r"\\lbrace(?![a-zA-Z])", r"\\{"),
        (r"\\rbrace(?![a-zA-Z])", r"\\}"),
        (r"\*\*([^*\d]+)\*\*", r"\1"),
        (r"^#+ ", ""),
        (
            r"\\(?:large|Large|LARGE|huge|Huge|small|normalsize|bf|it|rm|sf|tt|bfseries|checkmark|therefore)(?![a-zA-Z])",
            "",
        ),
        (r"\\(?:[hv]space\*?|phantom|(?:text)?color|colorbox|tag|fcolorbox *\{[^{}]*\}) *\{[^{}]*\}", ""),
        (r"\\!|\\(?:mathstrut|null|hfill|strut)(?![a-zA-Z])", ""),
        (r"(?<!\\)\\[,;:> ]|~|\\(?:quad|qquad|enspace|thinspace|space)(?![a-zA-Z])|\s+", " "),
        (r"\\(?:[dtcsx]|nice)frac(?![a-zA-Z])", r"\\frac"),
        (r"\\surd(?![a-zA-Z])", r"\\sqrt "),
        (r"\{?([^{}]*)\\choose(?![a-zA-Z])([^{}]*)\}?", r"\\binom{\1}{\2}"),
        (r"\\(?:mathbb|mathbf|mathds|Bbb) ?\{? ?R(?![a-zA-Z]) ?\}?|\\(?:R|reals|Reals)(?![a-zA-Z])", r"\\mathbb{R}"),
        (r"\\(?:dbinom|tbinom)(?![a-zA-Z])", r"\\binom"),
        (r"\\(?:leq|leqslant)(?![a-zA-Z])", r"\\le"),
        (r"\\(?:geq|geqslant)(?![a-zA-Z])", r"\\ge"),
        (r"\\neq(?![a-zA-Z])|\\not *=|!=", r"\\ne "),
        (r"<=", r"\\le "),
        (r">=", r"\\ge "),
        (r"==", "="),
        (r"\\lt(?![a-zA-Z])", "<"),
        (r"\\gt(?![a-zA-Z])", ">"),
        (r"\\(?:varnothing|O)(?![a-zA-Z])", r"\\emptyset"),
        (r"\\(?:simeq|cong|thickapprox)(?![a-zA-Z])", r"\\approx"),
        (r"\\(?:times|ast)(?![a-zA-Z])|(?<!\*)\*(?!\*)", r"\\cdot "),
        (r"\*\*", "^"),
        (r"\\div(?![a-zA-Z])", "/"),
        (r"\\(?:degree|degrees)(?![a-zA-Z])|\^ *\{ *\\circ *\}|\^ *\\circ", r"^\\circ "),
        (r"(?<=\d)\^ *(?:\{ *)?(?:o(?![a-zA-Z])|\\(?:text|mathrm) *\{ *(?:o|\\circ) *\})(?: *\})?", r"^\\circ "),
        (r"\\colon(?![a-zA-Z])", ":"),
        (r"\\langle(?![a-zA-Z])", "("),
        (r"\\rangle(?![a-zA-Z])", ")"),
        (r"(?<![a-z\\])\{ *([-+=<>:]) *\}", r"\1"),
        (r"(?<![a-z])\{ *([,.]) *\}", r"\1\1"),  # `{,}` separates thousands; doubled, a comma cannot be a list's
        (r"\\[lr]?vert(?![a-zA-Z])|\\mid(?![a-zA-Z])", "|"),
        (r"\\(?:imath|mathi)(?![a-zA-Z])", "i"),
        (r"\\infinity(?![a-zA-Z])|(?<![\\a-zA-Z])(?:infinity|inf)(?![a-zA-Z])", r"\\infty"),
        (r"(?<![\\a-zA-Z])pi(?![a-zA-Z])", r"\\pi "),
        (r"(?<![\\a-zA-Z])(sqrt|frac|sin|cos|tan|ln|log)(?=[({\\ ]*[\w({\\])(?![a-zA-Z])", r"\\\1"),
        (r"(?<![\\a-zA-Z])rac(?=\{)", r"\\frac"),  # `\f` of a JSON string
    )
]
_PERCENT = re.compile(r"\\?%|(?<![a-zA-Z])(?:percent|percentage|per cent|pct)(?![a-zA-Z])")
_TEXT = re.compile(
    r"\\(?:text(?:bf|it|rm|normal|sf|tt|up)?|math(?:rm|bf|it|sf|tt|normal)|mbox|hbox|operatorname\*?|underline|emph|ensuremath|bm"
    r"|boldsymbol|[fs]box|boxed) *\{((?:[^{}]|\{[^{}]*\})*)\}"
)
_OUTER = re.compile(
    r"\\\((.*)\\\)|\\\[(.*)\\\]|\${1,2}([^$]*)\${1,2}|\{(.*)\}|\*{1,3}([^*]*)\*{1,3}|`{1,3}([^`]*)`{1,3}"
    r"|__([^_]+)__|\"([^\"]*)\"|'([^']*)'",
    re.DOTALL,
)
_PHRASE = re.compile(
    r"(?:(?:so|thus|hence|therefore|then),? +)?(?:(?:the|my|our) +)?(?:(?:final|correct|required) +)?"
    r"(?:answer|ans|result|solution|(?:value|number|total)(?= is\b| *[:=]))\b(?: +is\b| +equals\b)? *(?:[:=] *)*"
    r"|(?:option|choice) +(?=\(?[A-Z]\b)|(?:(?:=|\\approx) *)+",
    re.IGNORECASE,
)


@lru_cache(maxsize=4096)
def clean(answer: str) -> str:
    """Return an answer without dressing, in the characters and commands that the reader of values knows."""
    answer = _bare((boxed(answer) or (answer,))[-1])
    answer = re.sub(r"[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿⁱ]+", r"^{\g<0>}", answer)
    answer = re.sub(r"[₀₁₂₃₄₅₆₇₈₉]+", r"_{\g<0>}", answer)
    answer = re.sub(r"(?<=\d) *(?=[¼-¾⅐-⅞])", " ", answer)
    answer = unicodedata.normalize("NFKC", answer.translate(_CHARACTERS)).translate(_CHARACTERS).replace("⁄", "/")
    answer = re.sub(r"(?![0-9])\d", lambda digit: str(unicodedata.digit(digit.group())), answer)
    for pattern, replacement in _REPLACEMENTS:
        answer = pattern.sub(replacement, answer)
    substitutions = 1
    while substitutions:
        answer, substitutions = _TEXT.subn(lambda text: f" {text[1]} " if len(text[1]) > 1 else text[1], answer)
    return _bare(re.sub(r" +", " ", _PERCENT.sub(r"\\% ", answer)))


def _bare(answer: str) -> str:
    """Remove delimiters around the whole answer, phrases before it, and marks after it."""
    before = None
    while answer != before:
        before = answer
        answer = re.sub(r"(?:[,;:。\s\\]|\\!|(?<!\.)\.)+$", "", answer.strip())
        if answer.endswith("\\") and before.rstrip().endswith(("\\,", "\\;", "\\:", "\\!")):
            answer = answer[:-1]
        if (outer := _OUTER.fullmatch(answer)) and is_one(inner := next(filter(None, outer.groups()), ""), _BRACE):
            answer = inner
        answer = answer[phrase.end() :] if (phrase := _PHRASE.match(answer)) and phrase.end() < len(answer) else answer
        answer = re.sub(r"^(-?(?:US ?)?)\$(?= ?\d[^$]*$)", r"\1\\$", answer)
        answer = re.sub(r"^\$(?=[^$]*$)|^([^$]*[^$\\])\$$", r"\1", answer)
    return answer


def words(text: str) -> str:
    """Return what remains of an answer in words: lower case, singular, without marks and spaces that say nothing."""
    if len(text) == 1:
        return text
    text = re.sub(r"(?<=[a-z])\.", "", text.casefold())
    text = re.sub(r"(?<=\d) +(?=[a-z])", "", text)
    text = re.sub(r"(?<=[a-z]{3})(?<!s)s\b", "", text)
    return re.sub(r"(?<=[^\W\d])[.!]+$", "", re.sub(r" *([^\w ]) *", r"\1", text).strip())


def plain(text: str) -> str:
    """Return a text as words or mathematics are compared before they are read."""
    return words(text) if re.fullmatch(r"[^\W\d_]+(?:[ '’,-]+[^\W\d_]+)*", text) else compact(text)


def compact(text: str) -> str:
    """Drop spaces, but for those that keep two numbers or two words apart."""
    text = re.sub(r"(?<!\d) +| +(?!\d)", lambda gap: " " if _between_letters(gap) else "", text)
    return re.sub(r"(?<!\\)\{(\w)\}(?!\w)", r"\1", text)


def _between_letters(gap: re.Match[str]) -> bool:
    around = gap.string[gap.start() - 1 : gap.start()] + gap.string[gap.end() : gap.end() + 1]
    return len(around) == 2 and around.isalnum()


_BRACKET = re.compile(r"(?P<opening>\\begin(?![a-zA-Z])|\\?\{|[(\[])|\\end(?![a-zA-Z])|\\?\}|[)\]]")
_BRACE = re.compile(r"(?<!\\)(?:(?P<opening>\{)|\})")


def split(text: str, separator: re.Pattern[str]) -> list[str]:
    """Split where no bracket is open. Brackets of half-open intervals close one another."""
    pieces, depth, begin, position = [], 0, 0, 0
    while position < len(text):
        if depth == 0 and (match := separator.match(text, position)) and match.end() > position:
            pieces.append(text[begin:position])
            begin = position = match.end()
        elif bracket := _BRACKET.match(text, position):
            depth += 1 if bracket["opening"] else -1
            position = bracket.end()
        else:
            position += 1
    return [piece.strip() for piece in (*pieces, text[begin:])]


def is_one(inner: str, brackets: re.Pattern[str] = _BRACKET) -> bool:
    """Return whether no bracket closes in `inner` that opened outside it."""
    depth = 0
    for bracket in brackets.finditer(inner):
        depth += 1 if bracket["opening"] else -1
        if depth < 0:
            return False
    return depth == 0
