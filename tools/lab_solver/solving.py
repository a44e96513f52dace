"""Solutions of sums with slips: the texts that the lab's solver imitates.

A solver that never errs has nothing to learn, and one that cannot add learns nothing in a few dozen steps. So the texts
hold slips at a stated rate: a result whose ones or tens are off by one. Some are corrected at once, in the same step,

    ### Step 2: Add 11 and 9
    11 + 9 = 10
    Wait: 11 + 9 = 20

and all others are carried on consistently: the next steps use the wrong number. A right result is never corrected.

One rule makes use of a context, the same for every context: an equation that stands in it with its right result is
slipped at the rate `SHOWN` instead of `ALONE`. Nothing else depends on the context.
"""

from collections.abc import Sequence, Set
from dataclasses import dataclass
from random import Random

from stepalign.lab.behaviour import DERIVATIONS, operations

__all__ = ["ALONE", "DERIVATIONS", "SHOWN", "SlipRates", "write"]


@dataclass(frozen=True, kw_only=True)
class SlipRates:
    """Chance that a result is slipped, and chance that a slip is corrected at once."""

    slip: float
    correction: float


ALONE = SlipRates(slip=0.36, correction=0.33)
"""For an equation that no context shows."""
SHOWN = SlipRates(slip=0.03, correction=0.75)
"""For an equation that the context shows."""


def write(
    terms: Sequence[int], derivation: str, random: Random | None = None, shown: Set[str] = frozenset()
) -> tuple[str, int]:
    """Write a solution in the paper's format, and return it with its answer.

    Args:
        terms: positive.
        derivation: one of `DERIVATIONS`.
        random: decides on slips; without it there are none.
        shown: equations that the context shows with their right results.
    """
    values = list(terms)
    sections = []
    for number, (left, right) in enumerate(operations(derivation, len(terms)), start=1):
        a, b = values[left], values[right]
        result, equation = a + b, f"{a} + {b} = {a + b}"
        lines = [f"### Step {number}: Add {a} and {b}"]
        rates = SHOWN if equation in shown else ALONE
        if random is not None and random.random() < rates.slip:
            slipped = _slip(result, random)
            lines.append(f"{a} + {b} = {slipped}")
            if random.random() < rates.correction:
                lines.append(f"Wait: {equation}")
            else:
                result = slipped
        else:
            lines.append(equation)
        values.append(result)
        sections.append("\n".join(lines))
    return "\n\n".join([*sections, f"### Final Answer:\n\\boxed{{{values[-1]}}}"]), values[-1]


def _slip(result: int, random: Random) -> int:
    return result + random.choice([-1, 1, 10] + [-10] * (result > 10))
