"""Rows of a data set on the Hugging Face hub, through `datasets`."""

from collections.abc import Iterator
from typing import Any

import datasets

from stepalign.errors import StepalignError


def rows(
    dataset: str, *, config: str | None = None, split: str, streaming: bool, otherwise: str
) -> Iterator[tuple[int, str, dict[str, Any]]]:
    """The rows of one split: number (counted from 0, as the hub does), place for messages, values by column.

    Args:
        dataset: a name on the hub, or a local folder laid out like one.
        config: the data set's configuration; None takes the only one.
        split: one of its splits.
        streaming: read rows over the network as they are asked for, instead of downloading every split first.
        otherwise: what to do where the hub cannot be reached, for the message.

    Raises:
        StepalignError: where the data set cannot be reached or has no such split.
    """
    try:
        loaded = datasets.load_dataset(dataset, config, split=split, streaming=streaming)
        for number, row in enumerate(loaded):
            yield number, f"{dataset}, {split}, row {number}", row
    except OSError as error:
        raise StepalignError(f"{dataset} cannot be read from the Hugging Face hub: {error}. {otherwise}") from None
    except ValueError as error:
        raise StepalignError(f"{dataset}, split {split!r}: {error}") from None
