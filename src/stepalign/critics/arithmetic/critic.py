"""Critic without a model: check the arithmetic, copy the correct steps, repair the first wrong one.

For rollouts whose steps hold equations: generated sums, word problems like GSM8K's. The case follows arXiv 2606.11173,
Appendix B: a right answer without a false equation is A, with one B; a truncated rollout is C, a wrong answer D. Every
critique ends in the reference answer and never quotes the wrong step. A rollout without such a critique is a failure.
Each step after the first error is judged by its own arithmetic alone, as in the paper's example, except that a wrong
final answer is never correct. Three ways to correct a solution are tried in this order:

1. *Recompute*: repair the first false equation in the solver's own text and carry the new value on (`repair`).
2. *Recopy*: replace a number that neither the problem, the reference solution nor an earlier step has by one of theirs,
   and carry it on.
3. *Continue*: keep the solver's steps as long as they can be part of a solution, with repaired equations. A sum goes on
   with its remaining terms, any other problem with the reference solution's steps, from the first step
   whose result the reference solution does not have.

Left out: judging another way to the answer than the reference's where the answer is wrong, because arithmetic cannot
tell it from a wrong setup. Its first step counts as the first error, although the true error may come later.
"""

from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from functools import cached_property
from time import perf_counter
from typing import NamedTuple

from stepalign import config
from stepalign.critics.arithmetic.chains import Link
from stepalign.critics.arithmetic.continuation import (
    Continuation,
    by_reference,
    by_terms,
    known_values,
    problem_terms,
    remaining_steps,
)
from stepalign.critics.arithmetic.equations import (
    evaluate,
    false_links,
    find_equations,
    find_numbers,
    last_result,
)
from stepalign.critics.arithmetic.expressions import ANNOTATION
from stepalign.critics.arithmetic.quantities import CONSTANTS
from stepalign.critics.arithmetic.repair import Changes, format_like, recompute
from stepalign.critics.location import counted_sections, is_truncated
from stepalign.critics.schema import compose, original, trim
from stepalign.critics.validation import ValidatedCritic
from stepalign.records import Case, CriticResult, Critique, CritiqueFailure, Problem, Rollout, Verdict
from stepalign.rewards import Grader
from stepalign.trace import boxed, parse

NAME = "program"

_NUMBER_WORDS = {
    "half": Fraction(1, 2), "quarter": Fraction(1, 4), "third": Fraction(1, 3), "twice": Fraction(2),
    "double": Fraction(2), "triple": Fraction(3), "dozen": Fraction(12),
    "one": Fraction(1), "two": Fraction(2), "three": Fraction(3), "four": Fraction(4), "five": Fraction(5),
    "six": Fraction(6), "seven": Fraction(7), "eight": Fraction(8), "nine": Fraction(9), "ten": Fraction(10),
    "eleven": Fraction(11), "twelve": Fraction(12),
}  # fmt: skip
_MAX_CANDIDATES, _MAX_STEPS = 12, 40
"""Bounds of the search for a miscopied number."""
_MAX_NUMBERS = 4_000
"""Numbers of a rollout that is corrected, and terms of its sum."""
_MAX_REASON = 80
"""Characters of an equation in a reason."""


class Correction(NamedTuple):
    """Solution from its first wrong section on, counted from 1: the corrected section and those after it."""

    step: int
    reason: str
    pieces: tuple[str, ...]


class Attempt:
    """Rollout with the facts that its correction needs.

    `sections` are what a critique judges, the steps and the final answer, and `texts` their texts; `steps` are the
    texts of complete steps. `is_truncated` is true without an answer; then the last section is not complete. `given`
    has the problem's numbers (`stated`) and its number words. `answer` is None where it is not a number.
    """

    def __init__(self, problem: Problem, rollout: Rollout) -> None:
        self.problem, self.rollout, self.trace = problem, rollout, parse(rollout.text, rollout.response_start)
        self.sections = counted_sections(self.trace)
        self.texts = tuple(map(self.trace.content, self.sections))
        self.is_truncated = is_truncated(rollout)
        is_cut = self.is_truncated and bool(self.sections) and self.sections[-1].end == len(rollout.text)
        self.num_complete = len(self.sections) - is_cut
        self.steps = self.texts[: min(len(self.trace.steps), self.num_complete)]
        words = _NUMBER_WORDS.keys() & problem.statement.lower().replace("-", " ").split()
        self.stated = [number.value for number in find_numbers(problem.statement)]
        self.given = frozenset([*self.stated, *(_NUMBER_WORDS[word] for word in words)])
        self.answer = evaluate(problem.answer)

    @cached_property
    def false_links(self) -> dict[int, Link]:
        """First false equation of each complete section that has one, by section counted from 1."""
        links = ((k, false_links(text)) for k, text in enumerate(self.texts[: self.num_complete], start=1))
        return {k: false[0] for k, false in links if false}

    @cached_property
    def is_usable(self) -> bool:
        """True if it has steps, and no false equation before them."""
        return bool(self.trace.steps) and not false_links(self.trace.text[: self.trace.steps[0].start])

    @cached_property
    def reference(self) -> str:
        """The reference solution, with annotations only where the solver writes them as well."""
        solution = self.problem.solution
        return solution if "<<" in self.rollout.text else ANNOTATION.sub("", solution)

    def number_after(self, kept: int) -> int:
        """Return the heading number of the step after the kept ones."""
        last = self.trace.steps[kept - 1].number if kept else None
        return (last or kept) + 1

    def final_section(self) -> str:
        """Return a final-answer section with the reference answer, if possible in the solver's words."""
        text = self.texts[-1] if self.trace.answer_section is not None and not self.is_truncated else ""
        boxes = boxed(text)
        old = evaluate(boxes[-1]) if len(boxes) == 1 else None
        if old is not None and self.answer is not None and min(old, self.answer) >= 0:
            new, _ = recompute(text, {old: self.answer})
            known = self.given | {self.answer}
            if old != self.answer and all(number.value in known for number in find_numbers(new)):
                return new
        return f"### Final Answer:\n\\boxed{{{self.problem.answer}}}"


class ProgramCritic:
    """Critic that answers each attempt at once, in the order of the attempts."""

    name = NAME

    @classmethod
    def from_config(cls, settings: config.ProgramCriticConfig, *, grader: Grader, **_: object) -> ValidatedCritic:
        """Build the critic of a recipe, with its checks."""
        return ValidatedCritic(cls(), settings, grader)

    def critique(self, attempts: Iterable[tuple[Problem, Rollout]]) -> Iterator[CriticResult]:
        """Yield one answer per attempt."""
        return (critique(problem, rollout) for problem, rollout in attempts)


def critique(problem: Problem, rollout: Rollout) -> CriticResult:
    """Criticize one graded rollout.

    A failure's reason is `no way to the answer`, `too long` where it has more numbers than can be corrected
    in about a second, `not silent` where the critique would have to quote the wrong step, or `no steps` for a problem
    of another trace format.
    """
    if detail := other_format(rollout):
        return CritiqueFailure(rollout_id=rollout.id, critic=NAME, reason="no steps", detail=detail)
    start, attempt = perf_counter(), Attempt(problem, rollout)
    case: Case = "A"
    correction = None
    if not rollout.correct or (attempt.is_usable and attempt.false_links):
        numbers = len(find_numbers(rollout.text)) + len(problem_terms(problem.meta) or ())
        if numbers > _MAX_NUMBERS:
            detail = f"it has {numbers:,} numbers and terms, at most {_MAX_NUMBERS:,} are corrected"
            return CritiqueFailure(rollout_id=rollout.id, critic=NAME, reason="too long", detail=detail)
        case = "B" if rollout.correct else "C" if attempt.is_truncated else "D"
        correction = justify(attempt) if case == "B" else correct(attempt)
        if correction is None:
            reason, detail = "no way to the answer", "neither its own steps nor a reference solution lead there"
            return CritiqueFailure(rollout_id=rollout.id, critic=NAME, reason=reason, detail=detail)
    answer = to_critique(attempt, case, correction, seconds=perf_counter() - start)
    if correction is None or correction.step > attempt.num_complete:
        return answer  # an unfinished step is not wrong: the completed step may begin with it
    if trim(attempt.texts[correction.step - 1]).strip() in answer.text:
        detail = f"step {correction.step} would be quoted"
        return CritiqueFailure(rollout_id=rollout.id, critic=NAME, reason="not silent", detail=detail)
    return answer


def other_format(rollout: Rollout) -> str:
    """Name the trace format of a rollout that is not in the step format; empty for one that is."""
    found = rollout.trace_format
    return "" if found == "steps" else f"the problem's trace_format is {found!r}, and only 'steps' is read"


def to_critique(
    attempt: Attempt, case: Case, correction: Correction | None, *, critic: str = NAME, seconds: float = 0.0
) -> Critique:
    """Write the critique of an attempt. Without a correction (case A) every step is correct."""
    correct_part, corrected_step, continuation = trim(attempt.rollout.text), "", ""
    if correction is not None:
        correct_part = original(attempt.trace, correction.step) if attempt.is_usable else ""
        corrected_step, *rest = map(trim, correction.pieces)
        separator = attempt.texts[0][len(trim(attempt.texts[0])) :] if len(attempt.texts) > 1 else ""
        continuation = (separator or "\n\n").join(rest)
    verdicts = _verdicts(attempt, correction)
    text = compose(case, verdicts, correct_part, corrected_step, continuation)
    return Critique(
        rollout_id=attempt.rollout.id, critic=critic, case=case, verdicts=verdicts, correct_part=correct_part,
        corrected_step=corrected_step, continuation=continuation, text=text, seconds=seconds,
    )  # fmt: skip


def _verdicts(attempt: Attempt, correction: Correction | None) -> tuple[Verdict, ...]:
    reasons: dict[int, str] = {}
    if correction is not None:
        reasons[correction.step] = correction.reason
        for k in range(correction.step + 1, len(attempt.sections) + 1):
            if attempt.sections[k - 1].kind == "answer" and not attempt.rollout.correct:
                reasons[k] = f"it rests on Step {correction.step}."
            elif k > attempt.num_complete:
                reasons[k] = "it is unfinished."
            elif k in attempt.false_links:
                reasons[k] = "an equation in it does not hold."
    count = max(len(attempt.sections), *reasons, 1)
    return tuple(Verdict(step=k, correct=k not in reasons, reason=reasons.get(k, "")) for k in range(1, count + 1))


def correct(attempt: Attempt) -> Correction | None:
    """Correct a wrong or truncated solution; None where no way leads to the reference answer."""
    is_finished = attempt.is_usable and not attempt.is_truncated
    return (is_finished and (_recompute(attempt) or _recopy(attempt))) or _continue(attempt)


def correct_from(attempt: Attempt, step: int, reason: str) -> Correction | None:
    """Correct a wrong or truncated solution from a given section on.

    The solver's own text is recomputed if that mends this very section. Otherwise the reference solution's steps
    follow, those whose results the solver has left out. None without a reference solution.
    """
    if attempt.is_usable and not attempt.is_truncated:
        own = next((found for mend in (_recompute, _recopy) if (found := mend(attempt)) and found.step == step), None)
        if own:
            return own
    kept = attempt.steps[: step - 1] if attempt.is_usable else ()
    solution = attempt.reference
    if not solution.strip():
        return None
    obtained = {result for text in kept if (result := last_result(text)) is not None}
    steps = remaining_steps(solution, obtained, attempt.number_after(len(kept)))
    return Correction(step, reason, (*steps, attempt.final_section()))


def justify(attempt: Attempt) -> Correction | None:
    """Repair the first false equation of a right solution.

    The new value is carried on, or else stays alone. None where the steps then do not end in the answer.
    """
    if carried := _recompute(attempt):
        return carried
    k = min(attempt.false_links)
    alone = (recompute(attempt.texts[k - 1], {}, attempt.given)[0], *attempt.texts[k:])
    return Correction(k, _reason(attempt.false_links[k]), alone) if _reaches_answer(attempt, alone) else None


def _recompute(attempt: Attempt) -> Correction | None:
    if not attempt.false_links:
        return None
    k = min(attempt.false_links)
    pieces = _carry(attempt, k, {})
    return Correction(k, _reason(attempt.false_links[k]), pieces) if pieces else None


def _recopy(attempt: Attempt) -> Correction | None:
    if problem_terms(attempt.problem.meta) or len(attempt.steps) > _MAX_STEPS:
        return None
    known = attempt.given | CONSTANTS | known_values(attempt.problem.solution)
    earlier: list[Fraction] = []
    for k, text in enumerate(attempt.steps, start=1):
        chains = find_equations(text)
        parts = (part for chain in chains for part in chain.parts if part.computes and part.is_certain)
        results = [chain.result for chain in chains if chain.result is not None]
        sources = known.union(earlier, results)
        unknown = next((n.value for part in parts for n in part.literals if n.value not in sources), None)
        if unknown is not None:
            for candidate in list(dict.fromkeys([*attempt.stated, *earlier]))[:_MAX_CANDIDATES]:
                if pieces := _carry(attempt, k, {unknown: candidate}):
                    return Correction(k, "a number in it is neither in the problem nor an earlier result.", pieces)
            return None
        if k in attempt.false_links:
            return None
        earlier += results
    return None


def _carry(attempt: Attempt, k: int, changes: Changes) -> tuple[str, ...] | None:
    """Repair section k and carry its new values on. None if that does not reach the answer."""
    first, after = recompute(attempt.texts[k - 1], changes, attempt.given)
    if trim(first) == trim(attempt.texts[k - 1]):
        return None
    for protected in (attempt.given, frozenset[Fraction]()):
        pieces, changes = [first], after
        for section, text in zip(attempt.sections[k:], attempt.texts[k:], strict=True):
            piece, changes = recompute(text, changes, frozenset() if section.kind == "answer" else protected)
            pieces.append(piece)
        if _reaches_answer(attempt, pieces):
            has_end = attempt.trace.answer_section is not None or boxed("".join(pieces))
            return tuple(pieces if has_end else [*pieces, attempt.final_section()])
    return None


def _reaches_answer(attempt: Attempt, pieces: Sequence[str]) -> bool:
    """Tell whether sections end in the reference answer, and compute it."""
    answer = attempt.answer
    computed = next((value for piece in reversed(pieces) if (value := last_result(piece)) is not None), None)
    if computed is not None and answer is not None and computed not in (answer, answer / 100):
        return False
    if boxes := boxed("".join(pieces)):
        value = evaluate(boxes[-1])
        return value == answer if value is not None else boxes[-1].strip() == attempt.problem.answer.strip()
    if attempt.trace.answer_section is not None:
        numbers = find_numbers(pieces[-1])
        return bool(numbers) and numbers[-1].value == answer
    return computed is not None and computed == answer


def _continue(attempt: Attempt) -> Correction | None:
    """Keep the solver's steps as far as possible and add the remaining ones."""
    own = list(attempt.steps) if attempt.is_usable else []
    changes: Changes = {}
    for index in range(min(attempt.false_links, default=len(own) + 1) - 1, len(own)):
        own[index], changes = recompute(own[index], changes, attempt.given)
    if own and attempt.answer is not None and last_result(own[-1]) == attempt.answer:
        options = [Continuation(len(own), [], "the final answer is missing.")]
    else:
        terms, solution = problem_terms(attempt.problem.meta), attempt.reference
        options = [by_terms(terms, own, attempt.number_after)] if terms else []
        options += [by_reference(solution, own, attempt.given, attempt.number_after)] if solution.strip() else []
    if not options:
        return None
    # Of equal ones the first: a sum goes on in the solver's style. Without usable steps the reference is followed.
    kept, steps, reason = max(options, key=lambda option: option.num_kept) if attempt.is_usable else options[-1]
    k, pieces = kept + 1, (*steps, attempt.final_section())
    first = min(attempt.false_links, default=k) if attempt.is_usable else k
    if first < k:
        return Correction(first, _reason(attempt.false_links[first]), (*own[first - 1 : k - 1], *pieces))
    if k == len(attempt.sections) and attempt.is_truncated:
        reason = "it is unfinished."
    elif k > len(attempt.steps) and attempt.trace.answer_section is not None:
        reason = "the solution is not finished." if steps else f"the final answer is {attempt.problem.answer}."
    return Correction(k, reason, pieces)


def _reason(link: Link) -> str:
    """State the value of a computation, without the false value of the solver."""
    computed, stated = link if link[0].computes else link[::-1]
    text, value = " ".join(computed.text.split()), computed.values()[0]
    shown, rounded = format_like(value, stated.literals[0])
    about = "" if rounded == value else "about "
    return f"{text} is {about}{shown}." if len(text) <= _MAX_REASON else "an equation in it does not hold."
