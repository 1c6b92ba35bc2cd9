"""Ids that tell one call from another in logs, errors and traces.

A caller, or a proxy before the server, may send one as `x-request-id`; else one is made for whoever
needs it first. It is not the contract's field `request_id`, by which a write is done only once.
"""

from __future__ import annotations

import contextlib
import re
import uuid
from collections.abc import Iterable
from typing import Any

KEY = "x-request-id"
# What every log and trace takes as it is. Anything else could forge lines, or fill the log.
_USABLE = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")


def sent_in(metadata: Iterable[tuple[str, str | bytes]]) -> str:
    """Return the id that the caller sent; "" where none came that can be used."""
    for key, value in metadata:
        if key == KEY and isinstance(value, str) and _USABLE.fullmatch(value):
            return value
    return ""


def request_id_in(metadata: Iterable[tuple[str, str | bytes]]) -> str:
    """Return the id that the caller sent, or a new one where none came that can be used."""
    return sent_in(metadata) or uuid.uuid4().hex


def request_id_of(context: Any) -> str:
    """Return a call's id, the same however often it is asked for.

    Args:
        context: of the call, with `invocation_metadata()`; the id is kept on it as `request_id`.
    """
    found: str | None = getattr(context, "request_id", None)
    if found is None:
        found = request_id_in(context.invocation_metadata() or ())
        with contextlib.suppress(AttributeError):
            context.request_id = found
    return found
