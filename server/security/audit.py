"""The audit log: one line of JSON for each call that changes something, or would have.

    {"time": "2026-11-29T02:00:00.123Z", "key": "shop", "peer": "ipv4:10.0.0.7:51234",
     "method": "Enroll", "gallery": "shop-1", "items": 12, "request_id": "…",
     "idempotency_key": "…", "code": "OK"}

Who, from where, what, to which gallery, how many, and how it ended; never a key, an input, an id of
an item, a subject or metadata. The file is opened anew once it was moved away, as logrotate does.
"""

from __future__ import annotations

import contextlib
import json
import logging
import logging.handlers
import os
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from io import TextIOWrapper
from pathlib import Path

from twinserve.errors import ConfigError

log = logging.getLogger(__name__)

_OFF = logging.CRITICAL + 1
_MOST = 200  # characters of a name that a caller chose

_lines = logging.getLogger("twinserve.audit")
_lines.propagate = False
_lines.setLevel(_OFF)

Fact = str | int | list[str]


class _AuditFile(logging.handlers.WatchedFileHandler):
    """Readable by its owner alone; what cannot be written is told in the server's log."""

    def _open(self) -> TextIOWrapper:
        handle = os.open(self.baseFilename, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        return open(handle, "a", encoding="utf-8")

    def handleError(self, record: logging.LogRecord) -> None:
        log.error("the audit log %s misses a line: it cannot be written", self.baseFilename)

    def close(self) -> None:
        # What a full disk did not take is lost, and told already.
        with contextlib.suppress(OSError):
            super().close()


@contextlib.contextmanager
def written_to(path: Path | None) -> Iterator[None]:
    """Write the audit log to a file within the block; None writes none.

    Raises:
        ConfigError: the file cannot be written.
    """
    if path is None:
        yield
        return
    try:
        handler = _AuditFile(path)
    except OSError as error:
        raise ConfigError(
            f"--audit-log {path} cannot be written ({error.strerror}); give a file in a folder "
            "that this user may write"
        ) from None
    handler.setFormatter(logging.Formatter("%(message)s"))
    _lines.addHandler(handler)
    _lines.setLevel(logging.INFO)
    try:
        yield
    finally:
        _lines.setLevel(_OFF)
        _lines.removeHandler(handler)
        handler.close()


def is_on() -> bool:
    """Say whether anybody reads it."""
    return _lines.isEnabledFor(logging.INFO)


def record(
    *, key: str, peer: str, method: str, code: str, facts: Mapping[str, Fact] | None = None
) -> None:
    """Write one line.

    Args:
        key: its id; "" where there is none.
        peer: the other side's address.
        method: its name without the service.
        code: that the call ended with, as gRPC names it.
        facts: what else is known: galleries, counts, the call's id.
    """
    if not is_on():
        return
    now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    line = {"time": now, "key": key or None, "peer": peer, "method": method}
    for name, value in (facts or {}).items():
        if value not in ("", 0, []):
            line[name] = _cut(value)  # type: ignore[assignment]
    # One line whatever is in it: JSON writes a line break as \n.
    _lines.info("%s", json.dumps({**line, "code": code}))


def _cut(value: Fact) -> Fact:
    if isinstance(value, str):
        return value if len(value) <= _MOST else f"{value[: _MOST - 1]}…"
    if isinstance(value, list):
        return [str(_cut(one)) for one in value[:_MOST]]
    return value
