"""`openai/gsm8k`, from the hub or from its raw JSONL: grade-school word problems with written solutions.

A row's answer is the solution, with calculator annotations like `<<48/2=24>>`, and a last line `#### 72`. The
reference solution has neither, the final answer no thousands separators.
"""

import re
from collections.abc import Iterator
from typing import Any

from stepalign import config
from stepalign.data import files
from stepalign.data.normalize import Candidate, text

DATASET = "openai/gsm8k"
_OTHERWISE = 'Where there is no network, name its raw file instead: source = "gsm8k", path = "train.jsonl"'
_ANNOTATION = re.compile(r"<<[^<>]*>>")


def candidates(source: config.Gsm8kConfig) -> Iterator[Candidate]:
    """Yield the rows as candidates; an id is the split (of a raw file: its stem) and the row, counted from 0.

    Raises:
        StepalignError: neither hub nor file can be read, or the columns are others.
    """
    if source.path is None:
        part: str = source.split
        rows = files.hub_rows(DATASET, config="main", split=part, streaming=False, otherwise=_OTHERWISE)
    else:
        part = source.path.stem
        rows = files.rows(source.path)
    for index, (_, where, row) in enumerate(rows):
        yield candidate(row, where, f"gsm8k-{part}-{index}")


def candidate(row: dict[str, Any], where: str, identity: str) -> Candidate:
    """Return one row `{"question": …, "answer": …}` as a candidate."""
    solution, answer = split_answer(text(row, "answer", where))
    return Candidate(
        where=where,
        id=identity,
        statement=text(row, "question", where),
        answer=answer.replace(",", ""),
        solution=_ANNOTATION.sub("", solution),
        source=DATASET,
    )


def split_answer(written: str) -> tuple[str, str]:
    """Split a written solution from the answer after its last `####`, which is empty where there is none."""
    solution, mark, answer = written.rpartition("####")
    return (solution.strip(), answer.strip()) if mark else (written.strip(), "")
