"""Generated sums, `Compute 47 + 38 - 15 + 62.`, with reference solutions in the paper's format.

A reference solution that always worked from left to right would coincide with the solver's own derivation.
Therefore each problem's seed selects one of the valid derivations:

- `left to right`, `right to left`: one term after the other;
- `pairs`: neighbours first, then neighbours of the results, and so on;
- `places`: ones, tens, hundreds … apart, then their totals.

No equation has a negative number. Where a part of the sum is negative, the derivation gives its size and a note
that it is still to be taken away.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from random import Random

from stepalign import config
from stepalign.data.normalize import Candidate
from stepalign.errors import StepalignError
from stepalign.seeding import derive_seed

_MAX_TRIES = 1000
"""Tries without a new problem after which a set counts as exhausted."""
_PLACES = ("ones", "tens", "hundreds", "thousands", "ten thousands", "hundred thousands")


@dataclass(frozen=True)
class Step:
    """One step of a derivation: its title, its equation, and the signed number it leaves."""

    title: str
    equation: str
    result: int

    @property
    def text(self) -> str:
        """The step's title, with a note where the result is negative."""
        return self.title if self.result >= 0 else f"{self.title} (still to be taken away)"


def candidates(source: config.SumsConfig) -> Iterator[Candidate]:
    """Yield `count` different sums; an id spells its sum. A longer set begins with the shorter of the same seed."""
    earlier: set[tuple[int, ...]] = set()
    for index in range(source.count):
        terms, derivation, steps = _sample(source, index, earlier)
        earlier.add(terms)
        spelled = _spelled(terms)
        yield Candidate(
            where=f"sums, seed {source.seed}, problem {index}",
            id="sums-" + spelled.replace(" ", ""),
            statement=f"Compute {spelled}.",
            answer=str(sum(terms)),
            solution=_written(steps, sum(terms)),
            source="sums",
            meta={"terms": list(terms), "derivation": derivation},
        )


def derivations(terms: Sequence[int]) -> dict[str, list[Step]]:
    """Return every derivation that these terms allow and that differs from the ones before it, by name.

    Args:
        terms: signed; every sum of the first k of them is at least 0.
    """
    different: dict[str, list[Step]] = {}
    for name, way in _WAYS.items():
        steps = way(list(terms))
        if steps and steps not in different.values():
            different[name] = steps
    return different


def _sample(
    source: config.SumsConfig, index: int, earlier: set[tuple[int, ...]]
) -> tuple[tuple[int, ...], str, list[Step]]:
    for attempt in range(_MAX_TRIES):
        random = Random(derive_seed(source.seed, "sums", index, attempt))
        terms: list[int] = []
        for _ in range(source.terms):
            size = random.randint(1, 10**source.digits - 1)
            taken_away = source.subtract and sum(terms) >= size and random.random() < 0.5
            terms.append(-size if taken_away else size)
        if tuple(terms) not in earlier and not (source.subtract and min(terms) > 0):
            name, steps = random.choice(list(derivations(terms).items()))
            return tuple(terms), name, steps
    raise StepalignError(
        f"sums: count = {source.count}, but after {len(earlier)} no new sum was found in {_MAX_TRIES} tries with "
        f"terms = {source.terms}, digits = {source.digits}, subtract = {str(source.subtract).lower()}"
    )


def _combined(left: int, right: int) -> Step:
    """Combine two signed numbers: add their sizes, or take the smaller from the larger."""
    big, small = (abs(left), abs(right)) if abs(left) >= abs(right) else (abs(right), abs(left))
    if (left < 0) == (right < 0):
        equation = f"{abs(left)} + {abs(right)} = {abs(left + right)}"
        return Step(f"Add {abs(left)} and {abs(right)}", equation, left + right)
    return Step(f"Take {small} from {big}", f"{big} - {small} = {big - small}", left + right)


def _left_to_right(terms: list[int]) -> list[Step]:
    totals = accumulate(terms)
    return [_combined(total, term) for total, term in zip(totals, terms[1:], strict=False)]


def _right_to_left(terms: list[int]) -> list[Step]:
    totals = accumulate(reversed(terms))
    return [_combined(term, total) for total, term in zip(totals, terms[-2::-1], strict=False)]


def _pairs(terms: list[int]) -> list[Step]:
    steps = []
    while len(terms) > 1:
        joined = [_combined(left, right) for left, right in zip(terms[::2], terms[1::2], strict=False)]
        steps += joined
        terms = [step.result for step in joined] + terms[len(joined) * 2 :]
    return steps


def _places(terms: list[int]) -> list[Step]:
    """Work place by place, the largest first; no steps where a place's running sum would be negative."""
    steps = []
    totals = []
    for power, place in reversed(list(enumerate(_PLACES))):
        digits = [abs(term) // 10**power % 10 * 10**power for term in terms]
        parts = [digit if term > 0 else -digit for digit, term in zip(digits, terms, strict=True) if digit]
        if any(total < 0 for total in accumulate(parts)):
            return []
        if len(parts) > 1:
            steps.append(Step(f"Work out the {place}", f"{_spelled(parts)} = {sum(parts)}", sum(parts)))
        if sum(parts):
            totals.append(sum(parts))
    return steps + _left_to_right(totals) if len(totals) > 1 else []


_WAYS: dict[str, Callable[[list[int]], list[Step]]] = {
    "left to right": _left_to_right,
    "right to left": _right_to_left,
    "pairs": _pairs,
    "places": _places,
}


def _spelled(terms: Sequence[int]) -> str:
    first, *rest = terms
    return str(first) + "".join(f" - {-term}" if term < 0 else f" + {term}" for term in rest)


def _written(steps: Sequence[Step], answer: int) -> str:
    """Write the paper's format (Appendix B): a heading for each step and for the final answer."""
    written = [f"### Step {number}: {step.text}\n{step.equation}" for number, step in enumerate(steps, start=1)]
    return "\n\n".join([*written, f"### Final Answer:\n\\boxed{{{answer}}}"])
