"""Messages between processes that do not trust each other: JSON frames, and values of builtin types as JSON.

`pickle` and `marshal` are left out, because a program can forge their bytes to run code in the reader.
"""

import json
import socket
from collections.abc import Callable, Iterator
from decimal import Decimal
from fractions import Fraction
from itertools import islice
from typing import Any, NamedTuple

MAX_FRAME_BYTES = 16 * 2**20
_EXACT = 2**53
_MAX_ITEMS = 100_000
"""The most items that are taken from an iterator."""
_PLAIN = (bool, int, float, complex, str, bytes, bytearray, list, tuple, set, frozenset, dict, range, object, type)
_TYPES = {kind.__name__: kind for kind in _PLAIN}
"""Types that may be sent themselves, by name."""
_JSON: dict[type, Callable[[Any], Any]] = {str: str.__str__, int: int.__int__, float: float.__float__}
_Walk = Callable[[Any], Any]


class WireError(Exception):
    """Bytes that are no message, or a value that cannot be sent."""


def send(channel: socket.socket, message: Any) -> None:
    """Send a message of JSON values."""
    try:
        body = json.dumps(message, separators=(",", ":")).encode()
    except (ValueError, RecursionError) as error:
        raise WireError(f"a value cannot be sent: {error}") from None
    if len(body) > MAX_FRAME_BYTES:
        raise WireError(f"a value of more than {MAX_FRAME_BYTES} bytes cannot be sent")
    channel.sendall(len(body).to_bytes(4, "big") + body)


def receive(channel: socket.socket) -> Any:
    """Receive a message.

    Raises:
        EOFError: the other side is gone.
        WireError: it sent something else.
    """
    size = int.from_bytes(_read(channel, 4), "big")
    if size > MAX_FRAME_BYTES:
        raise WireError(f"a message of {size} bytes")
    try:
        return json.loads(_read(channel, size))
    except (ValueError, RecursionError):
        raise WireError("a message that is not JSON") from None


def _read(channel: socket.socket, size: int) -> bytes:
    parts = []
    while size:
        part = channel.recv(min(size, 2**20))
        if not part:
            raise EOFError("the other side is gone")
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def _items(items: Iterator[Any], walk: _Walk) -> list[Any]:
    found = [walk(item) for item in islice(items, _MAX_ITEMS + 1)]
    if len(found) > _MAX_ITEMS:
        raise WireError(f"an iterator of more than {_MAX_ITEMS} items cannot be sent")
    return found


class _Kind(NamedTuple):
    """A type beside JSON's own. Subclasses are sent as their base."""

    type: Any
    pack: Callable[[Any, _Walk], Any]
    unpack: Callable[[Any, _Walk], Any]


_KINDS = {
    "int": _Kind(int, lambda value, walk: hex(value), lambda packed, walk: int(packed, 16)),
    "tuple": _Kind(
        tuple,
        lambda value, walk: [walk(item) for item in tuple.__iter__(value)],
        lambda packed, walk: tuple([walk(item) for item in packed]),
    ),
    "set": _Kind(
        set,
        lambda value, walk: [walk(item) for item in set.__iter__(value)],
        lambda packed, walk: {walk(item) for item in packed},
    ),
    "frozenset": _Kind(
        frozenset,
        lambda value, walk: [walk(item) for item in frozenset.__iter__(value)],
        lambda packed, walk: frozenset([walk(item) for item in packed]),
    ),
    "dict": _Kind(
        dict,
        lambda value, walk: [[walk(key), walk(item)] for key, item in dict.items(value)],
        lambda packed, walk: {walk(key): walk(item) for key, item in packed},
    ),
    "bytes": _Kind(bytes, lambda value, walk: value.hex(), lambda packed, walk: bytes.fromhex(packed)),
    "bytearray": _Kind(bytearray, lambda value, walk: value.hex(), lambda packed, walk: bytearray.fromhex(packed)),
    "complex": _Kind(complex, lambda value, walk: [value.real, value.imag], lambda packed, walk: complex(*packed)),
    "range": _Kind(
        range,
        lambda value, walk: [walk(part) for part in (value.start, value.stop, value.step)],
        lambda packed, walk: range(*map(walk, packed)),
    ),
    "Decimal": _Kind(Decimal, lambda value, walk: str(value), lambda packed, walk: Decimal(packed)),
    "Fraction": _Kind(
        Fraction,
        lambda value, walk: [walk(value.numerator), walk(value.denominator)],
        lambda packed, walk: Fraction(*map(walk, packed)),
    ),
    "iterator": _Kind(Iterator, _items, lambda packed, walk: iter([walk(item) for item in packed])),
}


def encode(value: Any, keep: Callable[[Any], Any]) -> Any:
    """Encode a value as JSON. `keep` encodes an object of any other type."""

    def walk(value: Any) -> Any:
        if value is None or isinstance(value, bool):
            return value
        for kind, plain in _JSON.items():
            if isinstance(value, kind) and not (isinstance(value, int) and abs(value) >= _EXACT):
                return plain(value)
        if isinstance(value, list):
            return [walk(item) for item in list.__iter__(value)]
        if isinstance(value, type) and value in _PLAIN:
            return {"type": value.__name__}
        name = next((name for name, kind in _KINDS.items() if isinstance(value, kind.type)), None)
        return keep(value) if name is None else {name: _KINDS[name].pack(value, walk)}

    try:
        return walk(value)
    except RecursionError:
        raise WireError("a value nested so deeply cannot be sent") from None


def decode(coded: Any, find: Callable[[dict[str, Any]], Any]) -> Any:
    """Decode a value. `find` decodes what `keep` encoded.

    Raises:
        WireError: it is no encoded value.
    """

    def walk(coded: Any) -> Any:
        if isinstance(coded, list):
            return [walk(item) for item in coded]
        if not isinstance(coded, dict):
            return coded
        name, packed = next(iter(coded.items()))
        if name == "type":
            return _TYPES[packed]
        return _KINDS[name].unpack(packed, walk) if name in _KINDS else find(coded)

    try:
        return walk(coded)
    except (TypeError, ValueError, KeyError, StopIteration, ArithmeticError, RecursionError) as error:
        raise WireError(f"a message that is no value: {error!r}") from None
