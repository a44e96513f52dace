"""Problems from any local JSONL or Parquet file, with a column map.

    [problems.train]
    source = "file"
    path = "algebra.jsonl"
    columns = { statement = "question", answer = "target", solution = "worked" }

A file that `stepalign select` wrote needs no column map: its lines are `Problem` records and are taken whole,
id, source and meta included. Left out: compressed files, folders and globs.
"""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow
from pyarrow import parquet

from stepalign import config
from stepalign.data import columns as column
from stepalign.data.loaded import Candidate
from stepalign.errors import StepalignError
from stepalign.records import Problem

_DEFAULT = config.ColumnsConfig()
_RECORD = {part.name for part in dataclasses.fields(Problem)}


def rows(path: Path) -> Iterator[tuple[int, str, dict[str, Any]]]:
    """A file's rows: number (lines and rows are counted from 1), place for messages, values by column.

    Raises:
        StepalignError: naming the file and line, where it is missing, of another kind or damaged.
    """
    readers = {".jsonl": _json_lines, ".parquet": _parquet_rows}
    if path.suffix not in readers:
        raise StepalignError(f"{path}: a file ending in {' or '.join(readers)} is wanted, found {path.suffix!r}")
    try:
        yield from readers[path.suffix](path)
    except OSError as error:
        raise StepalignError(f"{path}: cannot be read: {error.strerror or error}") from None


def candidates(source: config.FileConfig) -> Iterator[Candidate]:
    """A file's rows as candidates. Without an id column an id is the file's stem and the line or row.

    The default column `solution` may be absent (the problems then have no reference solution); one that the
    recipe names must be there.

    Raises:
        StepalignError: naming file, line, column, what was found and the columns that are there.
    """
    names = source.columns
    for number, where, row in rows(source.path):
        whole_record = names == _DEFAULT and row.keys() == _RECORD
        no_solution = not names.solution or (names.solution == _DEFAULT.solution and names.solution not in row)
        identity = "id" if whole_record else names.id
        yield Candidate(
            where=where,
            id=f"{source.path.stem}-{number}" if identity is None else column.text_or_number(row, identity, where),
            statement=column.text(row, names.statement, where),
            answer=column.text_or_number(row, names.answer, where),
            solution="" if no_solution else column.text(row, names.solution, where),
            source=column.text(row, "source", where) if whole_record else source.path.name,
            meta=row["meta"] if whole_record else {},
        )


def _json_lines(path: Path) -> Iterator[tuple[int, str, dict[str, Any]]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            where = f"{path}, line {number}"
            try:
                row = json.loads(line)
            except ValueError as error:
                raise StepalignError(f"{where}: not JSON: {error}") from None
            if not isinstance(row, dict):
                raise StepalignError(f"{where}: a JSON object is wanted, found a {type(row).__name__}")
            yield number, where, row


def _parquet_rows(path: Path) -> Iterator[tuple[int, str, dict[str, Any]]]:
    number = 0
    with path.open("rb") as file:
        try:
            for batch in parquet.ParquetFile(file).iter_batches(batch_size=1024):
                for row in batch.to_pylist():
                    number += 1
                    yield number, f"{path}, row {number}", row
        except pyarrow.ArrowException as error:
            raise StepalignError(f"{path}: not a readable Parquet file: {error}") from None
