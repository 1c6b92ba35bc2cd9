"""Metadata as checked values, as the JSON text that the store keeps, and back.

The text is canonical (keys sorted, each value with its type's letter), so that equal metadata give
equal text: "unchanged" is a comparison of strings.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

from twinserve.errors import InvalidInput, LimitExceeded
from twinserve.server.gallery.types import GalleryLimits, MetadataType, MetadataValue

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_LETTERS = {
    MetadataType.TEXT: "s",
    MetadataType.INTEGER: "i",
    MetadataType.NUMBER: "n",
    MetadataType.FLAG: "f",
    MetadataType.TIME: "t",
}
_INT64 = range(-(2**63), 2**63)


def type_of(value: MetadataValue) -> MetadataType:
    """The type of a value; bool is FLAG, never INTEGER.

    Raises:
        InvalidInput: the value is of no metadata type.
    """
    if isinstance(value, bool):
        return MetadataType.FLAG
    if isinstance(value, str):
        return MetadataType.TEXT
    if isinstance(value, int):
        return MetadataType.INTEGER
    if isinstance(value, float):
        return MetadataType.NUMBER
    if isinstance(value, datetime):
        return MetadataType.TIME
    raise InvalidInput(
        f"a metadata value is a {type(value).__name__}; send text, integer, number, flag or time"
    )


def check_value(value: MetadataValue) -> MetadataType:
    """Refuse a value that cannot be stored or ordered, and return its type.

    Raises:
        InvalidInput: not of a metadata type, an integer beyond 64 bits, a number that is not
            finite, a time without a zone, text that is not Unicode.
    """
    kind = type_of(value)
    if kind is MetadataType.INTEGER and value not in _INT64:
        raise InvalidInput(f"the integer {value} does not fit 64 bits; send it as text")
    if kind is MetadataType.NUMBER and not math.isfinite(value):  # type: ignore[arg-type]
        raise InvalidInput(f"the number {value} is not finite; leave the key out instead")
    if isinstance(value, datetime) and value.tzinfo is None:
        raise InvalidInput(f"the time {value} has no time zone; send UTC")
    if isinstance(value, str):
        encode_text(value, "a metadata text")
    return kind


def encode_text(text: str, what: str) -> bytes:
    """UTF-8 of a text; NUL and lone surrogates, which SQLite cannot keep, are refused."""
    try:
        data = text.encode()
    except UnicodeEncodeError as error:
        raise InvalidInput(f"{what} is not valid Unicode; send well-formed text") from error
    if 0 in data:
        raise InvalidInput(f"{what} holds a NUL character; send text without it")
    return data


def microseconds(time: datetime) -> int:
    """Microseconds since 1970 in UTC, exactly."""
    return (time - _EPOCH) // timedelta(microseconds=1)


def moment(microseconds_since_1970: int) -> datetime:
    """The UTC time of `microseconds`."""
    return _EPOCH + timedelta(microseconds=microseconds_since_1970)


def encode(
    metadata: Mapping[str, MetadataValue],
    declared: Mapping[str, MetadataType],
    limits: GalleryLimits,
) -> str:
    """Check metadata against the limits and the declared keys; return its canonical text.

    Raises:
        InvalidInput: a value that cannot be stored, or a declared key with another type.
        LimitExceeded: too many entries, too long a key, or too many bytes.
    """
    if not metadata:
        return "[]"
    if len(metadata) > limits.max_metadata_entries:
        raise LimitExceeded(
            f"metadata has {len(metadata)} entries; send at most {limits.max_metadata_entries}",
            field="metadata",
        )
    entries: list[tuple[str, str, str | int | float | bool]] = []
    for key in sorted(metadata):
        check_key(key, limits)
        value = metadata[key]
        try:
            kind = check_value(value)
        except InvalidInput as error:
            raise error.at(f"metadata[{key}]") from None
        wanted = declared.get(key)
        if wanted is not None and kind is not wanted:
            raise InvalidInput(
                f"metadata key {key!r} holds {kind.value}, and is declared as {wanted.value}; "
                f"send {wanted.value}",
                field=f"metadata[{key}]",
            )
        plain = microseconds(value) if isinstance(value, datetime) else value
        entries.append((key, _LETTERS[kind], plain))
    text = json.dumps(entries, ensure_ascii=False, separators=(",", ":"))
    size = len(text.encode())
    if size > limits.max_metadata_bytes:
        raise LimitExceeded(
            f"metadata takes {size} bytes; send at most {limits.max_metadata_bytes}",
            field="metadata",
        )
    return text


def check_key(key: str, limits: GalleryLimits) -> None:
    """Refuse a metadata key that is empty, too long, or not Unicode."""
    size = len(encode_text(key, "a metadata key"))
    if not 0 < size <= limits.max_metadata_key_bytes:
        raise LimitExceeded(
            f"a metadata key takes {size} bytes; use 1 to {limits.max_metadata_key_bytes}",
            field="metadata",
        )


def decode(text: str) -> dict[str, MetadataValue]:
    """The metadata that `encode` wrote."""
    if text == "[]":
        return {}
    return {
        key: moment(value) if letter == "t" else value for key, letter, value in json.loads(text)
    }
