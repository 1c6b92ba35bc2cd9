"""Page tokens: opaque, and bound to what was listed.

A token holds the last name of its page and a digest of everything else that shaped the list, so
that a token of another gallery or filter is refused instead of answering nonsense. It is not
secret and not signed: it only says where a list goes on.
"""

from __future__ import annotations

import base64
import binascii
import hashlib

from twinserve.errors import BadPageToken, LimitExceeded

_BINDING = 8


def encode(binding: bytes, last: str) -> str:
    """Make the token of the page after `last`."""
    body = hashlib.sha256(binding).digest()[:_BINDING] + last.encode()
    return base64.urlsafe_b64encode(body).decode().rstrip("=")


def decode(token: str, binding: bytes) -> str:
    """Return the name after which the page begins; "" for the first page.

    Raises:
        BadPageToken: not one of ours, or of another list.
    """
    if not token:
        return ""
    try:
        body = base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True)
        last = body[_BINDING:].decode()
    except (binascii.Error, ValueError) as error:
        raise BadPageToken(
            "page_token is none that this server gave; start from the first page",
            field="page_token",
        ) from error
    if body[:_BINDING] != hashlib.sha256(binding).digest()[:_BINDING] or not last:
        raise BadPageToken(
            "page_token belongs to another list; repeat the request that gave it, filter included, "
            "or start from the first page",
            field="page_token",
        )
    return last


def size(asked: int, default: int, most: int) -> int:
    """Return how many entries a page holds.

    Raises:
        LimitExceeded: negative, or above `most`.
    """
    if not 0 <= asked <= most:
        raise LimitExceeded(
            f"page_size is {asked}; give 0 to {most}, 0 means {default}", field="page_size"
        )
    return asked or default
