"""The wire format of protobuf, as far as replies that are written by hand need it.

A message is a row of fields, each a tag and a value; what has its default is left out. See
https://protobuf.dev/programming-guides/encoding/.
"""

from __future__ import annotations

SMALL = [bytes((value,)) for value in range(0x80)]


LENGTH_DELIMITED = 2
FIXED_64 = 1
VARINT = 0


def number(message: type, name: str, kind: int = LENGTH_DELIMITED) -> bytes:
    """Return the tag of a message's field."""
    return varint(message.DESCRIPTOR.fields_by_name[name].number << 3 | kind)  # type: ignore[attr-defined]


def whole(tag: bytes, value: int) -> bytes:
    """Write a whole number of at least 0."""
    return tag + varint(value) if value else b""


def varint(value: int) -> bytes:
    """Write a number of seven bits a byte."""
    if value < 0x80:
        return SMALL[value]
    if value < 0x4000:
        return bytes((value & 0x7F | 0x80, value >> 7))
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    found.append(value)
    return bytes(found)


def field(tag: bytes, data: bytes) -> bytes:
    """Write a message or bytes."""
    return tag + varint(len(data)) + data


class Heads(dict[int, bytes]):
    """What stands before the bytes of a field: by their number, its tag and that number.

    For fields that are written by the hundred: looking it up is faster than `field`.
    """

    def __init__(self, tag: bytes) -> None:
        super().__init__((size, tag + SMALL[size]) for size in range(len(SMALL)))
        self._tag = tag

    def __missing__(self, size: int) -> bytes:
        return self._tag + varint(size)


def text(tag: bytes, content: str) -> bytes:
    """Write a text."""
    return field(tag, content.encode()) if content else b""
