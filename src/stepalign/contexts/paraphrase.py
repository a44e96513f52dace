"""Paraphrase of a solution by rule, with the same numbers and equations.

The context `paraphrased` shows a solver its correct steps without its own tokens, to separate how much of a teacher's
approval is due to their content and how much to copying (arXiv 2606.11173, Section 4.3). Headings are renamed,
operators and equals signs are spelled out, and common words of written solutions are replaced. The same text always
has the same paraphrase. Nothing is computed, so the content stays, if not the style.

Left out: another order of the clauses, and formulas that are not plain arithmetic. A model would paraphrase better, but
it could also repair or break what it repeats.
"""

import re

from stepalign.trace import parse

_OPERATORS = {
    "+": "plus", "-": "minus", "−": "minus", "–": "minus", "*": "times", "×": "times", "x": "times",
    r"\times": "times", r"\cdot": "times", "/": "divided by", "÷": "divided by", r"\div": "divided by",
    "=": "makes", ">": "is above", "<": "is below",
}  # fmt: skip
_OPERATOR = re.compile(r"(?<=[\d)%}])[ \t]*(\\times|\\cdot|\\div|[-+−–*×÷/=<>]|x)[ \t]*(?=[$(\\]{0,2}\d|[$(])")

_WORDS = {
    "so": "therefore", "thus": "hence", "therefore": "so", "then": "after that", "because": "as", "since": "because",
    "and": "as well as", "but": "yet", "also": "moreover", "each": "every", "every": "each", "all": "the whole of",
    "total": "sum", "altogether": "in all", "remaining": "left over", "left": "remaining", "per": "for every",
    "has": "has got", "had": "had got", "have": "have got", "needs": "requires", "need": "require",
    "must": "has to", "buys": "purchases", "bought": "purchased", "buy": "purchase", "gets": "receives",
    "got": "received", "get": "receive", "gives": "hands over", "gave": "handed over", "spends": "pays out",
    "spent": "paid out", "spend": "pay out", "costs": "is priced at", "cost": "price", "uses": "makes use of",
    "used": "taken", "earns": "takes in", "earned": "taken in",
    "find": "work out", "calculate": "work out", "determine": "settle", "add": "put together",
    "subtract": "take away", "multiply": "scale", "divide": "split", "number": "count", "amount": "quantity",
    "we": "one", "will": "is going to", "would": "should", "still": "even now", "only": "just", "now": "at this point",
    "next": "following this", "first": "initial", "finally": "in the end", "with": "along with", "if": "given that",
    "when": "once",
}  # fmt: skip
_WORD = re.compile(r"(?<![\\\w{])(" + "|".join(sorted(_WORDS, key=len, reverse=True)) + r")(?![\w}])", re.IGNORECASE)


def paraphrase(text: str) -> str:
    """Paraphrase a solution, or the beginning of one."""
    trace = parse(text)
    pieces = []
    for section in trace.sections:
        content = trace.content(section)
        if section.kind == "preamble":
            pieces.append(_replace_words(content))
            continue
        body = content.partition("\n")[2]
        number = "At last" if section.kind == "answer" else f"Part {trace.steps.index(section) + 1}"
        title = f", on {_replace_words(section.title)}" if section.title else ""
        pieces.append(f"{number}{title}:\n{_replace_words(body)}")
    return "".join(pieces)


def _replace_words(text: str) -> str:
    def other_word(match: re.Match[str]) -> str:
        other = _WORDS[match[0].lower()]
        return other.capitalize() if match[0][0].isupper() else other

    return _OPERATOR.sub(lambda match: f" {_OPERATORS[match[1]]} ", _WORD.sub(other_word, text))
