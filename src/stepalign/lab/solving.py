"""Sums worked out with slips: how the lab's solver was taught to solve, and to err.

A solver that never errs has nothing to learn, and one that cannot add learns nothing in a few dozen steps. So the
texts that the lab's solver imitates hold slips at a stated rate, inside steps: a result whose ones or tens are off by
one. Some are noticed at once and mended in the same step,

    ### Step 2: Add 11 and 9
    11 + 9 = 10
    Wait: 11 + 9 = 20

and all others are carried on consistently: what follows works with the wrong number. A right result is never doubted.
So the solver knows what is right (it can be more careful), and its slips can be seen in its own text.

What a context shows is made use of by one rule, the same for every context: an equation that stands in it, with its
right result, is slipped `SHOWN.slips` of the time instead of `SINGLE.slips`. Nothing else depends on the context.
"""

import re
from collections.abc import Sequence, Set
from dataclasses import dataclass
from random import Random

WAYS = ("left to right", "right to left", "pairs")
"""The derivations, by the names of `problems.sums`."""


@dataclass(frozen=True, kw_only=True)
class Habit:
    """How often a result is slipped, and what share of the slips is mended at once."""

    slips: float
    mends: float


SINGLE = Habit(slips=0.36, mends=0.33)
"""Where nothing shows the equation."""
SHOWN = Habit(slips=0.03, mends=0.75)
"""Where the context shows it."""


def operations(way: str, terms: int) -> list[tuple[int, int]]:
    """The additions of a derivation, by place: first the terms, then each step's result."""
    if way == "left to right":
        return [(0, 1), *((terms + k, k + 2) for k in range(terms - 2))]
    if way == "right to left":
        return [(terms - 2, terms - 1), *((terms - 3 - k, terms + k) for k in range(terms - 2))]
    made: list[tuple[int, int]] = []
    level = list(range(terms))
    while len(level) > 1:
        joined = list(zip(level[::2], level[1::2], strict=False))
        level = [terms + len(made) + k for k in range(len(joined))] + level[len(joined) * 2 :]
        made += joined
    return made


def write(
    terms: Sequence[int], way: str, random: Random | None = None, shown: Set[str] = frozenset()
) -> tuple[str, int]:
    """A solution in the paper's format, and the answer that it comes to.

    Args:
        terms: positive.
        way: one of `WAYS`.
        random: decides on slips; without it there are none.
        shown: equations with their right results that the context shows.
    """
    values = list(terms)
    sections = []
    for number, (left, right) in enumerate(operations(way, len(terms)), start=1):
        a, b = values[left], values[right]
        equation = f"{a} + {b} = {a + b}"
        result = a + b
        lines = [f"### Step {number}: Add {a} and {b}"]
        habit = SHOWN if equation in shown else SINGLE
        if random is not None and random.random() < habit.slips:
            slipped = _slipped(result, random)
            lines.append(f"{a} + {b} = {slipped}")
            if random.random() < habit.mends:
                lines.append(f"Wait: {equation}")
            else:
                result = slipped
        else:
            lines.append(equation)
        values.append(result)
        sections.append("\n".join(lines))
    return "\n\n".join([*sections, f"### Final Answer:\n\\boxed{{{values[-1]}}}"]), values[-1]


def _slipped(result: int, random: Random) -> int:
    off = [-1, 1, 10] + [-10] * (result > 10)
    return result + random.choice(off)


@dataclass(frozen=True)
class Reading:
    """What a solution does, read from its equations."""

    equations: int
    """Corrections aside."""
    slips: int
    """Results that are wrong when they are first written."""
    unmended: int
    """Slips that nothing corrects."""
    on_the_way: bool
    """Whether it adds the numbers of one of the derivations, its own slips carried on."""


def read(text: str, terms: Sequence[int]) -> Reading:
    """Hold a solution against the derivations."""
    steps: list[tuple[int, int, int]] = []
    slips = mended = 0
    for doubted, *found in _EQUATION.findall(text):
        left, right, result = map(int, found)
        if doubted and steps:
            mended += sum(steps[-1][:2]) != steps[-1][2]
            steps[-1] = (left, right, result)
        else:
            slips += left + right != result
            steps.append((left, right, result))
    return Reading(len(steps), slips, slips - mended, any(_follows(steps, terms, way) for way in WAYS))


def _follows(steps: Sequence[tuple[int, int, int]], terms: Sequence[int], way: str) -> bool:
    values = [*terms, *(result for *_, result in steps)]
    pairs = operations(way, len(terms))
    return len(steps) == len(pairs) and all(
        (values[a], values[b]) == step[:2] for (a, b), step in zip(pairs, steps, strict=True)
    )


_EQUATION = re.compile(r"(Wait: )?(\d+) \+ (\d+) = (\d+)")
