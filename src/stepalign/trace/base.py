"""The parts of a parsed response, and the protocol of formats that parse one."""

import re
from bisect import bisect_left
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, Protocol, runtime_checkable

from stepalign.records import Rollout


@dataclass(frozen=True)
class Section:
    """A piece of a response, its heading included."""

    kind: Literal["preamble", "step", "answer", "prose"]
    """`prose` is text around a program, which no critique judges."""
    number: int | None
    """The number in a step's heading, or None."""
    title: str
    """The rest of the heading's line; of a program's step its lines, as `lines 4–6`."""
    start: int
    end: int
    """The characters `[start, end)` of the text."""


@dataclass(frozen=True)
class Trace:
    """A parsed response. Its sections tile the text: joined they are the text, character for character."""

    text: str
    sections: tuple[Section, ...]
    """All of the text, in order. Empty for an empty text."""
    faults: tuple[str, ...]
    """Each departure from the format, under a name that can be counted."""
    response_start: int = 0
    """The character after the solver's thought."""
    format: str = "steps"
    """The name of its format."""

    @cached_property
    def steps(self) -> tuple[Section, ...]:
        """The steps in the order of the text, whatever their numbers."""
        return tuple(section for section in self.sections if section.kind == "step")

    @cached_property
    def answer_section(self) -> Section | None:
        """The final-answer section, or the last of several."""
        return next((section for section in reversed(self.sections) if section.kind == "answer"), None)

    @property
    def formatted(self) -> bool:
        """True if the response has no fault: the definition of format accuracy."""
        return not self.faults

    @property
    def is_program(self) -> bool:
        """True if the solution is a program: its steps have lines, and its answer is all of it."""
        return self.format == "code"

    @property
    def num_lines(self) -> int:
        """The lines of the program that are not blank; 0 without a program."""
        if not self.is_program:
            return 0
        return sum(bool(line.strip()) for step in self.steps for line in self.content(step).split("\n"))

    def section(self, k: int) -> Section:
        """Return section `k` as critiques count: the steps from 1, then the final answer as one more step."""
        counted = self.steps if self.answer_section is None else (*self.steps, self.answer_section)
        if not 1 <= k <= len(counted):
            raise IndexError(f"section {k} of a trace with {len(counted)} (counted from 1, the final answer included)")
        return counted[k - 1]

    def before(self, k: int) -> str:
        """Return the text before section `k`: the part that a critique of first wrong step `k` quotes verbatim.

        It includes the preamble, and a `---` between section `k` and the one before.
        """
        return self.text[: self.section(k).start]

    def content(self, section: Section) -> str:
        """Return a section's text, heading included."""
        return self.text[section.start : section.end]


@runtime_checkable
class TraceFormat(Protocol):
    """A way to write a solution as steps and a final answer."""

    def parse(self, text: str, response_start: int | None = None) -> Trace:
        """Read a response's sections, in time linear in its length.

        `response_start` is the character after the thought (`Rollout.response_start`). With None the marks of known
        families show it.
        """

    def final_answers(self, trace: Trace, *, is_cut: bool = False) -> tuple[str, ...]:
        """Return the response's answer: none, one, or several that must all be equal to count.

        `is_cut`: it ran out of tokens, so that its last line is no answer.
        """

    def write(self, solution: str, answer: str) -> str | None:
        """Write a reference solution as a response; None where its text breaks the format."""


def token_span(rollout: Rollout, start: int, end: int) -> tuple[int, int]:
    """Return the range of completion tokens whose text overlaps the characters `[start, end)`.

    A token across a boundary is in the spans of both sides. Tokens that begin a character (a part of its UTF-8 bytes)
    start where it starts and are in its span. A final EOS has no text and is in no span.
    """
    if not 0 <= start <= end <= len(rollout.text):
        raise ValueError(f"characters [{start}, {end}) of a text with {len(rollout.text)}")
    starts = rollout.token_starts
    first = bisect_left(starts, start)
    if start == end:
        return first, first
    next_start = starts[first] if first < len(starts) else len(rollout.text)
    if first > 0 and next_start > start:
        first -= 1
    return first, bisect_left(starts, end)


def step_spans(rollout: Rollout, trace: Trace) -> tuple[tuple[int, int], ...]:
    """Return the token ranges of a rollout's steps and final answer, as critiques count them.

    They are in the order of critiques, which count the final answer last, wherever it stands. Tokens between two belong
    to the first in the text. A token across a boundary belongs to the step that begins in it. Text
    around a program belongs to no step.
    """
    sections = trace.steps if trace.answer_section is None else (*trace.steps, trace.answer_section)
    starts = [token_span(rollout, section.start, section.end)[0] for section in sections]
    last = trace.sections[-1] if trace.sections else None
    is_prose = last is not None and last.kind == "prose"
    end = token_span(rollout, last.start, last.end)[0] if last and is_prose else len(rollout.completion_ids)
    by_place = sorted(range(len(sections)), key=lambda index: sections[index].start)
    stops = dict(zip(by_place, [*(starts[index] for index in by_place[1:]), end], strict=False))
    return tuple((start, stops[index]) for index, start in enumerate(starts))


def boxed(text: str) -> tuple[str, ...]:
    """Return the contents of every balanced `\\boxed{…}`, in order; of nested ones the outermost.

    An escaped brace (`\\{`) does not count. An unclosed box is none. Time is linear in the text's length.
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


def nonempty(answers: tuple[str, ...]) -> tuple[str, ...]:
    """Return the answers without outer white space, and without empty ones."""
    return tuple(answer.strip() for answer in answers if answer.strip())


_BRACE = re.compile(r"\\{1,2}boxed\s*\{|\\.|[{}]", re.DOTALL)
