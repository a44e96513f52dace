"""The paper's format: numbered steps under headings, and a final answer section.

The format (arXiv 2606.11173, Appendix B) is Markdown: steps under `### Step N: title`, usually separated by `---`, and
an end under `### Final Answer:` with `\\boxed{…}`. `parse` also reads the variants of real models: any heading level,
other punctuation after the number, bold (`**Step 1:** …`) and bare (`Step 1: …`) headings. Only the most explicit style
of a response (Markdown before bold before bare) makes sections, so that a plan listed as `Step 1: …`, or a
recapitulation inside a step, does not split it.

A section runs from its heading to the next one, so a `---` belongs to the section before it. Headings inside closed
code fences are text. So is the thought of a thinking model, which is text before step 1.

Left out: headings in other words or languages, and sub-steps (`Step 2.1`), which stay inside their step.
"""

import re
from bisect import bisect_right
from collections.abc import Iterator
from functools import lru_cache
from typing import Literal

from stepalign.trace.base import Section, Trace, boxed, nonempty
from stepalign.trace.thoughts import answer_end
from stepalign.trace.thoughts import response_start as find_response_start

NO_STEPS = "no steps"
MISNUMBERED = "step numbers not 1..N"
NO_ANSWER = "no final answer section"
SEVERAL_ANSWERS = "several final answer sections"
STEP_AFTER_ANSWER = "a step after the final answer"
NO_BOX = "no boxed answer in the final section"
OTHER_STYLE = "headings in another style"


class StepFormat:
    """Steps under numbered headings.

    A response keeps the format if it has no fault: at least one step; steps numbered 1, 2, …, N in this order by their
    headings; exactly one final-answer section, after every step; at least one complete `\\boxed{…}` inside that
    section; and Markdown headings for these sections (of any level, with any punctuation after the number or none).
    Text before step 1, sub-headings and `---` are free.
    """

    def parse(self, text: str, response_start: int | None = None) -> Trace:
        """Read a response's sections."""
        return parse(text, response_start)

    def final_answers(self, trace: Trace, *, is_cut: bool = False) -> tuple[str, ...]:
        """Return the last box of the final section, or else all different boxes after the thought."""
        text = trace.text[: answer_end(trace.text, trace.response_start)]
        if (final := trace.answer_section) is not None:
            in_final_section = nonempty(boxed(text[final.start : final.end]))
            if in_final_section and not boxed(text[final.end :]):
                return in_final_section[-1:]
        return tuple(dict.fromkeys(nonempty(boxed(text[trace.response_start :]))))

    def write(self, solution: str, answer: str) -> str | None:
        """Write a solution in the step format (`write_steps`)."""
        return write_steps(solution, answer)


@lru_cache(maxsize=256)  # several stages read the same rollout's text
def parse(text: str, response_start: int | None = None) -> Trace:
    """Read a response's sections. Every text has some; time is linear in its length.

    `response_start` is the character after the thought (`Rollout.response_start`); None looks for known marks.
    """
    begin = find_response_start(text) if response_start is None else response_start
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
    return Trace(text, tuple(sections), tuple(_faults(text, sections, markdown)), begin)


def write_steps(solution: str, answer: str) -> str | None:
    """Write a solution in the step format: as it is, with a final-answer section, or each of its parts as a step.

    Parts are paragraphs, or the lines of a single one. None where the text itself has headings that break the format.
    """
    solution = solution.strip()
    final = f"### Final Answer:\n\n\\boxed{{{answer}}}"
    parts = re.split(r"\n[ \t\r]*\n\s*", solution)
    parts = [part for part in (parts if len(parts) > 1 else solution.splitlines()) if part.strip()]
    steps = [f"### Step {number}:\n{part.strip()}" for number, part in enumerate(parts, 1)]
    candidates = solution, f"{solution}\n\n{final}", "\n\n".join([*steps, final])
    return next((text for text in candidates if parse(text).formatted), None)


# Repetitions are bounded, so that a megabyte of spaces or asterisks is read in linear time.
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
"""Patterns of Markdown, bold and bare headings: the more explicit first."""

_FENCE = re.compile(r"^ {0,3}(`{3,}|~{3,})([^\n]*)", re.MULTILINE)


def _most_explicit(by_style: list[list[re.Match[str]]]) -> list[re.Match[str]]:
    return next((matches for matches in by_style if matches), [])


def _fences(text: str, begin: int) -> list[tuple[int, int]]:
    """Return the spans of closed code fences. A fence that never closes hides nothing, because it is likely stray."""
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
