"""A response as sections: what came before step 1, the steps, and the final answer.

The solver's format (arXiv 2606.11173, Appendix B) is Markdown: steps under `### Step N: title`, usually set
apart by `---`, and an end under `### Final Answer:` that holds `\\boxed{…}`. `parse` also reads what real
models write in its place: any heading level, other punctuation after the number, bold (`**Step 1:** …`) or
bare (`Step 1: …`) headings. Only the most explicit style of a response (Markdown before bold before bare)
makes sections, so that a plan listed as `Step 1: …` or a recapitulation inside a step does not tear it apart.

Sections tile the text: joined they are the text, character for character. A section runs from its heading to
the next one, so a `---` belongs to the section that it closes, and `Trace.before` with a corrected step after
it reads like the original. Headings inside closed code fences are text, and so is everything up to the
`</think>` of a thinking model, which counts as text before step 1.

Left out: headings in other words or languages, and sub-steps (`Step 2.1`), which stay inside their step.
"""

import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Literal

from stepalign.records import Rollout

NO_STEPS = "no steps"
MISNUMBERED = "step numbers not 1..N"
NO_ANSWER = "no final answer section"
SEVERAL_ANSWERS = "several final answer sections"
STEP_AFTER_ANSWER = "a step after the final answer"
NO_BOX = "no boxed answer in the final section"
OTHER_STYLE = "headings in another style"


@dataclass(frozen=True)
class Section:
    """A piece of a response, its heading included."""

    kind: Literal["preamble", "step", "answer"]
    number: int | None
    """The number that a step's heading gives; None where it gives none."""
    title: str
    """What else stands on the heading's line."""
    start: int
    end: int
    """The characters `[start, end)` of the text."""


@dataclass(frozen=True)
class Trace:
    """A parsed response."""

    text: str
    sections: tuple[Section, ...]
    """All of the text, in order. Empty for an empty text."""
    faults: tuple[str, ...]
    """Every way in which the response departs from the solver's format, in names that can be counted."""

    @cached_property
    def steps(self) -> tuple[Section, ...]:
        """The steps, in the order of the text, whatever their numbers."""
        return tuple(section for section in self.sections if section.kind == "step")

    @cached_property
    def answer_section(self) -> Section | None:
        """The final-answer section, the last one where there are several."""
        return next((section for section in reversed(self.sections) if section.kind == "answer"), None)

    @property
    def formatted(self) -> bool:
        """Whether the response keeps the solver's format: the definition behind format accuracy.

        It does when it has no fault, which asks for all of: at least one step; steps numbered 1, 2, …, N in
        this order by their headings; exactly one final-answer section, after every step; at least one
        complete `\\boxed{…}` inside that section; and Markdown headings for these sections (of any level,
        with any punctuation after the number or none). Text before step 1, sub-headings and `---` are free.
        """
        return not self.faults

    def section(self, k: int) -> Section:
        """Section `k` as critiques count: the steps in order from 1, then the final answer as one more step.

        Raises:
            IndexError: where the trace has no such section.
        """
        counted = self.steps if self.answer_section is None else (*self.steps, self.answer_section)
        if not 1 <= k <= len(counted):
            raise IndexError(f"section {k} of a trace with {len(counted)} (counted from 1, the final answer included)")
        return counted[k - 1]

    def before(self, k: int) -> str:
        """The text before section `k`: what a critique whose first wrong step is `k` quotes verbatim.

        The preamble is included, and so is a `---` between section `k` and the one before it.
        """
        return self.text[: self.section(k).start]

    def content(self, section: Section) -> str:
        """A section's text, heading included."""
        return self.text[section.start : section.end]


@lru_cache(maxsize=256)  # a rollout's text is read by one stage after the other
def parse(text: str) -> Trace:
    """Read a response's sections. Any text has some; time is linear in its length."""
    begin = end_of_thinking(text)
    fences = _fences(text, begin)
    by_style = [
        [match for match in style.finditer(text, begin) if not _within(match.start(), fences)] for style in _STYLES
    ]
    steps = _most_explicit([[match for match in matches if not match["answer"]] for matches in by_style])
    answers = _most_explicit([[match for match in matches if match["answer"]] for matches in by_style])
    headings = sorted([*steps, *answers], key=lambda match: match.start())

    starts = [match.start() for match in headings]
    ends = [*starts, len(text)]
    sections = [Section("preamble", None, "", 0, ends[0])] if ends[0] else []
    for match, start, end in zip(headings, starts, ends[1:], strict=True):
        kind: Literal["step", "answer"] = "answer" if match["answer"] else "step"
        number = int(match["number"]) if match["number"] else None
        sections.append(Section(kind, number, match["title"].strip(" \t\r").rstrip("#* \t"), start, end))
    markdown = all(match.re is _STYLES[0] for match in headings)
    return Trace(text, tuple(sections), tuple(_faults(text, sections, markdown)))


def end_of_thinking(text: str) -> int:
    """Where the response begins after its `</think>`: 0 without one, the text's end where none came."""
    end = text.find(_THINK_END)
    if end >= 0:
        return end + len(_THINK_END)
    return len(text) if text.startswith("<think>") else 0


def token_span(rollout: Rollout, start: int, end: int) -> tuple[int, int]:
    """The half-open range of completion tokens whose text overlaps the characters `[start, end)`.

    A token that reaches over a boundary is in the spans of both sides. Tokens that only begin a character (a
    part of its UTF-8 bytes) start where it starts and come with it. A final EOS has no text: no span has it.

    Raises:
        ValueError: where `[start, end)` is not a range of the rollout's text.
    """
    if not 0 <= start <= end <= len(rollout.text):
        raise ValueError(f"characters [{start}, {end}) of a text with {len(rollout.text)}")
    starts = rollout.token_starts
    first = bisect_left(starts, start)
    if start == end:
        return first, first
    text_goes_on_at = starts[first] if first < len(starts) else len(rollout.text)
    if first > 0 and text_goes_on_at > start:
        first -= 1
    return first, bisect_left(starts, end)


def boxed(text: str) -> tuple[str, ...]:
    """The contents of every `\\boxed{…}` whose braces balance, in order; of nested ones the outermost.

    An escaped brace (`\\{`) does not count, an unclosed box is none. Linear in the text's length.
    """
    open_braces: list[tuple[int, int] | None] = []
    boxes: list[tuple[int, int, int]] = []
    for match in _BRACE.finditer(text):
        token = match.group()
        if token == "}":
            opened = open_braces.pop() if open_braces else None
            if opened is not None:
                while boxes and boxes[-1][0] > opened[0]:
                    boxes.pop()
                boxes.append((*opened, match.start()))
        elif token == "{":
            open_braces.append(None)
        elif token.endswith("{") and len(token) > 2:
            open_braces.append((match.start(), match.end()))
    return tuple(text[start:end] for _, start, end in boxes)


# ── reading ────────────────────────────────────────────────────────────────────────────────────────────────

# Repetitions that could meet themselves again are bounded: a megabyte of spaces or asterisks stays linear.
_NAME = (
    r"(?:(?P<answer>Final[ \t]{1,3}Answer)(?!\w)"
    r"|Step(?:[ \t]{0,3}(?P<number>[0-9]{1,9})(?!\w|\.[0-9])|(?=[ \t\r]{0,3}(?::|$))))"
)
_TITLE = r"[ \t]{0,3}\*{0,3}[ \t]{0,3}[:.)–—-]?\*{0,3}(?P<title>[^\n]*)"
_STYLES = tuple(
    re.compile(rf"^ {{0,3}}{opening}{_NAME}{following}{_TITLE}", re.MULTILINE | re.IGNORECASE)
    for opening, following in (
        (r"#{1,6}[ \t]{0,3}\*{0,3}[ \t]{0,3}", ""),
        (r"\*{2,3}", r"(?=[ \t]{0,3}(?:[:.)–—-]|\*\*[ \t\r]{0,3}(?:[:.–—-]|$)))"),
        ("", r"(?=[ \t]{0,3}:)"),
    )
)
"""Markdown, bold and bare headings: the more explicit first."""

_FENCE = re.compile(r"^ {0,3}(`{3,}|~{3,})([^\n]*)", re.MULTILINE)
_BRACE = re.compile(r"\\{1,2}boxed\s*\{|\\.|[{}]", re.DOTALL)
_THINK_END = "</think>"


def _most_explicit(by_style: list[list[re.Match[str]]]) -> list[re.Match[str]]:
    return next((matches for matches in by_style if matches), [])


def _fences(text: str, begin: int) -> list[tuple[int, int]]:
    """The spans of closed code fences. One that never closes is likelier stray: it hides nothing."""
    spans: list[tuple[int, int]] = []
    opened: re.Match[str] | None = None
    for match in _FENCE.finditer(text, begin):
        mark, info = match.groups()
        if opened is None:
            if "`" not in info or mark[0] == "~":
                opened = match
        elif mark[0] == opened[1][0] and len(mark) >= len(opened[1]) and not info.strip():
            spans.append((opened.start(), match.end()))
            opened = None
    return spans


def _within(position: int, spans: list[tuple[int, int]]) -> bool:
    nearest = bisect_right(spans, position, key=lambda span: span[0]) - 1
    return nearest >= 0 and position < spans[nearest][1]


def _faults(text: str, sections: list[Section], markdown: bool) -> Iterator[str]:
    steps = [section for section in sections if section.kind == "step"]
    answers = [section for section in sections if section.kind == "answer"]
    if not steps:
        yield NO_STEPS
    elif [step.number for step in steps] != list(range(1, len(steps) + 1)):
        yield MISNUMBERED
    if not answers:
        yield NO_ANSWER
    else:
        if len(answers) > 1:
            yield SEVERAL_ANSWERS
        if steps and steps[-1].start > answers[0].start:
            yield STEP_AFTER_ANSWER
        if not boxed(text[answers[-1].start : answers[-1].end]):
            yield NO_BOX
    if not markdown:
        yield OTHER_STYLE
