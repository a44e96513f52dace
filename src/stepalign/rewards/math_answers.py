"""Mathematical answers: equality, and a canonical form. One call, one process.

A rollout's format extracts its answers (`trace.final_answers`). Several that are not equal are `ambiguous`, which is
wrong.

Equal strings are equal before anything is evaluated. Other answers are read as typed values (`values`), with sympy
beneath, which can hang or fill the memory on a few characters: `rewards.math` calls `judge` in processes that it can
kill. Left out: answers in prose, partial credit.
"""

from collections.abc import Sequence
from typing import Literal

from stepalign.rewards import notation, values
from stepalign.rewards.reading import read

Outcome = Literal["correct", "wrong", "missing", "ambiguous", "timeout", "error"]


def judge(reference: str, answers: Sequence[str]) -> tuple[Outcome, str]:
    """Compare a response's answers with the reference. The last one counts if it is equal to the others.

    Returns:
        The outcome, and the answer in a canonical form that equal answers share. A correct answer has the
        reference's text.
    """
    *others, answer = answers
    if not all(_equal(answer, other) for other in others):
        return "ambiguous", ""
    plain = _plain(reference)
    if _equal(reference, answer):
        return "correct", plain
    own = _canonical(reference, answer)
    return "wrong", own if own != plain else f"{own} (wrong)"


def _equal(reference: str, answer: str) -> bool:
    return _plain(reference) == _plain(answer) or values.same(read(reference), read(answer))


def _canonical(reference: str, answer: str) -> str:
    """Return the key of a value; its text where a number is too long to be written.

    Beside a reference without a name the name of an answer is none of its meaning, and is left out.
    """
    value = read(answer)
    if isinstance(value, values.Named) and not isinstance(read(reference), values.Named):
        value = value.value
    try:
        return value.key
    except ValueError:
        return _plain(answer)


def _plain(answer: str) -> str:
    """Return cleaned text; spaces stay between two numbers or two words."""
    return notation.plain(notation.clean(answer))
