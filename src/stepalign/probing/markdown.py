"""Headings, rules, bold, mathematics and fenced code of a solution as a tree of known elements.

A tree is a text, or `[element, attributes, …children]`; `html/page.js` builds it without parsing HTML. Mathematics is
the text between `$…$`, `$$…$$`, `\\(…\\)` and `\\[…\\]`, and a bare `\\boxed{…}`. A `$` opens only before a character
that is no space, and closes only after one, within its line and not before a digit, so that "$5 and $6" stays money.
With spaces inside, the content must look like a formula. latex2mathml converts; what it cannot read stays as written,
in code. A critique's parts divide a program, so a rule interrupts a fenced block until the next rule. Left out: the
rest of Markdown, because the tokens are the truth and this view is an aid.
"""

import re
from html import unescape
from typing import Any
from xml.etree.ElementTree import Element

from latex2mathml.converter import convert_to_element

from stepalign.trace import boxed

Tree = str | list[Any]

_MATHML = """
    math maction menclose mfrac mi mmultiscripts mn mo mover mpadded mphantom mprescripts mroot mrow ms mspace msqrt
    mstyle msub msubsup msup mtable mtd mtext mtr munder munderover
"""
_ATTRIBUTES = """
    accent accentunder class columnalign depth display displaystyle fence form height largeop linethickness lspace
    mathvariant maxsize minsize movablelimits notation rowspacing rspace scriptlevel separator stretchy symmetric
    voffset width
"""
MATHML = frozenset(_MATHML.split())
ELEMENTS = MATHML | {"div", "h4", "hr", "strong", "code", "pre"}
ATTRIBUTES = frozenset(_ATTRIBUTES.split())
"""Allowed attributes: neither style nor href nor anything that acts."""

_MAX_FORMULA = 4_000
"""Characters of one formula. A longer one stays as written."""
_MAX_PARAGRAPH = 20_000
"""Characters of one paragraph. A longer one stays as written, because each of its signs may begin a formula."""

_LINE = re.compile(r"(?P<heading>#{1,6})[ \t]+(?P<title>\S.*)|(?P<rule>-{3,}|\*{3,}|_{3,})[ \t]*")
_MATH = re.compile(
    r"\$\$(?P<display>[^$]{1,4000}?)\$\$"
    r"|\\\[(?P<bracket>.{1,4000}?)\\\]"
    r"|\\\((?P<paren>.{1,4000}?)\\\)"
    r"|(?<![\\$])\$(?=[^\s$])(?P<inline>(?:[^$\n\\]|\\.){1,1000}?)(?<=\S)\$(?![\d$])"
    r"|(?<![\\$])\$[ \t](?P<spaced>(?=[^$\n]*[\\^_=])[^$\n]{1,1000}?)[ \t]\$(?![\d$])"
    r"|(?P<boxed>\\boxed\s*\{)"
    r"|\*\*(?=\S)(?P<bold>[^*\n]{1,1000}?)(?<=\S)\*\*",
    re.DOTALL,
)


_FENCE = re.compile(r"[ \t]*(`{3,}|~{3,})(?P<info>[^`\r]*)\r?")


def parse(text: str) -> list[Tree]:
    """Parse a text into blocks."""
    blocks: list[Tree] = []
    paragraph: list[str] = []
    fence, interrupted = "", False

    def close() -> None:
        if content := "\n".join(paragraph).strip("\n"):
            is_code = fence and not interrupted
            blocks.append(["pre", {}, content] if is_code else ["div", {"class": "paragraph"}, *_inline(content)])
        paragraph.clear()

    in_display = False
    for line in text.split("\n"):
        match = None if interrupted or in_display else _FENCE.fullmatch(line)
        if match and (not fence or (match[1].startswith(fence) and not match["info"].strip())):
            close()
            fence = "" if fence else match[1]
        elif fence and line.strip() == "---":
            close()
            blocks.append(["hr", {}])
            interrupted = not interrupted
        elif fence and not interrupted:
            paragraph.append(line)
        elif not in_display and (match := _LINE.fullmatch(line)):
            close()
            blocks.append(["hr", {}] if match["rule"] else ["h4", {}, *_inline(match["title"])])
        elif line.strip() or in_display:
            in_display ^= line.count("$$") % 2 == 1
            paragraph.append(line)
        else:
            close()
    close()
    return blocks


def _inline(text: str) -> list[Tree]:
    if len(text) > _MAX_PARAGRAPH:
        return [text]
    parts: list[Tree] = []
    end = 0
    for match in _MATH.finditer(text):
        if match.start() < end:  # inside a box that was read as a whole
            continue
        stop, display = match.end(), bool(match["display"] or match["bracket"])
        if match["bold"] is not None:
            node: Tree = ["strong", {}, *_inline(match["bold"])]
        elif match["boxed"]:
            content = next(iter(boxed(text[match.start() : match.start() + _MAX_FORMULA])), None)
            if content is None:
                continue
            stop = text.index(content, match.end()) + len(content) + 1
            node = _formula(text[match.start() : stop], display=False) or ["code", {}, text[match.start() : stop]]
        else:
            latex = next(match[name] for name in ("display", "bracket", "paren", "inline", "spaced") if match[name])
            node = _formula(latex.strip(), display=display) or ["code", {}, match[0]]
        before = text[end : match.start()]
        if display:  # a displayed formula has its own line without these breaks
            before = before.removesuffix("\n")
            stop += text.startswith("\n", stop)
        parts += [before, node]
        end = stop
    return [part for part in [*parts, text[end:]] if part]


def _formula(latex: str, *, display: bool) -> Tree | None:
    """Convert a formula to MathML; None where it cannot be read."""
    if len(latex) > _MAX_FORMULA:
        return None
    try:
        element = convert_to_element(latex, display="block" if display else "inline")
    except Exception:  # the library has an error class for some faults, and others pass through as they are
        return None
    if "\\" in unescape("".join(element.itertext())):  # an unknown command comes back as its name
        return None
    return _tree(element)


def _tree(element: Element) -> Tree:
    tag = element.tag.rpartition("}")[2]
    text = unescape(element.text or "")  # latex2mathml writes some signs as character references
    attributes = {name: str(value) for name, value in element.attrib.items() if name in ATTRIBUTES}
    return [tag if tag in MATHML else "mrow", attributes, *[text] * bool(text), *map(_tree, element)]
