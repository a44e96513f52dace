"""What a source gives: checked problems without duplicates, and what was left out, where it stood and why.

Every source turns its rows into candidates, whose texts may be empty; `collect` is the one place that decides
which of them are problems. Left out: repairing anything. A row is taken as it is, or counted and named.
"""

import hashlib
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass, field

from pydantic import JsonValue, ValidationError

from stepalign.errors import StepalignError
from stepalign.io import explain
from stepalign.records import Problem

NAMED = 1000
"""Rows that are named for each reason; those beyond are only counted (OpenMathReasoning has millions)."""


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
    """The reason why the source's own filter leaves it out."""


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """A source's problems, in its order."""

    problems: tuple[Problem, ...]
    dropped: dict[str, int]
    """Rows left out, counted by reason: `empty statement`, `missing answer`, `duplicate`, `pass rate`."""
    places: dict[str, list[str]]
    """Where they stand in the source, by reason: the first `NAMED` of each."""


def collect(name: str, candidates: Iterable[Candidate], limit: int | None = None) -> Loaded:
    """Keep the first of equal problems that have a statement and an answer.

    Two statements are equal if they are after Unicode normalization (NFC) and with runs of white space as one
    space; case counts, since x and X may be two things. No row is read after the one that fills the limit.

    Args:
        name: the source, for messages.
        candidates: the source's rows.
        limit: take at most this many problems; None takes all.

    Raises:
        StepalignError: where two problems have one id, where a row holds what a record cannot (naming it),
            and where nothing is left (with the counts).
    """
    problems: list[Problem] = []
    places: dict[str, list[str]] = {}
    dropped: dict[str, int] = {}
    first: dict[bytes, str] = {}
    place_of: dict[str, str] = {}

    def drop(reason: str, place: str) -> None:
        dropped[reason] = dropped.get(reason, 0) + 1
        named = places.setdefault(reason, [])
        if len(named) < NAMED:
            named.append(place)

    for candidate in candidates:
        key = statement_digest(candidate.statement)
        if not candidate.statement.strip():
            drop("empty statement", candidate.where)
        elif not candidate.answer.strip():
            drop("missing answer", candidate.where)
        elif key in first:
            drop("duplicate", f"{candidate.where} (as {first[key]})")
        elif candidate.rejected is not None:
            first[key] = candidate.where
            drop(candidate.rejected, candidate.where)
        else:
            first[key] = candidate.where
            if candidate.id in place_of:
                raise StepalignError(
                    f"{candidate.where}: id {candidate.id!r} is already that of {place_of[candidate.id]}, "
                    "which is another problem"
                )
            place_of[candidate.id] = candidate.where
            problems.append(_problem(candidate))
            if len(problems) == limit:
                break
    if not problems:
        reasons = ", ".join(f"{count} {reason}" for reason, count in dropped.items()) or "it is empty"
        raise StepalignError(f"{name}: no problems left: {reasons}")
    return Loaded(problems=tuple(problems), dropped=dropped, places=places)


def statement_digest(statement: str) -> bytes:
    """16 bytes that are the same for equal statements, and the same in every run."""
    normalized = " ".join(unicodedata.normalize("NFC", statement).split())
    return hashlib.blake2b(normalized.encode(errors="surrogatepass"), digest_size=16).digest()


def _problem(candidate: Candidate) -> Problem:
    try:
        return Problem(
            id=candidate.id,
            statement=candidate.statement.strip(),
            answer=candidate.answer.strip(),
            solution=candidate.solution.strip(),
            source=candidate.source,
            meta=candidate.meta,
        )
    except ValidationError as error:
        raise StepalignError(f"{candidate.where}: not a problem: {explain(error)}") from None
