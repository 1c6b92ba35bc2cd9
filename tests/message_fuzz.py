"""Messages of the contract as nobody would send them, made from a seed.

In: a descriptor. Out: messages whose fields hold what is near a limit, of the wrong kind, or plain
rubbish, now and then in a body of damaged bytes. Names come from a small pool, so that calls meet
galleries, items and models that are there, and nothing grows without bound.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from typing import Any

from google.protobuf import message_factory
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

INTEGERS = (0, 1, -1, 2, 7, 1000, 1024, 1025, (1 << 31) - 1, -(1 << 31))
LONG_INTEGERS = (*INTEGERS, (1 << 63) - 1, -(1 << 63), 1 << 53)
NUMBERS = (0.0, -0.0, 1.0, 0.5, -1.0, 0.01, 1e-300, 1e300, math.nan, math.inf, -math.inf)
TEXTS = (
    "",
    "a",
    "b",
    "i1",
    "i2",
    "x" * 300,
    "../../etc/passwd",
    "/etc/passwd",
    "a/b",
    ".",
    "con\x00trol",
    "\n",
    "ünïcödé",
    "\U0001f9a5" * 40,
    "‮right to left",
    "'; DROP TABLE items; --",
    "%s%n",
    "*",
)
DEEPEST = 6

_LONG = {
    FieldDescriptor.TYPE_INT64,
    FieldDescriptor.TYPE_SINT64,
    FieldDescriptor.TYPE_SFIXED64,
}
_UNSIGNED = {
    FieldDescriptor.TYPE_UINT32,
    FieldDescriptor.TYPE_UINT64,
    FieldDescriptor.TYPE_FIXED32,
    FieldDescriptor.TYPE_FIXED64,
}


class MessageFuzz:
    """Makes messages; equal seeds give equal ones.

    Args:
        chance: of all that is drawn.
        known: by the name of a field, values that the server knows; drawn more often than not.
        sound: sound messages by their type's full name; most of what is made begins as one, and has
            a field or two changed.
    """

    def __init__(
        self,
        chance: random.Random,
        known: Mapping[str, Sequence[Any]],
        sound: Mapping[str, Sequence[Message]],
    ) -> None:
        self._chance = chance
        self._known = known
        self._sound = sound

    def body(self, descriptor: Descriptor) -> bytes:
        """One message on the wire; one in eight is damaged there, too."""
        data = self.message(descriptor).SerializeToString()
        return self.damaged(data) if self._chance.random() < 1 / 8 else data

    def message(self, descriptor: Descriptor, depth: int = 0) -> Message:
        """One message: some fields as they should be, some not, some missing."""
        chance = self._chance
        sound = self._sound.get(descriptor.full_name)
        if sound and chance.random() < 0.8:
            begun = type(sound[0])()
            begun.CopyFrom(chance.choice(sound))
            for _ in range(chance.choice((0, 0, 1, 1, 1, 2))):
                self._change(begun, depth)
            return begun
        made = message_factory.GetMessageClass(descriptor)()
        fields = list(descriptor.fields)
        chance.shuffle(fields)  # of a oneof the last one stays
        for field in fields:
            if chance.random() < 0.3 or (depth >= DEEPEST and field.message_type is not None):
                continue
            if field.is_repeated:
                self._fill(made, field, depth)
            elif field.message_type is not None:
                getattr(made, field.name).CopyFrom(self.message(field.message_type, depth + 1))
            else:
                setattr(made, field.name, self._value(field))
        return made

    def damaged(self, data: bytes) -> bytes:
        """Bytes with a bit turned, a part lost, doubled, or made up."""
        chance = self._chance
        found = bytearray(data)
        for _ in range(chance.choice((1, 1, 3))):
            at = chance.randrange(len(found) + 1)
            match chance.randrange(4):
                case 0 if at < len(found):
                    found[at] ^= 1 << chance.randrange(8)
                case 1:
                    del found[at:]
                case 2:
                    found[at:at] = chance.randbytes(chance.randrange(1, 12))
                case _:
                    found[at:at] = found[at : at + chance.randrange(1, 40)]
        return bytes(found)

    def _change(self, made: Message, depth: int) -> None:
        """Change one field, here or in a message below: another value, none, or more of them."""
        chance = self._chance
        field = chance.choice(made.DESCRIPTOR.fields)
        inside = field.message_type is not None and not field.message_type.GetOptions().map_entry
        below = getattr(made, field.name) if inside else None
        if field.is_repeated:
            if inside and below and chance.random() < 0.7:
                self._change(chance.choice(below), depth + 1)
                return
            if chance.random() < 0.3:
                made.ClearField(field.name)
            if depth < DEEPEST:
                self._fill(made, field, depth)
        elif field.message_type is None:
            setattr(made, field.name, self._value(field))
        elif below is not None and made.HasField(field.name) and chance.random() < 0.7:
            self._change(below, depth + 1)
        elif depth < DEEPEST:
            getattr(made, field.name).CopyFrom(self.message(field.message_type, depth + 1))

    def _fill(self, made: Message, field: FieldDescriptor, depth: int) -> None:
        chance = self._chance
        count = chance.choice((0, 1, 1, 2, 3, 5))
        entry = field.message_type
        values = getattr(made, field.name)
        if entry is not None and entry.GetOptions().map_entry:
            key, value = entry.fields_by_name["key"], entry.fields_by_name["value"]
            for _ in range(count):
                name = self._value(key)
                if value.message_type is not None:
                    values[name].CopyFrom(self.message(value.message_type, depth + 1))
                else:
                    values[name] = self._value(value)
        elif entry is not None:
            for _ in range(count):
                values.add().CopyFrom(self.message(entry, depth + 1))
        else:
            values.extend(self._value(field) for _ in range(count))

    def _value(self, field: FieldDescriptor) -> Any:
        chance = self._chance
        known = self._known.get(field.name)
        if known and chance.random() < 0.7:
            return chance.choice(known)
        if field.enum_type is not None:
            return chance.choice((*(value.number for value in field.enum_type.values), 99, -1))
        match field.type:
            case FieldDescriptor.TYPE_BOOL:
                return chance.random() < 0.5
            case FieldDescriptor.TYPE_STRING:
                return chance.choice(TEXTS)
            case FieldDescriptor.TYPE_BYTES:
                return chance.randbytes(chance.choice((0, 1, 16, 64, 784)))
            case FieldDescriptor.TYPE_FLOAT | FieldDescriptor.TYPE_DOUBLE:
                return chance.choice(NUMBERS)
            case kind if kind in _LONG:
                return chance.choice(LONG_INTEGERS)
            case kind if kind in _UNSIGNED:
                return abs(chance.choice(INTEGERS))
        return chance.choice(INTEGERS)
