r"""Checks of a critique before a teacher is shown it. Each has a name, a measure, a result and a detail.

They need the critique, its problem and its graded rollout, so a file of critiques from any critic can be checked
alone. `docs/critics.md` defines each measure and when it passes. The copy's likeness is the longest common subsequence
over the longer length, section by section: at 1 it neither omits nor adds a character. With another number of sections
the whole is compared. `error_not_quoted` measures the wrong step's *own* lines, because a corrected step may keep those
of the problem and the correct part; in case C it is measured where the solver finished the step.

Of a program (`trace.code`) the copied lines are compared as such, the correction is graded by the unit tests, and no
equations are read.

`true_equations` judges all that teaches: the steps called correct in the solver's own bytes, reasons, and correction.

Left out: whether a step that the critic calls correct is correct beyond its arithmetic, because that is the critic's
judgement. The critic benchmark measures it.
"""

import re
from contextlib import suppress
from dataclasses import replace
from fractions import Fraction

from stepalign import config
from stepalign.critics import schema
from stepalign.critics.arithmetic import equations
from stepalign.critics.arithmetic.chains import Link
from stepalign.critics.arithmetic.words import in_figures
from stepalign.critics.code.silence import repetition
from stepalign.critics.fidelity import fidelity
from stepalign.records import Check, Critique, Problem, Rollout
from stepalign.rewards import Grader
from stepalign.trace import Section, Trace, boxed, parse_rollout, trace_format

NAMES = (
    "length", "layout", "case", "verdicts", "exact_copy", "normalized_copy", "error_not_quoted", "true_equations",
    "completed_step", "final_answer", "reference_overlap",
)  # fmt: skip
"""Every check, in the order in which they run."""

MIN_LENGTH = 1_000
"""Characters. Against a shorter rollout and reference solution, a critique's length is measured as if against this."""
_NGRAM, _NGRAM_WORDS = 4, 2
"""Tokens of an n-gram, and words among them: what there is to compute belongs to no solution in particular."""
_QUOTE_LENGTH = 8
"""Characters, white space and markup aside, from which a line of the wrong step counts as quoted in a reason."""


class Checker:
    """Checks of critiques. Answers that need computer algebra are compared in the grader's processes."""

    def __init__(self, settings: config.ChecksConfig, grader: Grader) -> None:
        self._settings, self._grader = settings, grader

    def check(self, critique: Critique, problem: Problem, rollout: Rollout) -> tuple[Check, ...]:
        """Run every check, in the order of `NAMES`."""
        trace = parse_rollout(rollout)
        exact, normalized = _copy_likeness(critique, trace)
        return (
            self._length(critique, problem, rollout),
            _layout(critique, trace),
            _case(critique, rollout, trace),
            _verdicts(critique, trace),
            self._copy("exact_copy", exact),
            self._copy("normalized_copy", normalized),
            _error_not_quoted(critique, problem, rollout, trace),
            _true_equations(critique, trace),
            _completed_step(critique, problem, trace),
            self._final_answer(critique, problem, rollout),
            self._reference_overlap(critique, problem, rollout),
        )

    def needs_algebra(self, critique: Critique, problem: Problem, rollout: Rollout) -> bool:
        """Return whether the check of the final answer waits for the grader's processes."""
        if parse_rollout(rollout).is_program:
            return critique.case != "A"
        stated = _stated_answer(critique)
        return stated is not None and _equal(stated, critique, problem, rollout) is None

    def _copy(self, name: str, likeness: dict[str, float]) -> Check:
        worst = min(likeness, key=lambda section: likeness[section], default="")
        measure, least = likeness.get(worst, 1.0), self._settings.min_fidelity
        return _result(name, measure, measure >= least, f"{measure:.1%} of {worst} is copied, {least:.1%} is required")

    def _final_answer(self, critique: Critique, problem: Problem, rollout: Rollout) -> Check:
        if parse_rollout(rollout).is_program:
            return self._passes_tests(critique, problem, rollout)
        stated = _stated_answer(critique)
        equal = stated is not None and _equal(stated, critique, problem, rollout)
        if equal is None:
            (equal,) = self._grader.same([(problem.answer, stated or "")])
        detail = "the correction has no \\boxed final answer"
        if stated is not None:
            detail = f"the correction ends in {stated[:80]!r}, the reference in {problem.answer[:80]!r}"
        return _result("final_answer", float(equal), equal, detail)

    def _passes_tests(self, critique: Critique, problem: Problem, rollout: Rollout) -> Check:
        """Grade the program that the critique leaves."""
        grade = rollout.grade
        if critique.case != "A":
            (grade,) = (one.grade for one in self._grader.grade([mended(rollout, critique)], {problem.id: problem}))
        correct = grade is not None and grade.correct
        detail = f"the correction fails: {grade.feedback if grade else 'it is not graded'}"
        return _result("final_answer", float(correct), correct, detail)

    def _reference_overlap(self, critique: Critique, problem: Problem, rollout: Rollout) -> Check:
        ngrams = _ngrams(f"{critique.corrected_step}\n{critique.continuation}")
        reference = _ngrams(problem.solution) - _ngrams(rollout.text) - _ngrams(problem.statement)
        measure = len(ngrams & reference) / max(len(ngrams), 1)
        passed = measure <= self._settings.max_reference_overlap
        return _result("reference_overlap", measure, passed, f"{measure:.0%} of the correction is the reference's text")

    def _length(self, critique: Critique, problem: Problem, rollout: Rollout) -> Check:
        most = self._settings.max_length
        measure = most * len(critique.text) / max_length(self._settings, problem, rollout)
        return _result("length", measure, measure <= most, f"{measure:.1f} times as long, at most {most:g} is allowed")


def mended(rollout: Rollout, critique: Critique) -> Rollout:
    """Return the rollout with the solution that a critique leaves, not graded."""
    return replace(
        rollout,
        text=schema.solution_of(critique),
        completion_ids=(),
        token_starts=(),
        sampler_logprobs=None,
        grade=None,
        response_start=rollout.response_start if critique.correct_part else 0,
        finish="stop",
    )


def max_length(settings: config.ChecksConfig, problem: Problem, rollout: Rollout) -> float:
    """Return the most characters of a critique."""
    return settings.max_length * max(len(rollout.text), len(problem.solution), MIN_LENGTH)


def _equal(stated: str, critique: Critique, problem: Problem, rollout: Rollout) -> bool | None:
    """Compare a final answer with the reference; None where only computer algebra can."""
    if critique.case == "A" and stated == next(reversed(boxed(rollout.text)), "").strip():
        return rollout.correct
    if stated == problem.answer.strip():
        return True
    values = equations.evaluate(problem.answer), equations.evaluate(stated)
    return None if None in values else values[0] == values[1]


def _result(name: str, measure: float, passed: bool, detail: str) -> Check:
    return Check(name=name, measure=round(measure, 4), passed=passed, detail="" if passed else detail)


def _layout(critique: Critique, trace: Trace) -> Check:
    whole, detail = False, "the text is not composed of the critique's parts"
    with suppress(ValueError):
        whole = schema.text_of(critique) == critique.text
    if whole and (fault := schema.fault_within(f"{critique.corrected_step}\n{critique.continuation}", trace)):
        whole, detail = False, f"the correction has {fault} within it"
    return _result("layout", float(whole), whole, detail)


def _case(critique: Critique, rollout: Rollout, trace: Trace) -> Check:
    allowed = "AB" if rollout.correct else "CD" if rollout.finish == "length" else "D"
    graded = "not graded" if rollout.grade is None else "graded correct" if rollout.correct else "graded not correct"
    detail = f"case {critique.case} for a final answer that was {graded}"
    passed = rollout.grade is not None and critique.case in allowed
    first = critique.first_error
    if passed and ((critique.case == "A") != (first is None) or (first or 0) > schema.num_sections(trace)):
        passed, detail = False, f"case {critique.case} with the first wrong step {first}"
    return _result("case", float(passed), passed, detail)


def _verdicts(critique: Critique, trace: Trace) -> Check:
    judged, required = [verdict.step for verdict in critique.verdicts], max(len(trace.steps), 1)
    passed = judged == list(range(1, len(judged) + 1)) and required <= len(judged) <= schema.num_sections(trace)
    measure = len(set(judged) & set(range(1, required + 1))) / required
    names = ", ".join(map(str, judged[:20])) or "none"
    return _result("verdicts", measure, passed, f"steps {names} are judged of a solution that has {required}")


def _copy_likeness(critique: Critique, trace: Trace) -> tuple[dict[str, float], dict[str, float]]:
    """Compare each correct section with its copy: exactly, and normalized."""
    exact: dict[str, float] = {}
    normalized: dict[str, float] = {}
    if remainder := verbatim_remainder(critique, trace):
        exact["the remainder"] = _likeness(critique.continuation.strip(), remainder.strip())
        normalized["the remainder"] = _likeness(normalize(critique.continuation), normalize(remainder))
    original, copy = schema.original(trace, critique.first_error).strip(), critique.correct_part.strip()
    if copy == original:
        return exact, normalized
    sections, copies = _pieces(original, trace), _pieces(copy, trace_format(trace.format).parse(copy))
    if len(copies) != len(sections):
        sections, copies = [("the correct part", original)], [("", copy)]
    pairs = [(name, copied, text) for (name, text), (_, copied) in zip(sections, copies, strict=True)]
    exact |= {name: _likeness(copied, text) for name, copied, text in pairs}
    return exact, normalized | {name: _likeness(normalize(copied), normalize(text)) for name, copied, text in pairs}


def _pieces(text: str, trace: Trace) -> list[tuple[str, str]]:
    """Split a beginning of the trace's text into its sections, stripped."""
    offset = len(trace.text) - len(trace.text.lstrip())
    return [
        (_name(section), piece)
        for section in trace.sections
        if (piece := text[max(section.start - offset, 0) : section.end - offset].strip())
    ]


def _name(section: Section) -> str:
    step = f"step {section.title!r}" if section.number is None else f"step {section.number}"
    return {"preamble": "the text before step 1", "answer": "the final answer"}.get(section.kind, step)


def _likeness(copy: str, original: str) -> float:
    longer = max(len(copy), len(original))
    return fidelity(copy, original) * len(original) / longer if longer else 1.0


def verbatim_remainder(critique: Critique, trace: Trace) -> str:
    """Return the remainder that case B copies; empty in other cases, and where a false equation changes it."""
    remainder = schema.remainder(trace, critique.first_error, critique.case)
    return "" if not trace.is_program and equations.false_links(remainder) else remainder


_MARKS = re.compile(
    r"^[ \t]*(?:#{1,6}(?=\s)|[-*+](?=\s)|>|-{3,}[ \t]*$)|\*{2,3}|__|`|\\[()\[\]]|\${1,2}|\s+", re.MULTILINE
)


def normalize(text: str) -> str:
    """Remove white space, Markdown's marks and the delimiters of formulas."""
    return _MARKS.sub("", text)


def _error_not_quoted(critique: Critique, problem: Problem, rollout: Rollout, trace: Trace) -> Check:
    k = critique.first_error
    count = len(trace.steps) + (trace.answer_section is not None)
    if k is None or k > count or not (critique.case == "D" or (critique.case == "C" and k != count)):
        return _result("error_not_quoted", 0.0, True, "")
    if trace.is_program:
        measure, how = repetition(critique, problem, trace)
        return _result("error_not_quoted", measure, not how, f"the wrong step {k} is {how}")
    wrong = trace.content(trace.section(k))
    reasons = [normalize(verdict.reason) for verdict in critique.verdicts]
    parts = map(normalize, (critique.correct_part, critique.corrected_step, critique.continuation))
    critics_text = "\n".join([*reasons, *parts])
    known = normalize(f"{problem.statement}\n{schema.original(trace, k)}")
    heading, *body = map(normalize, wrong.strip().split("\n"))
    own = [line for line in (list(filter(None, body)) or [heading]) if line not in known]
    repeated = [line for line in own if line in critics_text]
    measure = sum(map(len, repeated)) / max(sum(map(len, own)), 1)
    quoted = any(len(line) >= _QUOTE_LENGTH and line in reason for line in own for reason in reasons)
    false = _has_false_equation(wrong, critics_text)
    how = "quoted" if measure == 1 else "quoted in a reason" if quoted else "repeated in its false equation"
    return _result("error_not_quoted", measure, not (measure == 1 or quoted or false), f"the wrong step {k} is {how}")


def _true_equations(critique: Critique, trace: Trace) -> Check:
    """Judge every equation of the copied part, of the steps called correct, of the reasons and of the correction."""
    if trace.is_program:  # `=` assigns there
        return _result("true_equations", 1.0, True, "")
    first = critique.first_error
    sections = (*trace.steps, *([trace.answer_section] if trace.answer_section else []))
    judged = {verdict.step for verdict in critique.verdicts if verdict.correct}
    texts = [trace.content(section) for k, section in enumerate(sections, start=1) if k in judged or first is None]
    if first is None or critique.correct_part:
        before = trace.text[: trace.steps[0].start] if trace.steps else trace.text if first is None else ""
        texts.append(before[trace.response_start :])
    reasons = [verdict.reason for verdict in critique.verdicts if verdict.reason]
    texts += [*reasons, critique.corrected_step, critique.continuation]
    false = [link for text in texts for link in _false_links(text)]
    total = sum(len(chain.parts) - 1 for text in texts for chain in equations.find_equations(text))
    shown = " = ".join(" ".join(side.text.split())[:40] for side in false[0]) if false else ""
    measure = 1 - min(len(false) / max(total, 1), 1) if false else 1.0
    return _result("true_equations", measure, not false, f"what teaches says {shown!r}, which is false")


def _false_links(text: str) -> list[Link]:
    return equations.false_links(text) or equations.false_links(in_figures(text))


_MIN_KEPT = 0.2
"""Least share of a step's own words and numbers in its completed form, without a result to keep."""


def _completed_step(critique: Critique, problem: Problem, trace: Trace) -> Check:
    """In case B, ask whether the completed step has the results of the step on which the remainder rests."""
    k = critique.first_error
    count = len(trace.steps) + (trace.answer_section is not None)
    if critique.case != "B" or k is None or k > count or trace.is_program:
        return _result("completed_step", 1.0, True, "")
    step, rest = trace.content(trace.section(k)), trace.text[trace.section(k).end :]
    known = _values(f"{problem.statement}\n{schema.original(trace, k)}")
    false = {number.value for link in equations.false_links(step) for side in link for number in side.literals}
    results = {chain.result for chain in equations.find_equations(step)} - known - false
    needed = results & _values(rest)
    if needed:
        measure = len(needed & _values(critique.corrected_step)) / len(needed)
        detail = "the completed step lacks a result on which the remainder rests"
        return _result("completed_step", measure, measure == 1, detail)
    own, completed = (_content_words(text) for text in (step, critique.corrected_step))
    measure = len(own & completed) / max(len(own), 1) if own else 1.0
    return _result("completed_step", measure, measure >= _MIN_KEPT, "the completed step has nothing of the step")


def _values(text: str) -> set[Fraction | None]:
    return {number.value for number in equations.find_numbers(in_figures(text))}


def _content_words(step: str) -> set[str]:
    """Return the words of four letters or more, the numbers and the variables of a step without its heading."""
    _, _, body = step.strip().partition("\n")
    return set(re.findall(r"[^\W\d_]{4,}|\d+|(?<![^\W\d_])[b-zB-HJ-Z](?![^\W\d_])", (body or step).casefold()))


_EQUALS_NUMBER = re.compile(r"(?:=|≈|\\approx)\D{0,12}?\d+")


def _has_false_equation(wrong: str, critics_text: str) -> bool:
    """Return whether a false equation of the wrong step is in the critic's text."""
    if not any(result in critics_text for result in _EQUALS_NUMBER.findall(normalize(wrong))):
        return False  # the usual case, because reading equations is slow
    false = (re.escape(normalize(wrong[a.start : b.end])) for a, b in equations.false_links(wrong))
    # The equation's numbers must be whole.
    return any(re.search(rf"(?<![\d.]){equation}(?!\.?\d)", critics_text) for equation in false)


_TOKEN = re.compile(r"\w+|[^\w\s]")
_NO_TOKEN = re.compile(r"^#{1,6}[ \t][^\n]*|\\boxed(?=\{)|[#*_`${}]+|\\[()\[\]]|^-{3,}$", re.MULTILINE)
"""Headings, the box and marks, which are no tokens."""


def _ngrams(text: str) -> set[tuple[str, ...]]:
    tokens = _TOKEN.findall(_NO_TOKEN.sub(" ", text.casefold()))
    ngrams = set(zip(*(tokens[start:] for start in range(_NGRAM)), strict=False))
    return {ngram for ngram in ngrams if sum(map(str.isalpha, ngram)) >= _NGRAM_WORDS}


def _stated_answer(critique: Critique) -> str | None:
    parts = (critique.correct_part,) if critique.case == "A" else (critique.corrected_step, critique.continuation)
    boxes = boxed("\n".join(parts))
    return boxes[-1].strip() if boxes else None
