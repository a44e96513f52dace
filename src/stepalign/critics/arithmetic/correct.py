"""Where a solution first goes wrong, and the solution from there on.

Tried in this order, and only an answer that comes out right counts:

1. *Recompute*: the first false equation is mended in the solver's own text and the new value carried through
   the steps after it (`mending`).
2. *Recopy*: a number that neither the problem, the reference solution nor an earlier step has is replaced by
   one that they have, and carried through in the same way.
3. *Take over*: the solver's steps are kept as long as they can be part of a solution, mended where an
   equation is false. A sum goes on with the terms that are left (`tally`), anything else with the reference
   solution's steps, from the first step that ends in a number which the reference solution does not have.

Left out: judging another way to the answer than the reference's where the answer is wrong. Its first step
counts as the first error, although the true one may come later.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property

from stepalign.critics.arithmetic import equations, reference
from stepalign.critics.arithmetic import sum_terms as tally
from stepalign.critics.arithmetic.expressions import Expression
from stepalign.critics.arithmetic.repair import Changes, recompute, replaced, written
from stepalign.critics.schema import trim
from stepalign.records import Problem, Rollout
from stepalign.trace import Section, Trace, boxed

_NUMERALS = (
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
)
_WORDS = {
    "half": Fraction(1, 2), "quarter": Fraction(1, 4), "third": Fraction(1, 3), "twice": Fraction(2),
    "double": Fraction(2), "triple": Fraction(3), "dozen": Fraction(12),
    **{word: Fraction(number) for number, word in enumerate(_NUMERALS, start=1)},
}  # fmt: skip
_COMMON = {Fraction(number) for number in (0, 1, 2, 100)}
"""Numbers that a computation may need although nobody stated them."""
_MAX_CANDIDATES = 12
_MAX_STEPS = 40
"""What the search for a miscopied number may take."""


@dataclass(frozen=True)
class Correction:
    """A solution from its first wrong step on."""

    step: int
    """Counted as critiques count."""
    reason: str
    pieces: tuple[str, ...]
    """The corrected step, then what follows."""


@dataclass(frozen=True)
class Attempt:
    """A rollout with what its correction needs to know."""

    problem: Problem
    rollout: Rollout
    trace: Trace

    @cached_property
    def sections(self) -> tuple[Section, ...]:
        """What a critique judges: the steps, then the final answer."""
        return self.trace.steps if self.trace.answer_section is None else (*self.trace.steps, self.trace.answer_section)

    @cached_property
    def texts(self) -> tuple[str, ...]:
        """The sections' texts."""
        return tuple(map(self.trace.content, self.sections))

    @cached_property
    def truncated(self) -> bool:
        """Whether it ran out of tokens before an answer."""
        return self.rollout.finish == "length" and not boxed(self.rollout.text)

    @cached_property
    def complete(self) -> int:
        """How many sections from the first are complete: a truncated rollout's last is not."""
        cut = self.truncated and bool(self.sections) and self.sections[-1].end == len(self.rollout.text)
        return len(self.sections) - cut

    @cached_property
    def steps(self) -> tuple[str, ...]:
        """The texts of the complete steps."""
        return self.texts[: min(len(self.trace.steps), self.complete)]

    @cached_property
    def false(self) -> dict[int, tuple[Expression, Expression]]:
        """For each complete section with a false equation, counted from 1, the first one."""
        links = {k: false_link(text) for k, text in enumerate(self.texts[: self.complete], start=1)}
        return {k: link for k, link in links.items() if link is not None}

    @cached_property
    def usable(self) -> bool:
        """Whether it has steps, and nothing false before them."""
        first = self.trace.sections[0] if self.trace.sections else None
        preamble = self.trace.content(first) if first is not None and first.kind == "preamble" else ""
        return bool(self.trace.steps) and false_link(preamble) is None

    @cached_property
    def given(self) -> frozenset[Fraction]:
        """The numbers of the problem's statement, in digits or in words."""
        words = {_WORDS[word] for word in self.problem.statement.lower().replace("-", " ").split() if word in _WORDS}
        return frozenset(number.value for number in equations.numbers(self.problem.statement)) | words

    @cached_property
    def answer(self) -> Fraction | None:
        """The reference answer's value, where it is a number."""
        return equations.value(self.problem.answer)

    def final(self) -> str:
        """A final-answer section with the reference answer, in the solver's words where these are safe."""
        text = self.texts[-1] if self.trace.answer_section is not None and not self.truncated else ""
        boxes = boxed(text)
        old = equations.value(boxes[-1]) if boxes else None
        if old is not None and self.answer is not None and len(boxes) == 1 and min(old, self.answer) >= 0:
            new = replaced(text, {old: self.answer})
            known = self.given | {self.answer}
            if old != self.answer and all(number.value in known for number in equations.numbers(new)):
                return new
        return f"### Final Answer:\n\\boxed{{{self.problem.answer}}}"


def correct(attempt: Attempt) -> Correction | None:
    """The correction of a wrong or truncated solution; None where there is no way to the answer."""
    if attempt.usable and not attempt.truncated:
        found = _recomputed(attempt) or _recopied(attempt)
        if found:
            return found
    return _taken_over(attempt)


def justify(attempt: Attempt) -> Correction | None:
    """A right answer with its first false equation mended.

    The mended value is carried on, or else stays alone; None where the steps then do not end in the answer.
    """
    k = min(attempt.false)
    mended = recompute(attempt.texts[k - 1], {}, attempt.given)[0]
    alone = (mended, *attempt.texts[k:])
    carried = _recomputed(attempt)
    if carried is None and _reaches(attempt, alone):
        return Correction(k, _is(attempt.false[k]), alone)
    return carried


def false_link(text: str) -> tuple[Expression, Expression] | None:
    """The first equation in a text that does not hold."""
    return next((link for chain in equations.find(text) for link in chain.false_links()), None)


def _recomputed(attempt: Attempt) -> Correction | None:
    if not attempt.false:
        return None
    k = min(attempt.false)
    pieces = next(_carried(attempt, k, {}), None)
    return Correction(k, _is(attempt.false[k]), pieces) if pieces else None


def _recopied(attempt: Attempt) -> Correction | None:
    if tally.terms(attempt.problem.meta) or len(attempt.steps) > _MAX_STEPS:
        return None
    known = attempt.given | _COMMON | reference.values(attempt.problem.solution)
    earlier: list[Fraction] = []
    for k, text in enumerate(attempt.steps, start=1):
        chains = equations.find(text)
        operands = [
            literal.value
            for chain in chains
            for part in chain.parts
            if part.computes and part.judged
            for literal in part.literals
        ]
        results = [chain.result for chain in chains if chain.result is not None]
        there = known | set(earlier) | set(results)
        unknown = next((value for value in operands if value not in there), None)
        if unknown is not None:
            stated = [number.value for number in equations.numbers(attempt.problem.statement)]
            for candidate in list(dict.fromkeys([*stated, *earlier]))[:_MAX_CANDIDATES]:
                for pieces in _carried(attempt, k, {unknown: candidate}):
                    return Correction(k, "a number in it is neither in the problem nor an earlier result.", pieces)
            return None
        if k in attempt.false:
            return None
        earlier += results
    return None


def _carried(attempt: Attempt, k: int, changes: Changes) -> Iterator[tuple[str, ...]]:
    """The sections from k on with changed values carried through, if they then reach the answer."""
    first, after = recompute(attempt.texts[k - 1], changes, attempt.given)
    if trim(first) == trim(attempt.texts[k - 1]):
        return
    for protected in (attempt.given, frozenset[Fraction]()):
        pieces, changes = [first], after
        for section, text in zip(attempt.sections[k:], attempt.texts[k:], strict=True):
            kept = frozenset[Fraction]() if section.kind == "answer" else protected
            piece, changes = recompute(text, changes, kept)
            pieces.append(piece)
        if _reaches(attempt, pieces):
            ended = attempt.trace.answer_section is not None or boxed("".join(pieces))
            yield tuple(pieces if ended else [*pieces, attempt.final()])
        if not changes.keys() & attempt.given:
            return  # nothing was protected


def _reaches(attempt: Attempt, pieces: Sequence[str]) -> bool:
    """Whether the sections from some step on end in the reference answer, and compute it."""
    answer = attempt.answer
    results = (reference.result(piece) for piece in reversed(pieces))
    computed = next((value for value in results if value is not None), None)
    if computed is not None and answer is not None and computed not in (answer, answer / 100):
        return False
    boxes = boxed("".join(pieces))
    if boxes:
        value = equations.value(boxes[-1])
        return value == answer if value is not None else boxes[-1].strip() == attempt.problem.answer.strip()
    if attempt.trace.answer_section is not None:
        last = equations.numbers(pieces[-1])
        return bool(last) and last[-1].value == answer
    return computed is not None and computed == answer


@dataclass(frozen=True)
class _Way:
    """How many of the solver's steps are kept, and the steps from there to the final answer."""

    kept: int
    rest: Sequence[str]
    reason: str


def _taken_over(attempt: Attempt) -> Correction | None:
    """The solver's steps as far as they can be kept, then the rest of the way."""
    steps = _mended(attempt) if attempt.usable else []
    if steps and attempt.answer is not None and reference.result(steps[-1]) == attempt.answer:
        ways = [_Way(len(steps), [], "the final answer is missing.")]
    else:
        ways = [way for way in (_by_terms(attempt, steps), _by_reference(attempt, steps)) if way is not None]
    if not ways:
        return None
    # Of equal ways the first: a sum goes on in the solver's manner. Without any, the reference is followed.
    way = max(ways, key=lambda way: way.kept) if attempt.usable else ways[-1]
    k = way.kept + 1
    pieces = (*way.rest, attempt.final())
    first = min(attempt.false, default=k) if attempt.usable else k
    if first < k:
        return Correction(first, _is(attempt.false[first]), (*steps[first - 1 : way.kept], *pieces))
    if k == len(attempt.sections) and attempt.truncated:
        return Correction(k, "it is unfinished.", pieces)
    if k > len(attempt.steps) and attempt.trace.answer_section is not None:
        return Correction(
            k,
            "the solution is not finished." if way.rest else f"the final answer is {attempt.problem.answer}.",
            pieces,
        )
    return Correction(k, way.reason, pieces)


def _mended(attempt: Attempt) -> list[str]:
    """The complete steps with their equations made true."""
    steps = list(attempt.steps)
    changes: Changes = {}
    for index in range(min(attempt.false, default=len(steps) + 1) - 1, len(steps)):
        steps[index], changes = recompute(steps[index], changes, attempt.given)
    return steps


def _by_terms(attempt: Attempt, steps: Sequence[str]) -> _Way | None:
    terms = tally.terms(attempt.problem.meta)
    if terms is None:
        return None
    left, kept = terms, 0
    for step in steps:
        after = tally.after(left, step)
        if after is None:
            break
        left, kept = after, kept + 1
    # The nearest steps before show the solver's manner best; a step with a wrong number still shows it.
    examples = [*reversed(steps[:kept]), *steps[kept:]]
    rest = tally.remaining(left, _next_number(attempt, kept), examples)
    return _Way(kept, rest, "it adds a number that is not there to be added.")


def _by_reference(attempt: Attempt, steps: Sequence[str]) -> _Way | None:
    solution = attempt.problem.solution
    if "<<" not in attempt.rollout.text:
        solution = _ANNOTATION.sub("", solution)
    if not solution.strip():
        return None
    known = reference.values(solution)
    obtained: set[Fraction] = set()
    kept = 0
    for step in steps:
        value, stated = reference.result(step), equations.numbers(step)
        if value is not None and value not in known:
            break
        if value is None and stated and stated[-1].value not in known | attempt.given | obtained:
            break  # what cannot be computed must at least end in a number that somebody knows
        obtained |= set() if value is None else {value}
        kept += 1
    number = _next_number(attempt, kept)
    rest = [step.numbered(at) for at, step in enumerate(reference.remaining(solution, obtained), start=number)]
    return _Way(kept, rest, "it does not lead to the answer.")


def _next_number(attempt: Attempt, kept: int) -> int:
    """The number that the step after the kept ones has."""
    last = attempt.trace.steps[kept - 1].number if kept else None
    return (last or kept) + 1


def _is(link: tuple[Expression, Expression]) -> str:
    """What a computation gives, without what the solver took it for."""
    computed, stated = link if link[0].computes else link[::-1]
    text, value = " ".join(computed.text.split()), computed.values()[0]
    shown, read = written(value, stated.literals[0])
    if len(text) > _LONGEST_REASON:
        return "an equation in it does not hold."
    return f"{text} is {'' if read == value else 'about '}{shown}."


_ANNOTATION = re.compile(r"<<[^<>]*>>")
_LONGEST_REASON = 80
