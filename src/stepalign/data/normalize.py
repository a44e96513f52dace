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
from typing import Any

from pydantic import JsonValue, ValidationError

from stepalign.errors import StepalignError
from stepalign.io import explain, short
from stepalign.records import Problem

NAMED = 1000
"""Rows named for each reason; the others are only counted (OpenMathReasoning has millions)."""
_EXACT = 2**53
"""Up to here every whole number is a float of its own."""


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A row of a source, before anything about it is decided."""

    where: str
    """The row's place in its source, for messages: `train.jsonl, line 17`."""
    id: str
    statement: str
    answer: str
    solution: str = ""
    source: str = ""
    meta: dict[str, JsonValue] = field(default_factory=dict)
    rejected: str | None = None
    """The reason of the source's own filter."""


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """A source's problems, in its order."""

    problems: tuple[Problem, ...]
    dropped: dict[str, int]
    """Rows left out, by reason: `empty statement`, `missing answer`, `duplicate`, `pass rate`."""
    places: dict[str, list[str]]
    """Their places in the source, by reason: the first `NAMED` of each."""


def text(row: Mapping[str, Any], column: str, where: str, *, numbers: bool = False) -> str:
    """Return a column's text; null is empty. `numbers` takes a number as text too (72.0 becomes 72); NaN is empty.

    Raises:
        StepalignError: the column is missing (naming those present) or holds something else.
    """
    if column not in row:
        raise StepalignError(f"{where}: no column {column!r}; columns present: {', '.join(row) or 'none'}")
    value = row[column]
    match value:
        case None | str():
            return value or ""
        case int() if numbers and not isinstance(value, bool):
            return str(value)
        case float() | Decimal() if numbers and math.isnan(value):
            return ""
        case float() | Decimal() if numbers and math.isfinite(value):
            is_whole = isinstance(value, float) and value.is_integer() and abs(value) <= _EXACT
            return str(int(value) if is_whole else value)
    expected = "text or a number" if numbers else "text"
    raise StepalignError(f"{where}: column {column!r}: {expected} is wanted, found {short(value)}")


def collect(name: str, candidates: Iterable[Candidate], limit: int | None = None) -> Loaded:
    """Keep the first of equal problems that have a statement and an answer.

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
        if not row.statement.strip():
            reason = "empty statement"
        elif not row.answer.strip():
            reason = "missing answer"
        elif digest in place_of_statement:
            reason, place = "duplicate", f"{place} (as {place_of_statement[digest]})"
        else:
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
        texts = {key: getattr(row, key).strip() for key in ("statement", "answer", "solution")}
        try:
            problems.append(Problem(id=row.id, source=row.source, meta=row.meta, **texts))
        except ValidationError as error:
            raise StepalignError(f"{row.where}: not a problem: {explain(error)}") from None
        if len(problems) == limit:
            break
    if not problems:
        reasons = ", ".join(f"{count} {reason}" for reason, count in dropped.items()) or "it is empty"
        raise StepalignError(f"{name}: no problems left: {reasons}")
    return Loaded(problems=tuple(problems), dropped=dropped, places=places)


def statement_digest(statement: str) -> bytes:
    """Return 16 bytes that are the same for equal statements, and the same in every run."""
    normalized = " ".join(unicodedata.normalize("NFC", statement).split())
    return hashlib.blake2b(normalized.encode(errors="surrogatepass"), digest_size=16).digest()
