"""A solution as a person reads it: headings, rules, bold, and mathematics as MathML, in a tree of known elements.

A tree is a text, or `[element, attributes, …children]`; `html/text.js` builds it without ever parsing HTML.
Mathematics is what stands between `$…$`, `$$…$$`, `\\(…\\)` and `\\[…\\]`, and a bare `\\boxed{…}`. A `$` opens
only before a sign that is no space and closes only after one, within its line and not before a digit, so that "$5
and $6" stays money; with spaces inside, what stands there must look like a formula. latex2mathml converts; what it
cannot read stays as it was written, in code.

Left out: the rest of Markdown. The tokens are the truth, this is an aid beside them.
"""

import re
from collections.abc import Iterator
from typing import Any
from xml.etree.ElementTree import Element

from latex2mathml.converter import convert_to_element

from stepalign.trace import boxed

Tree = str | list[Any]

_MATHML = (
    "math maction menclose mfrac mi mmultiscripts mn mo mover mpadded mphantom mprescripts mroot mrow ms mspace msqrt "
    "mstyle msub msubsup msup mtable mtd mtext mtr munder munderover"
)
_ATTRIBUTES = (
    "accent accentunder class columnalign depth display displaystyle fence form height largeop linethickness lspace "
    "mathvariant maxsize minsize movablelimits notation rowspacing rspace scriptlevel separator stretchy symmetric "
    "voffset width"
)
MATHML = frozenset(_MATHML.split())
ELEMENTS = MATHML | {"div", "h4", "hr", "strong", "code"}
ATTRIBUTES = frozenset(_ATTRIBUTES.split())
"""What an element of a tree may carry: neither style nor href nor anything that acts."""

_LONGEST = 4_000
"""Characters of one formula. What is longer, or nested deeper than Python likes, is shown as it was written."""

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
_ENTITY = re.compile(r"&#x([0-9A-Fa-f]{1,6});")


def read(text: str) -> list[Tree]:
    """A text as blocks."""
    blocks: list[Tree] = []
    paragraph: list[str] = []

    def close() -> None:
        content = "\n".join(paragraph).strip("\n")
        if content:
            blocks.append(["div", {"class": "paragraph"}, *_inline(content)])
        paragraph.clear()

    in_display = False
    for line in text.split("\n"):
        match = None if in_display else _LINE.fullmatch(line)
        if match:
            close()
            blocks.append(["hr", {}] if match["rule"] else ["h4", {}, *_inline(match["title"])])
        elif line.strip() or in_display:
            in_display ^= line.count("$$") % 2 == 1
            paragraph.append(line)
        else:
            close()
    close()
    return blocks


def formula(latex: str, *, display: bool) -> Tree | None:
    """A formula as MathML; None where it cannot be read."""
    if len(latex) > _LONGEST:
        return None
    try:
        made = convert_to_element(latex, display="block" if display else "inline")
    except Exception:  # the library has an error class for some faults, and others pass through as they are
        return None
    tree = _tree(made)
    return None if "\\" in "".join(_texts(tree)) else tree  # an unknown command comes back as its name


def _inline(text: str) -> list[Tree]:
    parts: list[Tree] = []
    end = 0
    for match in _MATH.finditer(text):
        if match.start() < end:  # inside a box that was read as a whole
            continue
        stop, display = match.end(), bool(match["display"] or match["bracket"])
        if match["bold"] is not None:
            made: Tree = ["strong", {}, *_inline(match["bold"])]
        else:
            if match["boxed"]:
                content = next(iter(boxed(text[match.start() : match.start() + _LONGEST])), None)
                if content is None:
                    continue
                stop = text.index(content, match.end()) + len(content) + 1
                latex = text[match.start() : stop]
            else:
                latex = next(match[name] for name in ("display", "bracket", "paren", "inline", "spaced") if match[name])
            made = formula(latex.strip(), display=display) or ["code", {}, latex if match["boxed"] else match[0]]
        before = text[end : match.start()]
        if display:  # it stands on a line of its own anyway
            before = before.removesuffix("\n")
            stop += text.startswith("\n", stop)
        parts += [before, made]
        end = stop
    return [part for part in [*parts, text[end:]] if part]


def _tree(found: Element) -> Tree:
    tag = found.tag.rpartition("}")[2]
    children: list[Tree] = [_unescaped(found.text)] if found.text else []
    children += [_tree(child) for child in found]
    kept = {name: str(value) for name, value in found.attrib.items() if name in ATTRIBUTES}
    return [tag if tag in MATHML else "mrow", kept, *children]


def _unescaped(text: str) -> str:
    """latex2mathml writes some signs as character references, which its own serializer would leave alone."""
    return _ENTITY.sub(lambda match: chr(int(match[1], 16)) if int(match[1], 16) < 0x110000 else match[0], text)


def _texts(tree: Tree) -> Iterator[str]:
    if isinstance(tree, str):
        yield tree
        return
    for child in tree[2:]:
        yield from _texts(child)
