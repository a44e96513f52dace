"""`nvidia/OpenMathReasoning`: the paper's problems, mostly solved by a 72B model with tools.

A row is one generated solution; a problem has many, and the first in the data set's order is its reference
solution. `pass_rate_72b_tir` is text: a number, or `n/a` where the pass rate is not known, which passes no bound.

The split is streamed: `datasets` would otherwise download all four splits (50 GB) before the first row, and
with a limit only the beginning of one is needed. A whole pass over `cot` still reads 3.2 million solutions:
run `stepalign select` once and train on the file it writes.
"""

from collections.abc import Iterator

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


def candidates(source: config.OpenMathConfig) -> Iterator[Candidate]:
    """Yield a split's rows. An id comes from the statement: the same in every split and release."""
    rows = hub_rows(source.dataset, split=source.split, streaming=True, otherwise=_OTHERWISE, revision=source.revision)
    for _, where, row in rows:
        statement, rate = text(row, "problem", where), text(row, "pass_rate_72b_tir", where)
        yield Candidate(
            where=where,
            id=f"openmath-{statement_digest(statement).hex()[:16]}",
            statement=statement,
            answer=_known(text(row, "expected_answer", where)),
            solution=_known(text(row, "generated_solution", where)),
            source=f"{DATASET}/{text(row, 'problem_source', where)}",
            meta={
                "pass_rate_72b_tir": rate,
                "problem_type": text(row, "problem_type", where),
                "generation_model": text(row, "generation_model", where),
            },
            rejected=None if _rate(rate, where) > source.min_pass_rate else "pass rate",
        )


def _known(value: str) -> str:
    return "" if value == "n/a" else value


def _rate(value: str, where: str) -> float:
    try:
        return float(_known(value) or -1)  # an unknown rate is below every bound
    except ValueError:
        raise StepalignError(f"{where}: pass_rate_72b_tir: a number or n/a is wanted, found {value!r}") from None
