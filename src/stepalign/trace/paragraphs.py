"""Solutions without headings: every paragraph is a step, and the last box or the last line is the answer."""

import re

from stepalign.trace.base import Section, Trace, boxed, nonempty
from stepalign.trace.thoughts import answer_end
from stepalign.trace.thoughts import response_start as find_response_start

NO_TEXT = "no text"
NO_BOX = "no boxed answer"

_PARAGRAPH = re.compile(r"\S.*?(?:\n[ \t\r]*\n\s*|\Z)", re.DOTALL)


class ParagraphFormat:
    """Paragraphs, separated by blank lines, as steps in the order of the text.

    A last paragraph with a box is the final-answer section. A thought, and white space at the start, is the
    preamble.
    """

    def parse(self, text: str, response_start: int | None = None) -> Trace:
        """Read a response's paragraphs."""
        begin = find_response_start(text) if response_start is None else response_start
        spans = [match.span() for match in _PARAGRAPH.finditer(text, begin)]
        start = spans[0][0] if spans else len(text)
        sections = [Section("preamble", None, "", 0, start)] if start else []
        sections += [Section("step", number, "", *span) for number, span in enumerate(spans, 1)]
        has_box = bool(spans) and bool(boxed(text[slice(*spans[-1])]))
        if has_box:
            sections[-1] = Section("answer", None, "", *spans[-1])
        faults = (() if spans else (NO_TEXT,)) + (() if has_box else (NO_BOX,))
        return Trace(text, tuple(sections), faults, begin, "paragraphs")

    def final_answers(self, trace: Trace, *, is_cut: bool = False) -> tuple[str, ...]:
        """Return the last box of the response, or else its last line, if it is not cut off."""
        end = answer_end(trace.text, trace.response_start)
        response = trace.text[trace.response_start : end]
        has_end = end == len(trace.text) and not is_cut
        return nonempty(boxed(response))[-1:] or (nonempty(tuple(response.splitlines()))[-1:] if has_end else ())

    def write(self, solution: str, answer: str) -> str | None:
        """Write a solution as it is. Without a box at its end the answer follows in one."""
        text = solution.strip()
        return text if self.parse(text, 0).formatted else f"{text}\n\n\\boxed{{{answer}}}".strip()
