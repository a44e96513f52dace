r"""Checks of a critique before it may teach: each a name, a measure, passed or not, and a few words.

They need the critique, its problem and its graded rollout, whatever critic wrote it and wherever it was kept, so a
file of critiques can be verified alone. In their order:

- `layout`: 1 if the text that teaches is made of the critique's own parts in the schema's layout, else 0. The other
  checks look at the parts.
- `case`: 1 if case and grade agree (A and B for a right answer, D for a wrong one, C or D for one that ran out of
  tokens) and the verdicts find a wrong step, one the rollout has or lacks next, in every case but A; else 0.
- `verdicts`: the share of the rollout's steps that have one. Passed where they are all judged, in order from 1; the
  final answer may be judged as one more step or not.
- `verbatim`: the least likeness of a correct section (the text before step 1, each step before the first error; in
  case A all) to its copy. The likeness is the longest common subsequence over the longer length: 1 is a copy that
  neither leaves out nor adds a character. Where the copy has not as many sections, one likeness of the whole.
- `wording`: the same without white space, Markdown's marks and the signs that set formulas apart.
- `withheld`: how much of the wrong step the critique repeats, as a share of the characters of its *own* lines: those
  that neither the problem nor the correct part has. A corrected step may well keep some of them. It fails where it
  repeats them all, where a reason quotes one, and where an equation of the step that does not hold stands anywhere.
  Measured in case D, and in case C where the solver finished the step.
- `answer`: 1 if the correction's last `\boxed{…}` equals the reference answer, else 0. Strings and plain arithmetic
  decide where they can, math-verify elsewhere. In case A the rollout's own answer counts, which was graded.
- `echo`: the share of the correction's runs of four words or signs, two of them words, that the reference solution
  has, but neither the problem nor the rollout, headings and marks aside. Two people who solve one problem share some;
  a copied solution shares most.
- `length`: the critique's characters over those of the rollout or the reference solution, whichever is longer.

Left out: whether what a critic calls correct is correct. That is the critic's judgement, and the critic benchmark's.
"""

import re

from stepalign import config
from stepalign.critics import schema
from stepalign.critics.arithmetic import equations
from stepalign.records import Check, Critique, Problem, Rollout
from stepalign.rewards.math import Grader
from stepalign.trace import Section, Trace, boxed, parse

NAMES = ("layout", "case", "verdicts", "verbatim", "wording", "withheld", "answer", "echo", "length")
"""Every check, in the order in which they are made."""

SHORT = 1_000
"""Characters. Against a shorter rollout and reference solution, a critique's length is measured as if against this."""

_RUN = 4
_WORDY = 2
"""Words that a run must have: what there is to compute does not depend on whose way it is."""
_QUOTE = 8
"""Characters, white space and markup aside, from which a line of the wrong step counts as quoted in a reason."""


class Checker:
    """Checks critiques. Answers that need computer algebra are compared in the grader's processes."""

    def __init__(self, settings: config.ChecksConfig, grader: Grader) -> None:
        self._settings, self._grader = settings, grader

    def check(self, critique: Critique, problem: Problem, rollout: Rollout) -> tuple[Check, ...]:
        """What every check finds, in the order of `NAMES`."""
        trace = parse(rollout.text)
        exact, loose = _likeness(critique, trace)
        return (
            _layout(critique),
            _case(critique, rollout, trace),
            _verdicts(critique, trace),
            self._copied("verbatim", exact),
            self._copied("wording", loose),
            _withheld(critique, problem, rollout, trace),
            self._answer(critique, problem, rollout),
            self._echo(critique, problem, rollout),
            self._length(critique, problem, rollout),
        )

    def needs_algebra(self, critique: Critique, problem: Problem, rollout: Rollout) -> bool:
        """Whether the check of the answer waits for the grader's processes."""
        stated = _stated(critique)
        return stated is not None and _agree(stated, critique, problem, rollout) is None

    def _copied(self, name: str, likeness: dict[str, float]) -> Check:
        worst = min(likeness, key=lambda section: likeness[section], default="")
        measure, least = likeness.get(worst, 1.0), self._settings.min_fidelity
        return _made(name, measure, measure >= least, f"{measure:.1%} of {worst} is copied, {least:.1%} is wanted")

    def _answer(self, critique: Critique, problem: Problem, rollout: Rollout) -> Check:
        stated = _stated(critique)
        equal = stated is not None and _agree(stated, critique, problem, rollout)
        if equal is None:
            (equal,) = self._grader.same([(problem.answer, stated or "")])
        detail = (
            "the correction has no \\boxed final answer"
            if stated is None
            else f"the correction ends in {stated[:80]!r}, the reference in {problem.answer[:80]!r}"
        )
        return _made("answer", float(equal), equal, detail)

    def _echo(self, critique: Critique, problem: Problem, rollout: Rollout) -> Check:
        said = _runs(f"{critique.corrected_step}\n{critique.continuation}")
        measure = 0.0
        if said and problem.solution:
            theirs = _runs(problem.solution) - _runs(rollout.text) - _runs(problem.statement)
            measure = len(said & theirs) / len(said)
        most = self._settings.max_echo
        return _made("echo", measure, measure <= most, f"{measure:.0%} of the correction is the reference solution's")

    def _length(self, critique: Critique, problem: Problem, rollout: Rollout) -> Check:
        measure = len(critique.text) / max(len(rollout.text), len(problem.solution), SHORT)
        most = self._settings.max_length
        return _made("length", measure, measure <= most, f"{measure:.1f} times as long, at most {most:g} is allowed")


def _agree(stated: str, critique: Critique, problem: Problem, rollout: Rollout) -> bool | None:
    """Whether a final answer is the reference's; None where only computer algebra can tell."""
    if critique.case == "A" and stated == next(reversed(boxed(rollout.text)), "").strip():
        return rollout.correct
    if stated == problem.answer.strip():
        return True
    wanted, found = equations.value(problem.answer), equations.value(stated)
    return None if wanted is None or found is None else wanted == found


def _made(name: str, measure: float, passed: bool, detail: str) -> Check:
    return Check(name=name, measure=round(measure, 4), passed=passed, detail="" if passed else detail)


def _layout(critique: Critique) -> Check:
    try:
        whole = schema.text_of(critique) == critique.text
    except ValueError:
        whole = False
    return _made("layout", float(whole), whole, "the text is not made of the critique's parts")


def _case(critique: Critique, rollout: Rollout, trace: Trace) -> Check:
    allowed = "AB" if rollout.correct else "CD" if rollout.finish == "length" else "D"
    graded = "not graded" if rollout.grade is None else "graded correct" if rollout.correct else "graded not correct"
    detail = f"case {critique.case} for a final answer that was {graded}"
    passed = rollout.grade is not None and critique.case in allowed
    first = critique.first_error
    if passed and ((critique.case == "A") != (first is None) or (first or 0) > schema.sections(trace)):
        passed, detail = False, f"case {critique.case} with the first wrong step {first}"
    return _made("case", float(passed), passed, detail)


def _verdicts(critique: Critique, trace: Trace) -> Check:
    judged = [verdict.step for verdict in critique.verdicts]
    due = max(len(trace.steps), 1)
    most = schema.sections(trace)
    passed = judged == list(range(1, len(judged) + 1)) and due <= len(judged) <= most
    measure = len(set(judged) & set(range(1, due + 1))) / due
    found = ", ".join(map(str, judged[:20])) or "none"
    return _made("verdicts", measure, passed, f"steps {found} are judged of a solution that has {due}")


# ── what must be copied ─────────────────────────────────────────────────────────────────────────────────────


def _likeness(critique: Critique, trace: Trace) -> tuple[dict[str, float], dict[str, float]]:
    """How like each correct section its copy is: exactly, and without white space and marks."""
    original = schema.original(trace, critique.first_error).strip()
    copy = critique.correct_part.strip()
    sections = _pieces(original, trace)
    if copy == original:
        same = dict.fromkeys((name for name, _ in sections), 1.0)
        return same, same
    copies = [text for _, text in _pieces(copy, parse(copy))]
    if len(copies) != len(sections):
        sections, copies = [("the correct part", original)], [copy]
    pairs = [(name, mine, theirs) for (name, theirs), mine in zip(sections, copies, strict=True)]
    exact = {name: _like(mine, theirs) for name, mine, theirs in pairs}
    return exact, {name: _like(bare(mine), bare(theirs)) for name, mine, theirs in pairs}


def _pieces(text: str, trace: Trace) -> list[tuple[str, str]]:
    """The sections of a beginning of the trace's text, without the white space around them."""
    offset = len(trace.text) - len(trace.text.lstrip())
    return [
        (_name(section), piece)
        for section in trace.sections
        if (piece := text[max(section.start - offset, 0) : section.end - offset].strip())
    ]


def _name(section: Section) -> str:
    if section.kind == "preamble":
        return "the text before step 1"
    if section.kind == "answer":
        return "the final answer"
    return f"step {section.title!r}" if section.number is None else f"step {section.number}"


def _like(copy: str, original: str) -> float:
    longer = max(len(copy), len(original))
    return schema.fidelity(copy, original) * len(original) / longer if longer else 1.0


_MARKS = re.compile(
    r"^[ \t]*(?:#{1,6}(?=\s)|[-*+](?=\s)|>|-{3,}[ \t]*$)|\*{2,3}|__|`|\\[()\[\]]|\${1,2}|\s+", re.MULTILINE
)


def bare(text: str) -> str:
    """A text without white space, Markdown's marks and the signs that set formulas apart."""
    return _MARKS.sub("", text)


# ── what must not be said ───────────────────────────────────────────────────────────────────────────────────


def _withheld(critique: Critique, problem: Problem, rollout: Rollout, trace: Trace) -> Check:
    k = critique.first_error
    counted = len(trace.steps) + (trace.answer_section is not None)
    judged = critique.case == "D" or (critique.case == "C" and k != counted)
    if k is None or not judged or k > counted:
        return _made("withheld", 0.0, True, "")
    wrong = trace.content(trace.section(k))
    reasons = [bare(verdict.reason) for verdict in critique.verdicts]
    added = "\n".join([*reasons, *map(bare, (critique.correct_part, critique.corrected_step, critique.continuation))])
    theirs = bare(f"{problem.statement}\n{schema.original(trace, k)}")
    own = [line for line in _lines(wrong) if line not in theirs]
    repeated = [line for line in own if line in added]
    measure = sum(map(len, repeated)) / max(sum(map(len, own)), 1)
    quoted = any(len(line) >= _QUOTE and line in reason for line in own for reason in reasons)
    false = _says_a_false_equation(wrong, added)
    why = "quoted" if measure == 1 else "quoted in a reason" if quoted else "repeated in its false equation"
    return _made("withheld", measure, not (measure == 1 or quoted or false), f"the wrong step {k} is {why}")


def _lines(section: str) -> list[str]:
    """A section's lines without its heading; the heading where there is nothing else."""
    heading, _, body = section.strip().partition("\n")
    lines = [bare(line) for line in body.split("\n")]
    return [line for line in lines if line] or [bare(heading)]


_RESULT = re.compile(r"(?:=|≈|\\approx)\D{0,12}?\d+")


def _says_a_false_equation(wrong: str, added: str) -> bool:
    """Whether an equation of the wrong step that does not hold is among what was added."""
    if not any(result in added for result in _RESULT.findall(bare(wrong))):
        return False  # the usual case, and reading equations is slow
    false = (link for chain in equations.find(wrong) for link in chain.false_links())
    return any(_occurs(bare(wrong[left.start : right.end]), added) for left, right in false)


def _occurs(equation: str, text: str) -> bool:
    """Whether an equation stands in a text, not as a part of other numbers."""
    at = text.find(equation)
    while at >= 0:
        before, behind = text[at - 1 : at] if at else "", text[at + len(equation) : at + len(equation) + 2]
        if not (before.isdigit() or before == ".") and not behind.removeprefix(".")[:1].isdigit():
            return True
        at = text.find(equation, at + 1)
    return False


_WORD = re.compile(r"\w+|[^\w\s]")


def _runs(text: str) -> set[tuple[str, ...]]:
    words = _WORD.findall(_SIGNS.sub(" ", text.casefold()))
    runs = set(zip(*(words[start:] for start in range(_RUN)), strict=False))
    return {run for run in runs if sum(map(str.isalpha, run)) >= _WORDY}


_SIGNS = re.compile(r"^#{1,6}[ \t][^\n]*|\\boxed(?=\{)|[#*_`${}]+|\\[()\[\]]|^-{3,}$", re.MULTILINE)
"""What is not counted as a word: headings, the box, marks."""


def _stated(critique: Critique) -> str | None:
    """The critique's final answer."""
    parts = (critique.correct_part,) if critique.case == "A" else (critique.corrected_step, critique.continuation)
    boxes = boxed("\n".join(parts))
    return boxes[-1].strip() if boxes else None
