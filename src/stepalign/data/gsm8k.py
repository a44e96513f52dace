"""`openai/gsm8k`, from the hub or from its raw JSONL: grade-school word problems with written solutions.

A row's answer is the solution, with calculator annotations like `<<48/2=24>>`, and a last line `#### 72`. The
reference solution is shown without either, the final answer without thousands separators.
"""

import re
from collections.abc import Iterator
from typing import Any

from stepalign import config
from stepalign.data import columns as column
from stepalign.data import files, hub
from stepalign.data.loaded import Candidate

DATASET = "openai/gsm8k"
_OTHERWISE = 'Where there is no network, name its raw file instead: source = "gsm8k", path = "train.jsonl"'
_ANNOTATION = re.compile(r"<<[^<>]*>>")


def candidates(source: config.Gsm8kConfig) -> Iterator[Candidate]:
    """The rows as candidates; an id is the split (of a raw file: its stem) and the row, counted from 0.

    Raises:
        StepalignError: where neither hub nor file can be read, or the columns are others.
    """
    if source.path is None:
        part: str = source.split
        rows = hub.rows(DATASET, config="main", split=part, streaming=False, otherwise=_OTHERWISE)
    else:
        part = source.path.stem
        rows = files.rows(source.path)
    for index, (_, where, row) in enumerate(rows):
        yield candidate(row, where, f"gsm8k-{part}-{index}")


def candidate(row: dict[str, Any], where: str, identity: str) -> Candidate:
    """One row `{"question": …, "answer": …}`."""
    solution, answer = split_answer(column.text(row, "answer", where))
    return Candidate(
        where=where,
        id=identity,
        statement=column.text(row, "question", where),
        answer=answer.replace(",", ""),
        solution=_ANNOTATION.sub("", solution),
        source=DATASET,
    )


def split_answer(text: str) -> tuple[str, str]:
    """A written solution and what follows its last `####`; the answer is empty where there is none."""
    solution, mark, answer = text.rpartition("####")
    return (solution.strip(), answer.strip()) if mark else (text.strip(), "")
