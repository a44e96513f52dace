"""Rows of JSONL and Parquet files and of hub data sets, and the sources `file` and `hub`.

    [problems.train]
    source = "file"
    path = "algebra.jsonl"
    columns = { statement = "question", answer = "target", solution = "worked" }

A file that `stepalign select` wrote needs no column map: its lines are `Problem` records and are taken whole.
JSONL is read line by line, because `datasets` turns numbers and dates of a column into one type, fills missing
columns, and takes seconds to import. Left out: compressed files, folders and globs.
"""

import dataclasses
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from stepalign import config
from stepalign.data.columns import ColumnReader
from stepalign.data.normalize import Candidate, WrittenFloat, text
from stepalign.errors import StepalignError
from stepalign.io import explain, home_expanded
from stepalign.records import Problem
from stepalign.unit_tests import UnitTests

Rows = Iterator[tuple[int, str, dict[str, Any]]]
"""Row number, place for messages, values by column."""

OTHERWISE = 'Where there is no network, name a local copy: a folder as `dataset`, or source = "file"'
_DEFAULT = config.ColumnsConfig()
_RECORD = {part.name for part in dataclasses.fields(Problem)}
_ADDED = {"tests", "trace_format"}
"""Fields of a record that older files lack."""


def candidates(source: config.FileConfig) -> Iterator[Candidate]:
    """Yield a file's rows as candidates. Without an id column an id is the file's stem and the line or row.

    Raises:
        StepalignError: naming file, line, column, what was found and the columns that are there.
    """
    with ColumnReader(source.path.stem, source.columns, source.path.name) as reader:
        for number, where, row in rows(source.path):
            if source.columns == _DEFAULT and _RECORD - _ADDED <= row.keys() <= _RECORD:
                texts = {name: text(row, name, where) for name in ("statement", "solution", "source")}
                numbers = {name: text(row, name, where, numbers=True) for name in ("id", "answer")}
                tests = _unit_tests(row.get("tests"), where)
                form = text(row, "trace_format", where) if "trace_format" in row else "steps"
                yield Candidate(where=where, meta=row["meta"], tests=tests, trace_format=form, **texts, **numbers)
            else:
                yield reader.candidate(number, where, row)


def hub_candidates(source: config.HubConfig) -> Iterator[Candidate]:
    """Yield the rows of a hub data set. Without an id column an id is the data set's name, the split and the row.

    Raises:
        StepalignError: the data set cannot be read; naming row, column, what was found and the columns that are there.
    """
    name = f"{source.dataset.rpartition('/')[2]}-{source.split}"
    with ColumnReader(name, source.columns, source.dataset) as reader:
        rows = hub_rows(
            source.dataset,
            config=source.config,
            split=source.split,
            streaming=source.streaming,
            otherwise=OTHERWISE,
            revision=source.revision,
        )
        for number, where, row in rows:
            yield reader.candidate(number, where, row)


def _unit_tests(value: Any, where: str) -> UnitTests | None:
    try:
        return TypeAdapter(UnitTests | None).validate_json(json.dumps(value))
    except ValidationError as error:
        raise StepalignError(f"{where}: column 'tests': not unit tests: {explain(error)}") from None


def rows(path: Path) -> Rows:
    """Yield a file's rows, counted from 1."""
    readers = {".jsonl": _json_lines, ".parquet": _parquet_rows}
    if path.suffix not in readers:
        raise StepalignError(f"{path}: a file ending in {' or '.join(readers)} is wanted, found {path.suffix!r}")
    try:
        yield from readers[path.suffix](path)
    except OSError as error:
        raise StepalignError(f"{path}: cannot be read: {error.strerror or error}") from None


def hub_rows(
    dataset: str,
    *,
    config: str | None = None,
    split: str,
    streaming: bool,
    otherwise: str,
    revision: str | None = None,
) -> Rows:
    """Yield the rows of one split of a hub data set, or of a folder like one, from 0.

    Args:
        dataset: its name or folder.
        config: the data set's configuration; None takes the only one.
        split: one of its splits.
        streaming: read rows over the network on demand, instead of downloading every split first.
        otherwise: what to do without the hub, for the message.
        revision: a commit, branch or tag.
    """
    import datasets

    with _hub_errors(dataset, otherwise, f", split {split!r}"):
        name = str(home_expanded(dataset)) if dataset.startswith("~") else dataset
        rows = datasets.load_dataset(name, config, split=split, streaming=streaming, revision=revision)
        for number, row in enumerate(rows):
            yield number, f"{dataset}, {split}, row {number}", row


def commit(source: config.HubSourceConfig) -> str | None:
    """Return the commit of a hub data set that its revision stands for now; None for a local folder or file."""
    import datasets

    if source.repository is None or home_expanded(source.repository[0]).is_dir():
        return None
    dataset, name = source.repository
    with _hub_errors(dataset, OTHERWISE):
        return str(datasets.load_dataset_builder(dataset, name, revision=source.revision).hash)


@contextmanager
def _hub_errors(dataset: str, otherwise: str, part: str = "") -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StepalignError(f"{dataset} cannot be read from the Hugging Face hub: {error}. {otherwise}") from None
    except ValueError as error:  # of a split or a configuration; `datasets` names those that are there
        raise StepalignError(f"{dataset}{part}: {error}") from None


def _json_lines(path: Path) -> Rows:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            where = f"{path}, line {number}"
            try:
                row = json.loads(line, parse_float=WrittenFloat)
            except (ValueError, RecursionError) as error:
                raise StepalignError(f"{where}: not JSON: {error}") from None
            if not isinstance(row, dict):
                raise StepalignError(f"{where}: a JSON object is wanted, found a {type(row).__name__}")
            yield number, where, row


def _parquet_rows(path: Path) -> Rows:
    import pyarrow
    from pyarrow import parquet

    with path.open("rb") as file:
        try:
            # An answer of 0.1 in 32 bits is 0.10000000149011612 in 64.
            batches = map(_with_shortest_floats, parquet.ParquetFile(file).iter_batches(batch_size=1024))
            table_rows = (row for batch in batches for row in batch.to_pylist())
            for number, row in enumerate(table_rows, start=1):
                yield number, f"{path}, row {number}", row
        except pyarrow.ArrowException as error:
            raise StepalignError(f"{path}: not a readable Parquet file: {error}") from None


def _with_shortest_floats(batch: Any) -> Any:
    """Widen the floats of 32 bits in a record batch to the shortest decimals that are them."""
    from pyarrow import compute, float64, string, types

    for index, part in enumerate(batch.schema):
        if types.is_float32(part.type):
            widened = compute.cast(compute.cast(batch.column(index), string()), float64())
            batch = batch.set_column(index, part.name, widened)
    return batch
