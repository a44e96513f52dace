"""The source `python`: rows that a Python function returns, or that were given in Python.

    stepalign.train(recipe, problems=frame, columns={"statement": "question"})

A row is a dict, read like a row of a file, or a `Problem`.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from stepalign import config, python_objects
from stepalign.config import PythonObject
from stepalign.data.columns import ColumnReader
from stepalign.data.normalize import Candidate
from stepalign.errors import StepalignError
from stepalign.records import Problem


def candidates(source: config.PythonSourceConfig, *, name: str = "problem") -> Iterator[Candidate]:
    """Yield the rows as candidates. Without an id column an id is `name` and the row, counted from 1.

    Raises:
        StepalignError: the function fails or returns no rows, or a row is no dict and no `Problem`.
    """
    rows: Any = source.function.value
    if not isinstance(rows, list):
        function = python_objects.load(source.function, "problems.train.function")
        try:
            rows = function() if callable(function) else function
        except Exception as error:  # the user's own code
            raise StepalignError(f"problems: {source.function.name} failed: {error!r}") from error
        rows = PythonObject.of_rows(rows).value
    with ColumnReader(name, source.columns, "python") as reader:
        for number, row in enumerate(rows, start=1):
            where = f"problems, row {number}"
            if isinstance(row, Problem):
                yield Candidate(where=where, **vars(row))
            elif isinstance(row, Mapping):
                yield reader.candidate(number, where, row)
            else:
                raise StepalignError(f"{where}: a dict or a stepalign.Problem is wanted, found {row!r:.80}")
