"""Damage to files, as disks, editors and other programs leave it."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

WRONG: tuple[Any, ...] = (None, True, -1, 0.5, "x", [], {}, [[]], {"a": []}, 10**400, float("nan"), float("inf"))
"""JSON values, one of which is wrong anywhere."""


def bytes_damaged(content: bytes) -> Iterator[tuple[str, bytes]]:
    """A file's content in other forms, by name."""
    yield "empty", b""
    yield "truncated", content[: len(content) // 2]
    yield "not text", b"\xff\xfe\x00\x01" + content
    yield "zeros", b"\0" * len(content)
    yield "no JSON", b"not JSON\n"
    yield "deep", b"[" * 100_000 + b"\n"
    yield "surrogate", b'{"step": 1, "id": "\\ud800"}\n'
    for number in range(8 if content else 0):
        at = (2 * number + 1) * len(content) // 16
        yield f"flipped {number}", content[:at] + bytes([content[at] ^ 0x11]) + content[at + 1 :]


def values_damaged(value: Any, most: int = 400) -> Iterator[tuple[str, Any]]:
    """A JSON value with one value in it replaced, by place. Of a list the first and the last element are."""
    for where, damaged in _replaced(value, ""):
        yield where, damaged
        most -= 1
        if not most:
            return


def _replaced(value: Any, where: str) -> Iterator[tuple[str, Any]]:
    yield from ((f"{where} = {str(wrong)[:9]}", wrong) for wrong in WRONG)
    if isinstance(value, dict):
        for key in value:
            yield f"{where}.{key} missing", {name: one for name, one in value.items() if name != key}
            for name, inner in _replaced(value[key], f"{where}.{key}"):
                yield name, {**value, key: inner}
    if isinstance(value, list) and value:
        for place in {0, len(value) - 1}:
            for name, inner in _replaced(value[place], f"{where}[{place}]"):
                yield name, [*value[:place], inner, *value[place + 1 :]]


def damages(file: Path, most: int = 400) -> Iterator[tuple[str, Callable[[], object]]]:
    """Name and act of each damage to a file; for JSON also values of other types, in its last line."""
    content = file.read_bytes()
    for name, damaged in bytes_damaged(content):
        yield name, lambda damaged=damaged: file.write_bytes(damaged)
    yield "a folder", lambda: (file.unlink(), file.mkdir())
    if file.suffix in (".json", ".jsonl"):
        text = content.decode()
        lines = text.splitlines(keepends=True) if file.suffix == ".jsonl" else [text]
        if not lines:
            return
        for name, value in values_damaged(json.loads(lines[-1]), most):
            line = json.dumps(value) + "\n"
            yield name, lambda line=line: file.write_text("".join([*lines[:-1], line]))


def restore(file: Path, content: bytes) -> None:
    if file.is_dir():
        file.rmdir()
    file.write_bytes(content)
