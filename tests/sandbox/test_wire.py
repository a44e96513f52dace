import collections
import enum
import math
import socket
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest

from stepalign.sandbox import wire

Point = collections.namedtuple("Point", "x y")
Colour = enum.IntEnum("Colour", "RED")


def there_and_back(value: Any) -> Any:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        wire.send(ours, wire.encode(value, lambda kept: {"object": repr(kept)}))
        return wire.decode(wire.receive(theirs), lambda coded: coded["object"])


@pytest.mark.parametrize(
    "value",
    [
        None, True, 0, -5, 2**53, -(10**30), 1.5, -0.0, math.inf, "", "\udc80\x00é", b"\x00\xff",
        bytearray(b"a"), 1 + 2j,
        [], [1, [2, (3,)]], (), (1, "a"), {1, 2}, frozenset({(1, 2)}), {}, {1: [2], (3, 4): {5}}, {"int": 1},
        {"type": "x"},
        range(1, 9, 2), Decimal("1.10"), Fraction(1, 3), int, list,
    ],
)  # fmt: skip
def test_a_plain_value_arrives_as_it_is(value: Any) -> None:
    arrived = there_and_back(value)
    assert arrived == value
    assert type(arrived) is type(value)


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        (Point(1, 2), (1, 2)),
        (Colour.RED, 1),
        (collections.Counter("aab"), {"a": 2, "b": 1}),
        (collections.OrderedDict(a=1), {"a": 1}),
        (type("Text", (str,), {"__str__": lambda self: "other"})("text"), "text"),
        (type("Items", (list,), {"__iter__": lambda self: iter([7])})([1]), [1]),
    ],
)
def test_a_subclass_arrives_as_its_builtin_base(value: Any, plain: Any) -> None:
    arrived = there_and_back(value)
    assert arrived == plain
    assert type(arrived) is type(plain)


def test_an_iterator_arrives_as_one_and_any_other_object_is_kept() -> None:
    arrived = there_and_back(map(abs, [-1, 2]))
    assert not isinstance(arrived, list)
    assert list(arrived) == [1, 2]
    assert there_and_back([len]) == [repr(len)]


def loop() -> list[Any]:
    endless: list[Any] = []
    endless.append(endless)
    return endless


@pytest.mark.parametrize("value", [loop(), iter(int, 1), "x" * (wire.MAX_FRAME_BYTES + 1)])
def test_a_value_without_an_end_cannot_be_sent(value: Any) -> None:
    with pytest.raises(wire.WireError, match="cannot be sent"):
        there_and_back(value)


@pytest.mark.parametrize(
    "coded",
    [
        {},
        {"int": 5},
        {"int": "x"},
        {"set": [[1]]},
        {"dict": 5},
        {"dict": [[1]]},
        {"type": "eval"},
        {"range": [1.5, 2, 1]},
    ],
)
def test_what_is_no_encoded_value_is_refused(coded: Any) -> None:
    with pytest.raises(wire.WireError, match="no value"):
        wire.decode(coded, lambda coded: coded["object"])


@pytest.mark.parametrize("body", [b"\xff\xff\xff\xff", b"\x00\x00\x00\x01x"])
def test_bytes_that_are_no_message_are_refused(body: bytes) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.sendall(body)
        with pytest.raises(wire.WireError):
            wire.receive(theirs)
        ours.close()
        with pytest.raises(EOFError):
            wire.receive(theirs)
