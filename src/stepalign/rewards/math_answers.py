"""Mathematical answers: extraction from a response, equality, and a canonical form. One call, one process.

The answer is the last `\\boxed{…}` of a response, if it stands in the format's final section (`trace`). Elsewhere
a boxed answer counts only if it is the only one, or equal to all others; two different ones are `ambiguous`, which
is wrong. Plain text is no answer, and neither is a box inside `<think>`.

Equality is math-verify's (sympy beneath it), which can hang or fill the memory on a few characters:
`rewards.math` calls `judge` in processes that it can kill. Left out: answers in prose, partial credit.
"""

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Literal

from stepalign.trace import StepFormat, boxed

Outcome = Literal["correct", "wrong", "missing", "ambiguous", "timeout", "error"]


def final_answers(text: str, response_start: int | None = None) -> tuple[str, ...]:
    """Extract a response's answers: none, one, or several that count only if all are equal.

    `response_start` is the character after the thought (`Rollout.response_start`).
    """
    steps = StepFormat()
    return steps.final_answers(steps.parse(text, response_start))


def judge(reference: str, answers: Sequence[str]) -> tuple[Outcome, str]:
    """Compare a response's answers with the reference. The last one counts if it is equal to the others.

    Returns:
        The outcome, and the answer in a canonical form that equal answers share. A correct answer has the
        reference's form.
    """
    *others, answer = answers
    if not all(_equal(answer, other) for other in others):
        return "ambiguous", ""
    canonical = _canonical(reference)
    if _equal(reference, answer):
        return "correct", canonical
    own = _canonical(answer)
    return "wrong", own if own != canonical else _plain(answer)


def _equal(reference: str, answer: str) -> bool:
    """Compare as strings, then by math-verify. Words only as strings, because math-verify multiplies letters."""
    plain = _plain(reference), _plain(answer)
    if plain[0] == plain[1]:
        return True
    if all(map(_is_words, plain)):
        return False
    gold, value = _value(reference), _value(answer)
    if gold is None or value is None:
        return False

    from math_verify import verify

    return bool(verify(gold, value, timeout_seconds=None))


def _canonical(answer: str) -> str:
    """Return a string that equal answers share: the evaluated value as sympy writes it, or else the plain text."""
    plain, value = _plain(answer), _value(answer)
    if value is None or _is_words(plain):
        return plain

    from sympy import Eq, Float, Rational  # type: ignore[import-untyped]

    try:
        value = value.doit()
        if isinstance(value, Eq) and value.lhs.is_Symbol:
            value = value.rhs
        return str(value.xreplace({number: Rational(str(number)) for number in value.atoms(Float)}))
    except Exception:  # sympy raises anything here, a number of too many digits among it; the text will do
        return plain


@lru_cache(maxsize=1024)
def _value(answer: str) -> Any:
    """Return the sympy value of an answer; None where math-verify reads none."""
    from math_verify import LatexExtractionConfig, parse

    boxed_only = [LatexExtractionConfig(boxed_match_priority=0)]
    # In the box that math-verify looks for first, plain answers like 1/2 and 10% are read as LaTeX is.
    values = parse(rf"\boxed{{{_clean(answer)}}}", boxed_only, fallback_mode="no_fallback", parsing_timeout=None)
    return values[0] if values else None


_SPACE = re.compile(r"(?<!\\)\\[,;:! ]|~|\s+")
_THOUSANDS = re.compile(r"(?<=\d) +(?=\d{3}(?![\d/]))")
_MIXED = re.compile(r"(?<![\d.])(\d+) +(\d+)/(\d+)(?![\d.])")
_TEXT = re.compile(r"\\(?:text(?:bf|it|rm|normal)?|math(?:rm|bf|it|sf)|mbox|operatorname|underline) *\{([^{}]*)\}")
_WORDS = re.compile(r"[^\W\d_]+(?:[ '’,-]+[^\W\d_]+)*")
_WORD = re.compile(r"[^\W\d_]{4}")


def _clean(answer: str) -> str:
    """Remove delimiters, LaTeX's spaces, and spaces or a `\\,` between thousands."""
    answer = (boxed(answer) or (answer,))[-1].replace(r"\$", "")
    answer = _THOUSANDS.sub("", _SPACE.sub(" ", answer))
    answer = _MIXED.sub(r"\1\\frac{\2}{\3}", answer)  # math-verify reads 3 1/2 as (3 + 1)/2
    return _bare(_bare(answer).removeprefix(r"\(").removesuffix(r"\)"))


def _plain(answer: str) -> str:
    """Remove text commands; lower the case of words, and drop the spaces of anything else."""
    plain, substitutions = _clean(answer), 1
    while substitutions:
        plain, substitutions = _TEXT.subn(r"\1", plain)
    plain = _bare(plain)
    return plain.casefold() if _is_words(plain) else plain.replace(" ", "")


def _bare(answer: str) -> str:
    return answer.lstrip("$* ").rstrip("$*. ")


def _is_words(plain: str) -> bool:
    return bool(_WORDS.fullmatch(plain) and _WORD.search(plain))
