"""A probe's numbers and texts, packed for the page: one block a rollout, unpacked only when it is shown.

A block is base64 of zlib of

    uint32 size │ head, JSON of that size │ zeros to a multiple of 4 │ arrays

with everything little endian. The head names each array by its number: where it begins after the head
(`at`, bytes), its `length` in numbers and its `type`. Arrays that are equal, as the student's are under every
context, are there once. Log-probabilities (`log`) are uint16 multiples of `UNIT` nats below zero, so a number
on the page is within `UNIT` / 2 of the record's, a credit within `UNIT`, and what is less than −`FLOOR` nats
reads as that. Token ids become dense ids into one table of texts: uint16 (`u2`) where it is small enough.

Left out: anything that the page computes from these (credit is a difference of two arrays).
"""

import base64
import json
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from stepalign.records import TopTokens

UNIT = 0.001
"""Nats."""
FLOOR = 65_535 * UNIT

_TYPES = {"log": "<u2", "u2": "<u2", "u4": "<u4"}


class Table:
    """Token texts by dense ids, in the order in which they were first asked for."""

    def __init__(self, texts: Mapping[int, str]) -> None:
        self._texts = texts
        self._dense: dict[int, int] = {}

    def dense(self, token: int) -> int:
        """The dense id of a token id."""
        return self._dense.setdefault(token, len(self._dense))

    @property
    def texts(self) -> list[str]:
        """The texts by dense id; for a token whose text nobody gave, its id."""
        return [self._texts.get(token, f"⟨{token}⟩") for token in self._dense]

    @property
    def bound(self) -> int:
        """More than any dense id so far, and than any that the tokens with a text will get."""
        return max(len(self._texts), len(self._dense)) + 1


class Arrays:
    """The arrays of one block; equal ones are kept once."""

    def __init__(self) -> None:
        self._numbers: dict[tuple[str, bytes], int] = {}

    def logs(self, values: Sequence[float]) -> int:
        """Keep log-probabilities, and return the array's number."""
        return self._keep("log", np.clip(np.rint(-np.asarray(values, dtype=float) / UNIT), 0, 65_535))

    def ids(self, values: Sequence[int], bound: int) -> int:
        """Keep dense ids, all below `bound`, and return the array's number."""
        return self._keep("u2" if bound <= 65_536 else "u4", np.asarray(values))

    def _keep(self, kind: str, values: np.ndarray) -> int:
        content = values.astype(_TYPES[kind]).tobytes()
        return self._numbers.setdefault((kind, content), len(self._numbers))

    def write(self) -> tuple[list[dict[str, Any]], bytes]:
        """What the head says of the arrays, and their bytes."""
        directory, content = [], bytearray()
        for kind, numbers in self._numbers:
            length = len(numbers) // np.dtype(_TYPES[kind]).itemsize
            directory.append({"at": len(content), "length": length, "type": kind})
            content += numbers + bytes(-len(numbers) % 4)
        return directory, bytes(content)


def pack_top(top: Sequence[TopTokens], table: Table, arrays: Arrays) -> dict[str, int] | None:
    """Lists of likeliest tokens as two arrays with `size` entries a token; None where there are none.

    A list that is shorter than the longest ends with its last entry again.
    """
    size = max(map(len, top), default=0)
    if size == 0 or min(map(len, top)) == 0:
        return None
    entries = [entry for tokens in top for entry in (*tokens, *[tokens[-1]] * (size - len(tokens)))]
    ids = [table.dense(token) for token, _ in entries]
    return {"ids": arrays.ids(ids, table.bound), "logs": arrays.logs([log for _, log in entries]), "size": size}


def block(head: Mapping[str, Any], arrays: Arrays) -> str:
    """A rollout's block."""
    directory, content = arrays.write()
    start = to_json({**head, "arrays": directory}).encode()
    return encode(len(start).to_bytes(4, "little") + start + bytes(-(4 + len(start)) % 4) + content)


def encode(content: bytes) -> str:
    """Bytes as base64 of zlib."""
    return base64.b64encode(zlib.compress(content, 9)).decode()


def to_json(value: object) -> str:
    """JSON in ASCII: lone surrogates and U+2028 are escaped, whatever reads it."""
    return json.dumps(value, ensure_ascii=True, separators=(",", ":"), allow_nan=False)


def script_json(value: object) -> str:
    """JSON that can stand in a script element: no `<`, so neither `</script>` nor `<!--`."""
    return to_json(value).replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
