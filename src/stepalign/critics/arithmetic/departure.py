"""The first step at which a wrong solution leaves the way to the answer, by its reference solution.

A step is under suspicion for each of these reasons, and the first such step is the wrong one:

- an equation in it does not hold;
- it computes a quantity that the reference's derivation does not reach (`derivation`), from which the solution does not
  come back to one that it has;
- it has a number of unknown origin;
- it goes on computing behind the answer;
- the answer comes out if the step's result is replaced by another quantity of the reference: the step stopped at a part
  of it, or computed something else. A false equation explains a wrong answer better.

Without any of them it is the step that computed the stated answer, else the last one. A step that a formula in words
sets up is blamed on the formula; a sum with one term too many on the step that stated the term.

Left out: the meaning of words. A true equation for the wrong thing is found only by its use.
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from fractions import Fraction
from functools import cached_property
from typing import NamedTuple

from stepalign.critics.arithmetic.derivation import Derivation
from stepalign.critics.arithmetic.equations import evaluate, false_links, find_numbers
from stepalign.critics.arithmetic.quantities import CONSTANTS, Computation, Quantity, Sources, computations, compute
from stepalign.records import Problem
from stepalign.trace import boxed

_WORDS = {
    "half": Fraction(1, 2), "quarter": Fraction(1, 4), "third": Fraction(1, 3), "triple": Fraction(3),
    "dozen": Fraction(12),
}  # fmt: skip
_MAX_REPLACED = 60
"""Computations whose results are tried to be replaced."""
_NEAR = Fraction(1, 200)
"""Relative distance of a rounded number."""
_FORMULA = re.compile(r"([A-Za-z][A-Za-z {}\\_]{0,60})\}?[ \t]{0,3}=")


class Departure(NamedTuple):
    """The first wrong step, counted from 1, and its fault in words that do not quote it."""

    step: int
    reason: str
    is_guess: bool = False
    """No rule found it: it is the step that gave the answer."""


class _Placed(NamedTuple):
    """A computation of a step."""

    step: int
    computation: Computation
    fits: bool = False


def first_departure(problem: Problem, steps: Sequence[str], *, is_whole: bool = True) -> Departure | None:
    """Return the first wrong step of a solution whose answer is wrong.

    Args:
        problem: with its reference solution.
        steps: the solution's steps in order, a final answer among them.
        is_whole: the solution has its end. Of a part, None where nothing is wrong.

    Without a computation in the reference solution, equations and the origin of numbers alone decide.
    """
    return _Solution(problem, steps).departure(is_whole=is_whole)


class _Solution:
    def __init__(self, problem: Problem, steps: Sequence[str]) -> None:
        self.steps, self.reference = steps, Derivation(problem.statement, problem.solution, problem.answer)
        sources = Sources(problem.statement, self.reference.sources)
        placed = [_Placed(k, one) for k, text in enumerate(steps, start=1) for one in computations(text, sources)]
        # Without a derivation nothing can depart from it.
        is_comparable = bool(self.reference.quantities)
        self.placed = [one._replace(fits=not is_comparable or self._fits(one.computation)) for one in placed]
        for place in reversed(range(len(placed))):
            if not self.placed[place].fits and self._comes_back(place):
                self.placed[place] = self.placed[place]._replace(fits=True)
        words = re.findall(r"[a-z]+", problem.statement.lower())
        self.known = sources.given | {_WORDS[word] for word in words if word in _WORDS} | CONSTANTS
        self.known |= self.reference.stated | self.reference.values
        self.numbers = [{number.value for number in find_numbers(text)} for text in steps]

    def departure(self, *, is_whole: bool) -> Departure | None:
        unfit = next((one for one in self.placed if not one.fits), None)
        false = next((k for k, text in enumerate(self.steps, start=1) if false_links(text)), None)
        unknown = self._unknown()
        suspects = [
            Departure(step, reason)
            for step, reason in (
                (unfit and unfit.step, "it does not lead to the answer."),
                (false, "an equation in it does not hold."),
                (unknown, "a number in it is neither in the problem nor an earlier result."),
                (is_whole and self._behind_answer(), "the answer was there before it."),
                (
                    is_whole and not false and self._replaceable(),
                    "its result is not what the rest of the solution needs.",
                ),
            )
            if step
        ]
        first = min(suspects, key=lambda suspect: suspect.step, default=None)
        if first is None:
            return Departure(self._last(), "it does not state the answer.", is_guess=True) if is_whole else None
        if unfit and first.step == unfit.step and (origin := self._origin_of_term(unfit)):
            return Departure(origin, "its result is not what the rest of the solution needs.")
        if first.step == (unfit.step if unfit else unknown) and self._is_set_up(first.step):
            return Departure(first.step - 1, "its formula does not lead to the answer.")
        return first

    def _fits(self, computation: Computation) -> bool:
        return any(one.residue in self.reference.reachable or one.is_trivial for one in computation.variants)

    def _comes_back(self, place: int) -> bool:
        """Tell whether a later computation uses a result and gives a quantity that the reference computes."""
        own = {one.residue for one in self.placed[place].computation.variants}
        earlier = [one for before in self.placed[:place] for one in before.computation.variants]
        residues, values = {one.residue for one in earlier}, {one.value for one in earlier}
        return any(
            one.origins & own
            and (one.residue in self.reference.computed or one.value in self.reference.values)
            and one.residue not in residues | self.reference.sources.residues
            and one.value not in values
            for after in self.placed[place + 1 :]
            for one in after.computation.variants
        )

    def _unknown(self) -> int | None:
        """Return the first step with a number that is neither known nor computed, rounded numbers aside."""
        seen = set(self.known)
        for k, numbers in enumerate(self.numbers, start=1):
            here = [one for one in self.placed if one.step == k]
            results = {part.value for one in here for v in one.computation.variants for part in v.written()}
            results -= {number.value for one in here for v in one.computation.variants for number in v.numbers()}
            results |= {one.computation.stated for one in here}
            fitting = {n.value for one in here if one.fits for v in one.computation.variants for n in v.numbers()}
            allowed = seen | results | fitting
            exact = results | {one.computation.stated for one in self.placed if one.step <= k}
            if any(not _is_known(number, allowed, exact) for number in numbers):
                return k
            seen |= results | numbers
        return None

    def _behind_answer(self) -> int | None:
        """Return the first step that computes behind the answer, where the reference has that value only at its end."""
        answer = self.reference.answer
        if answer is None or self.reference.results.count(answer) != 1:
            return None
        residues = {one.residue for one in self.reference.quantities if one.value == answer}
        is_answer = [any(v.residue in residues for v in one.computation.variants) for one in self.placed]
        if not any(is_answer):
            return None
        reached = self.placed[is_answer.index(True)].step
        return next(
            (
                one.step
                for one, is_it in zip(self.placed, is_answer, strict=True)
                if one.step > reached and not is_it and not any(v.is_trivial for v in one.computation.variants)
            ),
            None,
        )

    def _replaceable(self) -> int | None:
        """Return the first step with a result that another quantity of the reference would turn into the answer."""
        end = self._end
        if end is None or self.reference.answer is None:
            return None
        for place, one in enumerate(self.placed[:end][:_MAX_REPLACED]):
            is_right = any(v.residue in self.reference.computed or v.is_trivial for v in one.computation.variants)
            for value in self.reference.values - {*one.computation.values}:
                if is_right and not any(self.reference.adds(value, old) for old in one.computation.values):
                    continue  # what the reference computes as well is wrong only as a part of a sum
                if self._result_with(place, value, end) == self.reference.answer:
                    return one.step
        return None

    @cached_property
    def _stated(self) -> Fraction | None:
        """The final answer as a number."""
        boxes = boxed("\n".join(self.steps))
        numbers = find_numbers(self.steps[-1])
        stated = evaluate(boxes[-1]) if boxes else None
        return numbers[-1].value if stated is None and numbers else stated

    @cached_property
    def _end(self) -> int | None:
        """The place of the last computation that gives the final answer."""
        places = [place for place, one in enumerate(self.placed) if self._stated in one.computation.values]
        return places[-1] if places else None

    def _last(self) -> int:
        """Return the step that computed the stated answer, if that is wrong, else the last step."""
        is_computed = self._end is not None and self._stated != self.reference.answer
        return self.placed[self._end].step if is_computed and self._end is not None else len(self.steps)

    @cached_property
    def _links(self) -> list[list[int | None]]:
        """For each number of each computation the earlier computation of that value."""
        links, last = [], dict[Fraction, int]()
        for place, (_, computation, _) in enumerate(self.placed):
            links.append([last.get(number.value) for number in computation.variants[0].numbers()])
            last |= dict.fromkeys(computation.values, place)
        return links

    def _result_with(self, place: int, value: Fraction, end: int) -> Fraction | None:
        """Return the last result if one computation had another value; None where it has no value."""
        values = {place: value}
        try:
            for later in range(place + 1, end + 1):
                links = self._links[later]
                if any(link in values for link in links):
                    values[later] = _recomputed(self.placed[later].computation.variants[0], iter(links), values)
        except ArithmeticError:
            return None
        return values.get(end)

    def _origin_of_term(self, unfit: _Placed) -> int | None:
        """Return the earlier step that stated the one wrong term of a sum: a term too many, or one not worked out."""
        own = _terms(unfit.computation.variants[0])
        for other in map(_terms, self.reference.quantities):
            extra, missing = list((own - other).elements()), list((other - own).elements())
            if len(own) < 2 or len(other) < 2 or len(extra) != 1 or not own & other or len(missing) > 1:
                continue
            term = abs(extra[0])
            stated = [k for k, numbers in enumerate(self.numbers[: unfit.step - 1], start=1) if term in numbers]
            is_computed = any(term in one.computation.values for one in self.placed if one.step <= unfit.step)
            is_unfinished = missing and not is_computed and self.reference.gives(abs(missing[0]), term)
            if stated and (is_unfinished or (not missing and own[extra[0]] > 1)):
                return stated[-1]
        return None

    def _is_set_up(self, step: int) -> bool:
        """Tell whether the step before computes nothing and has a formula for the same thing."""
        if step < 2 or any(one.step == step - 1 for one in self.placed):
            return False
        before, after = (
            {name.strip(" \\[(*").lower()[-25:] for name in _FORMULA.findall(text)}
            for text in self.steps[step - 2 : step]
        )
        return bool(before & after)


def _is_known(number: Fraction, allowed: set[Fraction], exact: set[Fraction]) -> bool:
    """Tell whether a number is among those allowed, as a percentage of one, or a rounded result."""
    if number in allowed or (number < 1 and number * 100 in allowed) or (number < 100 and number / 100 in allowed):
        return True
    return any(
        abs(number - one) <= abs(one) * _NEAR
        or (one.denominator != 1 and number.denominator == 1 and abs(number - one) < 1)
        for one in exact
    )


def _terms(quantity: Quantity) -> Counter[Fraction]:
    """Count the signed terms of a sum as written."""
    return Counter(sign * term.value for sign, term in quantity.terms(expand=False))


def _recomputed(quantity: Quantity, links: Iterator[int | None], values: dict[int, Fraction]) -> Fraction:
    if quantity.is_number or not quantity.operands:
        link = next(links)
        return quantity.value if link is None else values.get(link, quantity.value)
    left, right = (_recomputed(operand, links, values) for operand in quantity.operands)
    return compute(quantity.sign, left, right)
