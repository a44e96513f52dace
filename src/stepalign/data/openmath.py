"""`nvidia/OpenMathReasoning`: the paper's problems, mostly solved by a 72B model with tools.

A row is one generated solution; a problem has many, and the first in the data set's order is its reference
solution, without the reasoning before `</think>`. `pass_rate_72b_tir` is text: a number, or `n/a` where the
pass rate is not known, which passes no bound.

The split is streamed: `datasets` would otherwise download all four splits (50 GB) before the first row, and
with a limit only the beginning of one is needed. A whole pass over `cot` still reads 3.2 million solutions:
run `stepalign select` once and train on the file it writes.
"""

from collections.abc import Iterator
from typing import Any

from stepalign import config
from stepalign.data.files import hub_rows
from stepalign.data.normalize import Candidate, statement_digest, text
from stepalign.errors import StepalignError

DATASET = "nvidia/OpenMathReasoning"
_OTHERWISE = (
    "Where there is no network, get the split as Parquet elsewhere and name it as a file: "
    'source = "file", path = "….parquet", '
    'columns = { statement = "problem", answer = "expected_answer", solution = "generated_solution" }'
)


def candidates(source: config.OpenMathConfig, dataset: str = DATASET) -> Iterator[Candidate]:
    """Yield a split's rows as candidates. An id comes from the statement: the same in every split and release.

    Args:
        source: the split and the bound.
        dataset: the name on the hub, or a local folder with the same columns.

    Raises:
        StepalignError: the data set cannot be reached, has no such split or has other columns.
    """
    for _, where, row in hub_rows(dataset, split=source.split, streaming=True, otherwise=_OTHERWISE):
        yield candidate(row, where, source.min_pass_rate)


def candidate(row: dict[str, Any], where: str, min_pass_rate: float) -> Candidate:
    """Return one row as a candidate, rejected where its pass rate is unknown or not above the bound."""
    statement = text(row, "problem", where)
    solution = _known(text(row, "generated_solution", where))
    rate = text(row, "pass_rate_72b_tir", where)
    return Candidate(
        where=where,
        id=f"openmath-{statement_digest(statement).hex()[:16]}",
        statement=statement,
        answer=_known(text(row, "expected_answer", where)),
        solution=solution.rpartition("</think>")[2],
        source=f"{DATASET}/{text(row, 'problem_source', where)}",
        meta={
            "pass_rate_72b_tir": rate,
            "problem_type": text(row, "problem_type", where),
            "generation_model": text(row, "generation_model", where),
        },
        rejected=None if _rate(rate, where) > min_pass_rate else "pass rate",
    )


def _known(value: str) -> str:
    return "" if value == "n/a" else value


def _rate(value: str, where: str) -> float:
    """Return the pass rate as a number; an unknown one is below every bound."""
    if not _known(value):
        return -1.0
    try:
        return float(value)
    except ValueError:
        raise StepalignError(f"{where}: pass_rate_72b_tir: a number or n/a is wanted, found {value!r}") from None
