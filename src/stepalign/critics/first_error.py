r"""The place of a rollout's first error, from the wrong step and the corrected one.

Both steps are read as tokens (numbers, operators, comparisons, variables, LaTeX commands, words), without heading,
markup, white space and case, and are aligned. The error begins at the first of these that exists:

1. the first number, operator, comparison or variable that the correction replaces, or the first term that it adds to
   a formula or removes from one;
2. the first number that is nowhere in the correction, where the correction has other numbers;
3. the first content word that the correction replaces, or else that is nowhere in it. Articles, pronouns, auxiliary
   verbs, prepositions and connectives are not content.

Where several numbers give way to fewer, the result of an equation that does not hold is taken, else the last ones.
Where none of these exists (the same claims in other connectives, no corrected step), the place is the whole step, and
`loss_span = "until_first_error"` ends with the end of that step.

Left out: meaning. A correction that takes another way (`100 - 3` for `85 + 12`) departs where that way does, and a
synonym is a departure where no claim differs.
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from os.path import commonprefix
from unicodedata import category

from stepalign.critics.arithmetic import equations
from stepalign.records import Critique
from stepalign.trace import Trace, parse

MAX_TOKENS = 400
"""Tokens of either step that are aligned, after the beginning that both share. They bound the time for any text."""


@dataclass(frozen=True)
class ErrorSpan:
    """The first error, in characters of the rollout's text. Steps count from 1, as in critiques."""

    step: int
    start: int
    end: int
    """`[start, end)` is the first wrong number, sign or word; the whole step where that is not known."""
    departure: int | None
    """The first wrong character (136 departs from 126 at its second digit); None where it is not known."""


def first_error_span(trace: Trace, critique: Critique) -> ErrorSpan | None:
    """Find where a solution first goes wrong; None where its critique finds no error, or only something missing."""
    sections = len(trace.steps) + (trace.answer_section is not None)
    if critique.first_error is None or critique.first_error > sections:
        return None
    section = trace.section(critique.first_error)
    wrong, corrected = trace.content(section), critique.corrected_step.strip()
    body, corrected_body = _heading_end(wrong), _heading_end(corrected)
    if not wrong[body:].strip() or not corrected[corrected_body:].strip():
        body = corrected_body = 0  # all that is claimed stands in the heading
    difference = _difference(list(_tokens(wrong[body:])), list(_tokens(corrected[corrected_body:])), wrong[body:])
    if difference is None:
        return ErrorSpan(critique.first_error, section.start, section.end, None)
    token, counterpart = difference
    start = section.start + body + token.start
    departure = min(start + len(commonprefix([token.text, counterpart])), section.end - 1)
    return ErrorSpan(critique.first_error, start, max(section.start + body + token.end, departure + 1), departure)


def _heading_end(step: str) -> int:
    """Return the place behind a step's heading; 0 without one."""
    kinds = [section.kind for section in parse(step, 0).sections]
    return len(step.partition("\n")[0]) if kinds and kinds[0] != "preamble" else 0


@dataclass(frozen=True)
class _Token:
    kind: str
    """`number`, `operator` (comparisons and LaTeX commands included), `variable` or `word`."""
    value: str
    """The form that is compared."""
    text: str
    start: int
    end: int
    joined: bool
    """True within one formula: no word, punctuation or line end stands before it."""


_TOKEN = re.compile(
    r"(?P<skip>\*{2,}|^[ \t]*[-*+][ \t]+|^[ \t]*-{3,}[ \t]*$|^[ \t]*\d+[.)][ \t]+|\\[^A-Za-z%])"
    r"|(?P<times>(?<=\d)x(?=[ ]?\d)|(?<=\d )x(?=[ ][$]?\d))"
    r"|(?P<number>\d+(?:(?:,|\{,\})\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+)"
    r"|\\(?P<command>[A-Za-z]+)"
    r"|(?P<word>[^\W\d_]+(?:['’-][^\W\d_]{2,})*)"
    r"|(?P<operator><=|>=|!=|[-+*/=<>^%×÷·−–≤≥≠≈±√])"
    r"|(?P<break>[.,;:?!\n])"
    r"|(?P<symbol>[^\x00-\x7f\w\s])",
    re.MULTILINE,
)
_OPERATORS = {
    "×": "*", "·": "*", "times": "*", "cdot": "*", "÷": "/", "div": "/", "divided": "/", "−": "-", "–": "-",
    "plus": "+", "minus": "-", "equals": "=", "equal": "=", "le": "<=", "leq": "<=", "≤": "<=", "ge": ">=", "geq": ">=",
    "≥": ">=", "ne": "!=", "neq": "!=", "≠": "!=", "lt": "<", "gt": ">", "approx": "≈", "pm": "±", "sqrt": "√",
    "percent": "%",
}  # fmt: skip
"""Operators and comparisons in one form, whatever sign, word or LaTeX command stands for them."""
_COMPARISONS = frozenset({"=", "<", ">", "<=", ">=", "!=", "≈"})
_NUMBERS = {"two": "2", "three": "3", "four": "4", "five": "5", "six": "6", "seven": "7", "eight": "8", "nine": "9"}
_WITHOUT_CONTENT = r"""
left right big bigl bigr quad qquad text textbf textit mathrm mathbf displaystyle boxed frac dfrac tfrac begin end
aligned align cases implies rightarrow to → ⇒ ⟹ ∴
a about above after again all also altogether am an and are as at be because been before being below both but by can
could did do does done each either finally find first following for from further get gets give gives giving go had has
have having he hence her here him his how i if in into is it its just last let let's make makes making may might much
must need needs next now obtain of on one ones only or our out over own per result results same say says see shall she
should since so some substitute such take takes than that the their them then there therefore these they this those
though thus together total under up us was we well were what when where which while who whose will with would yet you
your calculate compute determine combining answer yield yields lead leads know call step actually instead
"""
"""Layout commands of LaTeX; articles, pronouns, auxiliary verbs, connectives and what introduces a computation."""
_NO_CONTENT = frozenset(_WITHOUT_CONTENT.split())


def _tokens(text: str) -> Iterator[_Token]:
    joined = False
    for match in _TOKEN.finditer(text):
        kind, string = str(match.lastgroup), match[0]
        name = string.lstrip("\\").lower()
        if kind == "number":
            value = re.sub(r"[{},]", "", string)
            value = value.rstrip("0").rstrip(".") if "." in value else value
        elif kind == "times":
            kind, value = "operator", "*"
        elif kind == "operator" or name in _OPERATORS:
            kind, value = "operator", _OPERATORS.get(name, name)
        elif kind == "word" and name in _NUMBERS:
            kind, value = "number", _NUMBERS[name]
        elif kind in ("skip", "break") or name in _NO_CONTENT or (kind == "symbol" and category(string)[0] != "S"):
            joined = joined and kind in ("skip", "command")
            continue
        elif kind in ("command", "symbol"):
            kind, value = "operator", name
        elif len(name) == 1:
            kind, value = "variable", name
        else:
            value = re.sub(r"(?<=\w{3})(?:ing|ed|es|s)$", "", name)
        yield _Token(kind, value, string, match.start(), match.end(), joined and kind != "word")
        joined = kind != "word"


_Difference = tuple[_Token, str]
"""A token of the wrong step, and the text in its place in the correction."""


def _difference(wrong: Sequence[_Token], right: Sequence[_Token], text: str) -> _Difference | None:
    """Find the first difference between a wrong step's tokens and its correction's. `text` is the wrong step."""
    blocks = _unequal_blocks([token.value for token in wrong], [token.value for token in right])
    aligned = text[: max((wrong[j - 1].end for _, j, _, _ in blocks if j), default=0)]
    false = [side for _, side in equations.false_links(aligned)]
    results = {token.start for token in wrong if any(side.start <= token.start < side.end for side in false)}
    for i, j, k, m in blocks:
        has_words = _of_kind((*wrong[i:j], *right[k:m]), "word")
        kinds = ("number",) if has_words else ("number", "operator", "variable")
        changes = (_replaced(_of_kind(wrong[i:j], kind), _of_kind(right[k:m], kind), results) for kind in kinds)
        if claims := [change for change in changes if change]:
            return min(claims, key=lambda change: change[0].start)
        if k == m and _is_term(wrong, i, j, right):
            return wrong[i], ""
        if i == j and i > 0 and _is_term(right, k, m, wrong):
            return _behind(wrong[i - 1], text), ""
    words = (_replaced(_of_kind(wrong[i:j], "word"), right[k:m], results) for i, j, k, m in blocks)
    return _absent(wrong, right, "number", results) or next(filter(None, words), _absent(wrong, right, "word", results))


def _unequal_blocks(wrong: list[str], right: list[str]) -> list[tuple[int, int, int, int]]:
    """Align by the longest common subsequence; return blocks `wrong[i:j]`, `right[k:m]` between the matches."""
    shared = len(commonprefix([wrong, right]))
    rows, columns = wrong[shared : shared + MAX_TOKENS], right[shared : shared + MAX_TOKENS]
    # lengths[a][b]: of the longest common subsequence of rows[a:] and columns[b:]
    lengths = [[0] * (len(columns) + 1)]
    for row in reversed(rows):
        below, current = lengths[-1], [0] * (len(columns) + 1)
        for b in range(len(columns) - 1, -1, -1):
            current[b] = below[b + 1] + 1 if columns[b] == row else max(below[b], current[b + 1])
        lengths.append(current)
    lengths.reverse()
    matches, a, b = [(shared - 1, shared - 1)], 0, 0
    while a < len(rows) and b < len(columns):
        if rows[a] == columns[b]:
            matches.append((a + shared, b + shared))
            a, b = a + 1, b + 1
        elif lengths[a + 1][b] >= lengths[a][b + 1]:
            a += 1
        else:
            b += 1
    matches.append((len(rows) + shared, len(columns) + shared))
    blocks = ((a + 1, next_a, b + 1, next_b) for (a, b), (next_a, next_b) in pairwise(matches))
    return [(i, j, k, m) for i, j, k, m in blocks if i < j or k < m]


def _replaced(wrong: Sequence[_Token], right: Sequence[_Token], results: set[int]) -> _Difference | None:
    """Return the first of some tokens of one kind that others replace."""
    if not wrong or not right:
        return None
    if wrong[0].kind != "number":
        return wrong[0], ""
    token = wrong[max(len(wrong) - len(right), 0)]
    if len(wrong) > len(right):
        token = next((result for result in wrong if result.start in results), token)
    return token, max((other.text for other in right), key=lambda other: len(commonprefix([token.text, other])))


def _absent(wrong: Sequence[_Token], right: Sequence[_Token], kind: str, results: set[int]) -> _Difference | None:
    """Return the first token of a kind that the correction lacks, if it has others."""
    wrong, right = _of_kind(wrong, kind), _of_kind(right, kind)
    ours, theirs = ({token.value for token in tokens} for tokens in (wrong, right))
    lacking, new = [t for t in wrong if t.value not in theirs], [t for t in right if t.value not in ours]
    return _replaced(lacking, new, results)


def _is_term(tokens: Sequence[_Token], start: int, stop: int, others: Sequence[_Token]) -> bool:
    """Return whether tokens are a term of a formula that the other step lacks."""
    block = tokens[start:stop]
    behind = block[0].kind == "operator" and block[0].joined
    before = block[-1].kind == "operator" and stop < len(tokens) and tokens[stop].joined
    whole = all(token.joined for token in block[1:]) and _COMPARISONS.isdisjoint(token.value for token in block)
    ours, theirs = Counter(token.value for token in tokens), Counter(token.value for token in others)
    operands = [token.value for token in block if token.kind != "operator"]
    return whole and (behind or before) and any(ours[value] > theirs[value] for value in operands)


def _behind(token: _Token, text: str) -> _Token:
    """Return the character behind a token, where a term is missing."""
    start = token.end + len(text[token.end :]) - len(text[token.end :].lstrip(" \t$"))
    return _Token("gap", "", text[start : start + 1], start, start + 1, False)


def _of_kind(tokens: Sequence[_Token], kind: str) -> list[_Token]:
    return [token for token in tokens if token.kind == kind]
