"""Rows of a source to problems: checked, without duplicates, with counts of what is left out.

Every source turns its rows into candidates, whose texts may be empty. `collect` alone decides which of them are
problems. Left out: repairing rows, because a repaired problem is another problem.
"""

import hashlib
import math
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Self

from pydantic import JsonValue, ValidationError

from stepalign.data.damage import has_lost_backslash, without_thought
from stepalign.errors import StepalignError
from stepalign.io import explain, short
from stepalign.records import Problem
from stepalign.trace import trace_format
from stepalign.unit_tests import UnitTests

LOST_BACKSLASH = "LaTeX with single backslashes, which JSON reads as control characters"
UNFINISHED_THOUGHT = "unfinished thought in the solution"
NAMED = 1000
"""Rows named for each reason; the others are only counted (OpenMathReasoning has millions)."""
_MOST_DIGITS = 40
"""Larger and smaller numbers are written with a power of ten."""


class WrittenFloat(float):
    """A float with the digits that its file has."""

    def __new__(cls, written: str) -> Self:
        """Read a float's digits."""
        number = super().__new__(cls, written)
        number.written = written
        return number

    written: str


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A row of a source, before anything about it is decided."""

    where: str
    """The row's place in its source, for messages: `train.jsonl, line 17`."""
    id: str
    statement: str
    answer: str = ""
    solution: str = ""
    source: str = ""
    meta: dict[str, JsonValue] = field(default_factory=dict)
    tests: UnitTests | None = None
    trace_format: str = "steps"
    rejected: str | None = None
    """The reason of the source's own filter."""


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """A source's problems, in its order."""

    problems: tuple[Problem, ...]
    dropped: dict[str, int]
    """Rows left out, by reason (`docs/problems.md`)."""
    places: dict[str, list[str]]
    """Their places in the source, by reason: the first `NAMED` of each."""


def text(row: Mapping[str, Any], column: str, where: str, *, numbers: bool = False) -> str:
    """Return a column's text; null is empty. `numbers` takes a number as text too (72.0 becomes 72); NaN is empty.

    Raises:
        StepalignError: the column is missing (naming those present) or holds something else.
    """
    value = cell(row, column, where)
    match value:
        case None | str():
            return value or ""
        case int() if numbers and not isinstance(value, bool):
            return str(value)
        case float() | Decimal() if numbers and math.isnan(value):
            return ""
        case WrittenFloat() if numbers:
            return _digits(Decimal(value.written))
        case float() if numbers and math.isfinite(value):
            return _digits(Decimal(repr(value)))
        case Decimal() if numbers and value.is_finite():
            return _digits(value)
    expected = "text or a number" if numbers else "text"
    raise StepalignError(f"{where}: column {column!r}: {expected} is wanted, found {short(value)}")


def cell(row: Mapping[str, Any], column: str, where: str) -> Any:
    """Return a column's value, or raise an error that names the columns present."""
    if column not in row:
        raise StepalignError(f"{where}: no column {column!r}; columns present: {', '.join(row) or 'none'}")
    return row[column]


def _digits(number: Decimal) -> str:
    """Write a number as mathematicians do: 72.0 is `72`, 1e20 is a one with twenty zeros, 2.50 stays."""
    if not number:
        return "0"
    if abs(number.adjusted()) > _MOST_DIGITS:
        mantissa = number.scaleb(-number.adjusted()).normalize()
        return rf"{mantissa:f} \times 10^{{{number.adjusted()}}}"
    return str(int(number)) if number == number.to_integral_value() else f"{number:f}"


def collect(name: str, candidates: Iterable[Candidate], limit: int | None = None) -> Loaded:
    """Keep the first of equal problems that have a statement, and an answer or unit tests.

    Two statements are equal if they are after Unicode normalization (NFC) and with runs of white space as one
    space; case counts, since x and X may be two things. No row is read after the one that fills the limit.

    Raises:
        StepalignError: two problems have one id; a row holds what a record cannot; or nothing is left.
    """
    problems: list[Problem] = []
    places: dict[str, list[str]] = {}
    dropped: dict[str, int] = {}
    place_of_statement, place_of_id = dict[bytes, str](), dict[str, str]()
    for row in candidates:
        digest, place = statement_digest(row.statement), row.where
        reason, solution = _fault(row), ""
        if not reason and digest in place_of_statement:
            reason, place = "duplicate", f"{place} (as {place_of_statement[digest]})"
        elif not reason:
            reason, solution = _damage(row)
        if not reason:
            place_of_statement[digest] = place
            reason = row.rejected or ""
        if reason:
            dropped[reason] = dropped.get(reason, 0) + 1
            if dropped[reason] <= NAMED:
                places.setdefault(reason, []).append(place)
            continue
        if row.id in place_of_id:
            raise StepalignError(
                f"{place}: id {row.id!r} is already that of {place_of_id[row.id]}, which is another problem"
            )
        place_of_id[row.id] = place
        try:
            trace_format(row.trace_format)
            problem = Problem(
                id=row.id,
                statement=row.statement.strip(),
                answer=row.answer.strip(),
                solution=solution.strip(),
                trace_format=row.trace_format,
                source=row.source,
                meta=row.meta,
                tests=row.tests,
            )
            problems.append(problem)
        except ValidationError as error:
            raise StepalignError(f"{row.where}: not a problem: {explain(error)}") from None
        except StepalignError as error:
            raise StepalignError(f"{row.where}: {error}") from None
        if len(problems) == limit:
            break
    if not problems:
        reasons = ", ".join(f"{count} {reason}" for reason, count in dropped.items()) or "it is empty"
        raise StepalignError(f"{name}: no problems left: {reasons}")
    return Loaded(problems=tuple(problems), dropped=dropped, places=places)


def _fault(row: Candidate) -> str:
    if not row.statement.strip():
        return "empty statement"
    return "" if row.answer.strip() or row.tests else "missing answer"


def _damage(row: Candidate) -> tuple[str, str]:
    """Return the reason why a row's texts cannot be used, empty where they can, and its solution without thoughts."""
    if row.tests:  # a program has tabs and may name a mark of thoughts
        return "", row.solution
    solution = without_thought(row.solution)
    if has_lost_backslash(row.statement, row.answer, row.solution):
        return LOST_BACKSLASH, ""
    return ("", solution) if solution is not None else (UNFINISHED_THOUGHT, "")


def statement_digest(statement: str) -> bytes:
    """Return 16 bytes that are the same for equal statements, and the same in every run."""
    normalized = " ".join(unicodedata.normalize("NFC", statement).split())
    return hashlib.blake2b(normalized.encode(errors="surrogatepass"), digest_size=16).digest()
