"""The critique's schema (arXiv 2606.11173, Appendix B): writing a critique, and reading one that a model wrote.

First `### Summary` and a line a step, `Step k: Correct.` or `Step k: Incorrect -- reason`. Then, by case:

- A, fully correct: the whole solution verbatim.
- D, wrong answer: the correct part verbatim, the corrected step, the rest of the solution from there.
- B, right answer but a step that is not justified, and C, out of tokens: the same three parts.

The headings of A and D are the paper's, letter for letter. Those of B and C did not survive and are ours, in the same
manner. The solver's wrong step itself is never quoted: a teacher that sees it copies it (Section 4.3).
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

from stepalign.critics.quoting import CONTROL, has_control_word
from stepalign.records import Case, Critique, Rollout, Verdict
from stepalign.trace import Trace, boxed
from stepalign.trace import parse as parse_trace

SUMMARY = "### Summary"
FULLY_CORRECT = "# Your solution is fully correct."


class Headings(NamedTuple):
    """The four headings of a case with a step to correct; `{k}` is that step."""

    opening: str
    correct_part: str
    corrected_step: str
    continuation: str


HEADINGS: dict[Case, Headings] = {
    "B": Headings(  # ours
        "# Your final answer is correct, but Step {k} is not justified. Below is your correct work, the "
        "completed step, and the remainder of the solution.",
        "# This is the correct part of your solution:",
        "# You did not justify Step {k}. Here is the completed step:",
        "# Continuing the solution from the completed step:",
    ),
    "C": Headings(  # ours
        "# Your solution ran out of tokens and needs completing from Step {k} on. Below is your usable work, "
        "that step completed, and the remainder of the solution.",
        "# This is the usable part of your solution:",
        "# You did not finish from Step {k} on. Here is the completed step:",
        "# Continuing the solution from the completed step:",
    ),
    "D": Headings(  # the paper's
        "# Your solution has an error at Step {k}. Below is your correct work, the corrected step, and the "
        "remainder of the solution.",
        "# This is the correct part of your solution:",
        "# You made an error at Step {k}. Here is the corrected step:",
        "# Continuing the solution from the corrected step:",
    ),
}


class CritiqueFormatError(Exception):
    """Text that is no critique of the trace. The message names the fault."""


@dataclass(frozen=True)
class ParsedCritique:
    """A critique's parts, without the white space and rules between them."""

    case: Case
    verdicts: tuple[Verdict, ...]
    correct_part: str
    corrected_step: str = ""
    continuation: str = ""

    @property
    def first_error(self) -> int | None:
        """First step judged wrong, counted from 1."""
        return _first_error(self.verdicts)


def compose(
    case: Case, verdicts: Sequence[Verdict], correct_part: str, corrected_step: str = "", continuation: str = ""
) -> str:
    """Compose a critique in the paper's layout. A ValueError means that the verdicts do not fit the case."""
    first_error = _first_error(verdicts)
    if (case == "A") != (first_error is None):
        raise ValueError(f"case {case} with the first error at step {first_error}")
    lines = [SUMMARY]
    for verdict in verdicts:
        reason = f" -- {verdict.reason}" if verdict.reason else "."
        lines.append(f"Step {verdict.label}: " + ("Correct." if verdict.correct else f"Incorrect{reason}"))
    if case == "A":
        return "\n".join([*lines, FULLY_CORRECT, "---", trim(correct_part)])
    label = next(verdict.label for verdict in verdicts if not verdict.correct)
    opening, *headings = (heading.format(k=label) for heading in HEADINGS[case])
    parts = (trim(part) for part in (correct_part, corrected_step, continuation))
    body = (f"{heading}\n---\n{part}" for heading, part in zip(headings, parts, strict=True))
    return "\n".join([*lines, opening, "\n---\n".join(body)])


def text_of(critique: Critique | ParsedCritique) -> str:
    """Compose a critique's text from its parts, like `compose`."""
    parts = critique.correct_part, critique.corrected_step, critique.continuation
    return compose(critique.case, critique.verdicts, *parts)


def solution_of(critique: Critique | ParsedCritique) -> str:
    """Return the whole solution that a critique leaves: its parts, each from a new line."""
    parts = critique.correct_part, critique.corrected_step, critique.continuation
    return "\n".join(filter(None, map(trim, parts)))


def trim(text: str) -> str:
    """Remove the white space and rules (`---`) at the end of a part."""
    text = text.rstrip()
    while text.endswith("---"):
        above, _, last = text.rpartition("\n")
        if last.strip().strip("-"):
            break
        text = above.rstrip()
    return text


def allowed_cases(rollout: Rollout) -> str:
    """Return the cases that a rollout's grade and end allow."""
    return "AB" if rollout.correct else "CD" if rollout.finish == "length" else "D"


def num_sections(trace: Trace) -> int:
    """Count the sections that a critique may judge: the steps and a final answer, even a missing one."""
    return len(trace.steps) + 1


def place_of(trace: Trace, k: int) -> str:
    """Return the lines of a program's step; empty for steps that have headings."""
    return trace.steps[k - 1].title if trace.is_program and k <= len(trace.steps) else ""


def label_of(trace: Trace, k: int) -> str:
    """Return a step's number, of a program's step with its lines: `3 (lines 4–6)`."""
    return Verdict(step=k, correct=True, place=place_of(trace, k)).label


def original(trace: Trace, first_error: int | None) -> str:
    """Return the text that a critique copies, up to its first error.

    It is all of the text where only a final answer is missing, and empty for a trace without steps or that step.
    """
    if first_error is not None and (not trace.steps or first_error > num_sections(trace)):
        return ""
    if first_error is None or (first_error > len(trace.steps) and trace.answer_section is None):
        return trim(trace.text)
    return trim(trace.before(first_error))


def remainder(trace: Trace, first_error: int | None, case: Case) -> str:
    """Return the text that a critique of case B copies behind its completed step; empty for another critique."""
    if case != "B" or first_error is None or not 1 <= first_error < num_sections(trace):
        return ""
    return trim(trace.text[trace.section(first_error).end :])


# Repetitions are bounded: whatever a model writes, reading it takes linear time.
_VERDICT = re.compile(
    r"^[ \t>*#_|+-]{0,8}(?:\d{1,3}[.)][ \t*_]{1,4})?"
    r"(?:Step[ \t]{0,3}#?(?P<step>\d{1,4})|(?P<answer>Final[ \t]{1,3}Answer(?:[ \t]{1,3}Section)?))"
    r"(?:[ \t*_]{0,4}\([^()\n]{0,80}\))?[*_ \t]{0,5}(?::|--|[-—–|])[*_ \t]{0,6}"
    r"(?:[^\w\s*]{1,3}[ \t*_]{0,4})?(?P<word>Correct|Incorrect)\b[*_]{0,3}[ \t]{0,3}[^\w\s(\"'$\\*-]{0,2}[ \t]{0,2}"
    r"(?:--|[-—–:.,|])?[*_]{0,3}[ \t]{0,3}(?P<reason>[^\n]*)$",
    re.MULTILINE | re.IGNORECASE,
)
_SUMMARY = re.compile(r"^[ \t]{0,3}(?:#{1,6}[ \t]{0,3})?\*{0,3}Summary\b", re.MULTILINE | re.IGNORECASE)
_BEGINNING = re.compile(r"(?:[ \t]{0,20}\n){0,20}(?:[ \t]{0,3}-{3,}[ \t]{0,20}(?:\n|$)(?:[ \t]{0,20}\n){0,20})?")
_FENCED = re.compile(r"\A\s{0,20}(`{3,}|~{3,})[^\n`]{0,20}\n(.*)\n[ \t]{0,3}\1\s{0,20}\Z", re.DOTALL)


def parse(text: str, trace: Trace) -> ParsedCritique:
    """Read a critique that a model wrote on a trace, or raise a `CritiqueFormatError` that names its fault.

    Other heading levels, capitals, spacing and bold type are accepted, and so are missing rules, marks like ✅ and
    list signs at the verdicts, `Final Answer:` as the last verdict's name, and a code fence around the whole. Text
    before the summary and after the end is dropped. A critique must have its verdicts, from step 1 on without gaps,
    and its case's headings in order, and both must name the same step of the trace.
    """
    if (fenced := _FENCED.match(text)) is not None:
        text = fenced[2]
    case, opening = _opening(text)
    verdicts = _verdicts(text[: opening.start()], trace)
    first_error = _first_error(verdicts)
    check_fit(case, first_error, len(verdicts), trace)
    if first_error is None:
        solution, whole = _part(text, opening.end(), len(text)), trim(trace.text)
        if not solution.strip():
            raise CritiqueFormatError("says fully correct, but does not repeat the solution")
        # Lines of the critic's own after a whole copy are dropped.
        is_whole = solution.startswith(whole) and solution[len(whole) :].lstrip(" \t")[:1] in ("", "\n")
        check_correction(solution[len(whole) :] if is_whole else solution, trace)
        return ParsedCritique(case, verdicts, whole if is_whole else solution)
    if first_error != (named := int(opening["k"])):
        raise CritiqueFormatError(f"its heading puts the error at step {named}, its summary at step {first_error}")
    headings = HEADINGS[case]
    first = _heading(text, headings.correct_part, opening.end())
    quoted = original(trace, first_error).strip()
    begin = _skip_rule(text, first.end())
    # A solution may hold lines like the headings, so the solver's own text is skipped.
    second = _heading(text, headings.corrected_step, begin + len(quoted) * text.startswith(quoted, begin))
    third = _heading(text, headings.continuation, second.end())
    if int(second["k"]) != first_error:
        raise CritiqueFormatError(f"corrects step {second['k']}, but finds the error at step {first_error}")
    corrected = _part(text, second.end(), third.start())
    if not corrected.strip():
        raise CritiqueFormatError(f"has no corrected step {first_error}")
    corrected, continuation = cut_tail(corrected, _part(text, third.end(), len(text)))
    check_correction(f"{corrected}\n{continuation}", trace)
    return ParsedCritique(case, verdicts, _part(text, first.end(), second.start()), corrected, continuation)


def last_opening(text: str) -> int | None:
    """Return the start of the last heading that says whether a solution is correct."""
    return max((match.start() for pattern in _OPENINGS.values() for match in pattern.finditer(text)), default=None)


def check_correction(text: str, trace: Trace) -> None:
    """Raise an error for a heading of the format or a control word that is not the trace's own."""
    if fault := fault_within(text, trace):
        raise CritiqueFormatError(f"has {fault} within a part")


def fault_within(text: str, trace: Trace) -> str:
    """Name a heading of the format or a control word in a part; empty where it has none, or it is the trace's."""
    for pattern in _HEADINGS:
        if any(match[0].strip() not in trace.text for match in pattern.finditer(text)):
            return "a heading of the format"
    return "a control word" if has_control_word(text) and not has_control_word(trace.text) else ""


def check_fit(case: Case, first_error: int | None, judged: int, trace: Trace) -> None:
    """Raise an error if case and verdicts contradict each other, or name a step that the trace lacks."""
    if case == "A" and first_error is not None:
        raise CritiqueFormatError(f"is of case A, fully correct, but finds step {first_error} incorrect")
    if case != "A" and first_error is None:
        raise CritiqueFormatError(f"is of case {case}, but finds no step incorrect")
    if not judged:
        raise CritiqueFormatError("has no verdicts")
    most = num_sections(trace)
    if judged > most:
        raise CritiqueFormatError(f"its summary judges step {most + 1} of a solution that has {most - 1}")


def _first_error(verdicts: Sequence[Verdict]) -> int | None:
    return next((verdict.step for verdict in verdicts if not verdict.correct), None)


def _opening(text: str) -> tuple[Case, re.Match[str]]:
    """Find the heading that comes first, which tells the case."""
    openings = [(case, match) for case, pattern in _OPENINGS.items() if (match := pattern.search(text))]
    if not openings:
        raise CritiqueFormatError("has none of the headings that say whether the solution is correct")
    return min(openings, key=lambda opening: opening[1].start())


def _verdicts(before: str, trace: Trace) -> tuple[Verdict, ...]:
    """Read the verdicts of the last summary before the opening."""
    begin = max((match.start() for match in _SUMMARY.finditer(before)), default=0)
    verdicts: list[Verdict] = []
    for number, match in enumerate(_VERDICT.finditer(before, begin), start=1):
        named = int(match["step"] or number)
        if named != number or (match["answer"] and number <= len(trace.steps)):
            judged = "the final answer" if match["answer"] else f"step {named}"
            raise CritiqueFormatError(f"its summary judges {judged} where step {number} is due")
        correct = match["word"].lower() == "correct"
        reason = "" if correct else match["reason"].strip(" \t*_|")
        verdicts.append(Verdict(step=number, correct=correct, reason=reason, place=place_of(trace, number)))
    return tuple(verdicts)


def _heading(text: str, heading: str, begin: int) -> re.Match[str]:
    match = _pattern(heading, first_sentence=True).search(text, begin)
    if match is None:
        raise CritiqueFormatError(f"has no heading {heading.format(k='K')!r}")
    return match


@cache
def _pattern(heading: str, *, first_sentence: bool = False) -> re.Pattern[str]:
    """Compile a heading's pattern, for any level, capitals and spacing; `{k}` is a group."""
    words = re.escape(heading.partition(". ")[0] if first_sentence else heading).lstrip("\\# ").rstrip("\\.:")
    words = words.replace(r"\{k\}", r"(?P<k>\d{1,4})(?:[ \t]{1,4}\([^()\n]{0,80}\))?").replace(r"\ ", r"[ \t]{1,4}")
    rest = r"[^\n]*$" if first_sentence else r"[.: \t*]{0,8}$"
    return re.compile(r"^[ \t]{0,3}#{0,6}[ \t]{0,3}\*{0,2}" + words + rest, re.MULTILINE | re.IGNORECASE)


_OPENINGS: dict[Case, re.Pattern[str]] = {
    "A": _pattern(FULLY_CORRECT, first_sentence=True),
    **{case: _pattern(headings.opening, first_sentence=True) for case, headings in HEADINGS.items()},
}


_HEADINGS = [
    re.compile(r"^[ \t]{0,3}#{1,6}[ \t]{0,3}\*{0,2}Summary\*{0,2}:?[ \t]{0,8}$", re.MULTILINE | re.IGNORECASE),
    re.compile(
        r"^[ \t>*#-]{0,8}(?:Step[ \t]{0,3}\d{1,4}|Final[ \t]{1,3}Answer)\*{0,2}:[ \t*]{1,4}"
        r"(?:Correct|Incorrect)\*{0,2}(?:\.[ \t*]{0,8}|[ \t]{0,3}--[^\n]*)?$",
        re.MULTILINE | re.IGNORECASE,
    ),
    *_OPENINGS.values(),
    *(_pattern(heading, first_sentence=True) for headings in HEADINGS.values() for heading in headings[1:]),
]
"""Every line of the format that is no part's own text."""


def cut_tail(corrected_step: str, continuation: str) -> tuple[str, str]:
    """Remove what a model says behind the sentence of its last box, and control words there."""
    rest = parse_trace(continuation)
    if boxed(continuation):
        return corrected_step, _without_tail(continuation)
    if boxed(corrected_step) and not rest.steps and rest.answer_section is None:
        return _without_tail(corrected_step), ""
    return corrected_step, continuation


def _without_tail(solution: str) -> str:
    last = boxed(solution)[-1]
    starts = [match.end() for match in _BOX.finditer(solution)]
    end = next((s for s in reversed(starts) if solution.startswith(f"{last}}}", s)), len(solution)) + len(last) + 1
    if parse_trace(solution[end:]).steps:
        return solution
    sentence = _SENTENCE_END.match(solution, end)
    assert sentence is not None  # the pattern also matches nothing
    control = CONTROL.search(solution, end)
    return trim(solution[: min(sentence.end(), control.start() if control else len(solution))])


_BOX = re.compile(r"\\boxed\s{0,3}\{")
_SENTENCE_END = re.compile(
    r"(?:\s{0,20}(?:(?:\\\]|\$\$)(?:\n(?=[ \t]{0,3}[a-z]))?|\\\)|\$|\\end\{[a-z*]{1,20}\}|\*{1,3}|\}))*"
    r"(?:[.!?]+|[ \t]{0,3}(?=[a-z,;(\\$%€£°])(?!\\boxed)(?:[^\n.!?]|[.](?=\d)){0,300}[.!?)\]$]{0,3})?"
)
"""The rest of a box's formula and sentence. A capital begins another sentence."""


def _skip_rule(text: str, start: int) -> int:
    match = _BEGINNING.match(text, start)
    assert match is not None  # the pattern also matches nothing
    return match.end()


def _part(text: str, start: int, end: int) -> str:
    return trim(text[_skip_rule(text, start) : end])
