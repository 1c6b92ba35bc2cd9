"""Consistency tokens: an opaque name for a state of one gallery.

A token carries the gallery's sequence number and a tag keyed by the gallery's own id, so that a
token of another gallery, or one made up, is refused instead of waited for.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import struct

from twinserve.errors import InvalidInput

_BYTES = 16


def make_token(gallery_id: str, sequence: int) -> str:
    """The token of state `sequence` of the gallery with this id."""
    number = struct.pack(">Q", sequence)
    return base64.urlsafe_b64encode(number + _tag(gallery_id, number)).decode().rstrip("=")


def read_token(gallery_id: str, token: str) -> int:
    """The sequence that a token names.

    Raises:
        InvalidInput: not a token, or one of another gallery.
    """
    try:
        data = base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True)
    except (ValueError, binascii.Error):
        data = b""
    number, tag = data[:8], data[8:]
    if len(data) != _BYTES or not hmac.compare_digest(tag, _tag(gallery_id, number)):
        raise InvalidInput(
            "the consistency token is not one that this gallery gave; send a consistency_token "
            "from a reply of the same gallery, or leave it empty",
            field="at_least",
        )
    return int(struct.unpack(">Q", number)[0])


def _tag(gallery_id: str, number: bytes) -> bytes:
    return hashlib.blake2b(number, key=gallery_id.encode()[:64], digest_size=8).digest()
