"""Damage of a row's texts that its file format does not show, and thoughts in reference solutions.

JSON knows the escapes `\\b \\f \\n \\r \\t`. Where a writer did not escape the backslashes of LaTeX, a reader turns
`\\frac{1}{2}` into a form feed and `rac{1}{2}`, and `\\theta` into a tab and `heta`, without an error.

Left out: mending such texts, because a line break before `u` and `\\nu` cannot be told apart everywhere.
"""

import re

from stepalign.trace.thoughts import THOUGHT_MARKS

_REST = {
    "n": "abla atural cong earrow eq(?![.:]) equiv ewcommand ewline geq(?:slant)? gtr [Ll]eftarrow leq(?:slant)? "
    "obreak oindent olimits onumber orm(?:al\\w+)? ot otag otin prec(?:eq)? [Rr]ightarrow subseteq succ(?:eq)? "
    "supseteq warrow",
    "r": "angle ank brace brack ceil eal floor group ho ight ightarrow ightharpoonup m moustache oot [Vv]ert",
    "t": "anh au binom ext(?![.]) ext(?:bf|color|it|md|normal|rm|sc|sf|style|tt|up) frac heta herefore hick\\w* "
    "hinspace ilde imes iny riangle\\w* woheadrightarrow",
}
"""Ends of commands that are no word of a text, by the first letter; regular expressions."""
_WORDS = {"n": "e eg exists i less mid parallel sim u", "r": "ef times", "t": "ag an g he o op r t"}
"""Ends that may be a word or a variable: `\\ne`, `\\nu`, `\\to`."""

_CONTROL = {"n": "\n", "r": "\r(?!\n)", "t": "\t"}


def _pattern(rests: dict[str, str], before: str = "") -> re.Pattern[str]:
    parts = (f"{_CONTROL[letter]}(?:{'|'.join(rest.split())})" for letter, rest in rests.items())
    return re.compile(f"{before}(?:{'|'.join(parts)})(?![A-Za-z])")


_CERTAIN = re.compile(rf"[\x00\a\b\v](?=[A-Za-z{{])|\f(?=[a-z])|{_pattern(_REST).pattern}")
_LIKELY = _pattern(_WORDS)
_FORMULA = re.compile(r"(\$\$?)(?! )(.+?)(?<! )\1(?!\d)", re.DOTALL)
"""As Pandoc reads dollars, so that `$5 or less than $6` is none."""


def has_lost_backslash(statement: str, answer: str, solution: str) -> bool:
    """Detect LaTeX commands of a row that have become control characters.

    A line break or a tab before what may also be a word counts in the answer and within a formula, and only in a row
    that has no backslash at all.
    """
    texts = (statement, answer, solution)
    if any(_CERTAIN.search(text) for text in texts):
        return True
    if any("\\" in text for text in texts):
        return False
    formulas = (formula for text in texts for _, formula in _FORMULA.findall(text) if not _on_lines_of_its_own(formula))
    return any(_LIKELY.search(text) for text in (answer, *formulas))


def _on_lines_of_its_own(formula: str) -> bool:
    return formula.startswith("\n") and formula.endswith("\n")


def without_thought(solution: str) -> str | None:
    """Return a solution without its thoughts, or None if one of them never ends.

    A closing mark without an opening one ends a thought that the prompt had opened.
    """
    lowered = solution.lower()
    for opening, closing in THOUGHT_MARKS:
        if opening.lower() not in lowered and closing.lower() not in lowered:
            continue
        begin, end = re.escape(opening), re.escape(closing)
        solution = re.sub(f"{begin}.*?{end}", "", solution, flags=re.DOTALL | re.IGNORECASE)
        solution = re.split(end, solution, flags=re.IGNORECASE)[-1]
        if re.search(begin, solution, re.IGNORECASE):
            return None
    return solution
