"""Messages from and to protobuf's JSON form, with vectors and pictures as fast as they should be.

protobuf's json_format does it all but `repeated float` and `bytes`. The first it takes number by
number in Python, 150 ms for a hundred embeddings of 384 coordinates; so they are taken out before
it, and written and read by orjson, as the shortest decimals that name each float32. The second it
decodes in one go, during which no other thread runs; so they are decoded beside it, in steps.
Fields that hold their default are written too: a distance of 0 is an answer. See
https://protobuf.dev/programming-guides/json/.
"""

from __future__ import annotations

import base64
import functools
from collections.abc import Iterator
from typing import Any

import numpy as np
import orjson
from google.protobuf import json_format
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from twinserve.errors import InvalidInput

_DEPTH = 100  # of messages in messages; json_format's own bound
_MOST = 1 << 16  # messages of one list, far beyond what any call takes; each costs microseconds
_NUMBERS = {float, int}
_STEP = 1 << 18  # characters of base64 that are decoded in some tenths of a millisecond
_STANDARD = bytes.maketrans(b"-_", b"+/")
Path = tuple[str | int, ...]


def read(data: bytes, kind: type[Message]) -> Message:
    """Read a message.

    Raises:
        InvalidInput: it is no JSON, or not that message; the sentence says where.
    """
    tree = tree_of(data)
    message = kind()
    try:
        taken = list(_taken_of_tree(tree, kind.DESCRIPTOR, ()))
        json_format.ParseDict(tree, message)
        for path, value in taken:
            owner, name = _at(message, path[:-1]), str(path[-1])
            if isinstance(value, bytes):
                setattr(owner, name, value)
            else:
                getattr(owner, name).extend(value)
    except (json_format.ParseError, ValueError, TypeError, OverflowError, RecursionError) as error:
        found = " ".join(str(error).split())
        raise InvalidInput(
            f"the body is no {kind.DESCRIPTOR.name} in protobuf's JSON form: {found:.400}"
        ) from None
    return message


def tree_of(data: bytes) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        InvalidInput: it is none.
    """
    try:
        tree = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        what = str(error) if data else "it is empty; send {} for a message without fields"
        raise InvalidInput(f"the body is no JSON: {what:.200}") from None
    if not isinstance(tree, dict):
        raise InvalidInput(
            f"the body is a JSON {type(tree).__name__}; send an object, with the request's fields"
        )
    return tree


def bytes_of(text: str) -> bytes:
    """Decode base64, standard or for URLs, padded or not; other threads run meanwhile.

    Raises:
        ValueError: it is none.
    """
    data = text.encode("ascii").translate(_STANDARD)
    data += b"=" * (-len(data) % 4)
    steps = range(0, len(data), _STEP)
    return b"".join(base64.b64decode(data[i : i + _STEP], validate=True) for i in steps)


def write(message: Message) -> bytes:
    """Write a message, which is used up."""
    floats = list(_floats_of_message(message, ()))
    tree = json_format.MessageToDict(message, always_print_fields_with_no_presence=True)
    for path, values in floats:
        _at_tree(tree, path[:-1])[path[-1]] = values
    return orjson.dumps(tree, option=orjson.OPT_SERIALIZE_NUMPY)


def _floats_of_message(message: Message, path: Path) -> Iterator[tuple[Path, Any]]:
    """Take all `repeated float` out of a message: where each stood, by JSON names, and float32."""
    for field, value in message.ListFields():
        if _is_floats(field):
            values = np.array(value, np.float32)
            if np.isfinite(values).all():  # JSON has no other numbers; json_format writes those
                message.ClearField(field.name)
                yield (*path, field.json_name), values
        elif _holds_messages(field):
            if field.is_repeated:
                for i, one in enumerate(value):
                    yield from _floats_of_message(one, (*path, field.json_name, i))
            else:
                yield from _floats_of_message(value, (*path, field.json_name))


def _taken_of_tree(
    tree: dict[str, Any], descriptor: Any, path: Path
) -> Iterator[tuple[Path, list[float] | bytes]]:
    """Take all `repeated float` and `bytes` out of a tree: where each stood, by field names.

    Something empty stays in each place, and what is not as it should be stays whole, for
    json_format to find fault with.

    Raises:
        ValueError: base64 that is none, or a list that is too long.
    """
    fields = _fields(descriptor)
    for name, value in tree.items():
        field = fields.get(name)
        if field is None or len(path) > 2 * _DEPTH:
            continue
        if _is_floats(field):
            if isinstance(value, list) and set(map(type, value)) <= _NUMBERS:
                tree[name] = []
                yield (*path, field.name), value
        elif _is_bytes(field):
            if isinstance(value, str):
                tree[name] = ""
                yield (*path, field.name), _decoded(name, value)
        elif isinstance(value, dict) and not field.is_repeated:
            yield from _taken_of_tree(value, field.message_type, (*path, field.name))
        elif isinstance(value, list):
            if len(value) > _MOST:
                raise ValueError(f"{name} holds {len(value)} messages; send {_MOST} at most")
            for i, one in enumerate(value):
                if isinstance(one, dict):
                    yield from _taken_of_tree(one, field.message_type, (*path, field.name, i))


def _decoded(name: str, text: str) -> bytes:
    try:
        return bytes_of(text)
    except ValueError as error:
        raise ValueError(f"{name} is no base64: {error}") from None


@functools.cache
def _fields(descriptor: Any) -> dict[str, FieldDescriptor]:
    """Return the fields that are taken out, or may hold such, by both of their names."""
    fields = [
        one
        for one in descriptor.fields
        if _is_floats(one) or _is_bytes(one) or _holds_messages(one)
    ]
    return {name: one for one in fields for name in (one.name, one.json_name)}


def _is_floats(field: FieldDescriptor) -> bool:
    return bool(field.type == FieldDescriptor.TYPE_FLOAT and field.is_repeated)


def _is_bytes(field: FieldDescriptor) -> bool:
    return bool(field.type == FieldDescriptor.TYPE_BYTES and not field.is_repeated)


def _holds_messages(field: FieldDescriptor) -> bool:
    """Say whether it holds messages of ours: not a map, nor a kind with a form of its own."""
    kind = field.message_type
    return (
        kind is not None
        and not kind.GetOptions().map_entry
        and not kind.full_name.startswith("google.")
    )


def _at(message: Any, path: Path) -> Any:
    for step in path:
        message = message[step] if isinstance(step, int) else getattr(message, step)
    return message


def _at_tree(tree: Any, path: Path) -> Any:
    for step in path:
        tree = tree[step]
    return tree
