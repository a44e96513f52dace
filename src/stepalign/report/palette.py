"""Looks of curves and stages: one colour for a stage, a condition or a context, from picture to picture.

Colours are Okabe and Ito's, safe for the colour-blind. Curves differ in colour, line style and marker, so that they
stay apart in black and white.
"""

import re
from collections.abc import Iterable
from itertools import count
from typing import Any

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
LINES: tuple[Any, ...] = ("-", "--", "-.", ":", (0, (6, 2, 1, 2, 1, 2)), (0, (1, 3)))
MARKERS = ("o", "s", "^", "D", "v", "X")

STAGES = {"sample": 0, "critique": 1, "teacher": 2, "student": 3, "optimizer": 4, "base": 5}
"""The number of a stage's colour."""
_KNOWN = {
    **STAGES,
    "stepalign": 0,
    "refsol": 1,
    "grpo": 2,
    "quoted": 3,
    "past": 4,
    "verdicts": 5,
    # The colour of the condition that it varies, with a line style that none of the six above has with it.
    "stepalign-reverse": 18,
    "refsol-reverse": 19,
    "stepalign-prefix": 24,
    "refsol-prefix": 25,
}


def look(number: int) -> tuple[str, Any, str]:
    """Return colour, line style and marker of a number. Past the sixth, colours repeat with other lines."""
    style = (number + number // len(COLOURS)) % len(LINES)
    return COLOURS[number % len(COLOURS)], LINES[style], MARKERS[style]


def numbers(labels: Iterable[str]) -> dict[str, int]:
    """Return the number of each label of a picture.

    Known names have the numbers of `_KNOWN`, others the first colours that are left, in order. The folder of the lab's
    contexts, that of a shipped recipe (`real-refsol`) and a run's seed are no part of a name.
    """
    labels, found = list(labels), dict[str, int]()
    for label in labels:
        number = _KNOWN.get(re.sub(r"^(lab/|(code|paper|real|related)-)|-\d+$", "", label))
        if number is not None and number not in found.values():
            found[label] = number
    for label in labels:
        if label not in found:
            colours = {number % len(COLOURS) for number in found.values()}
            found[label] = next(
                number
                for number in count()
                if number not in found.values() and (number >= len(COLOURS) or number not in colours)
            )
    return found
