"""What a server's access log says of a call."""

from __future__ import annotations

import json
import time
from typing import Any

from tests.conftest import RunningServer


def lines_of(server: RunningServer, request_id: str, count: int) -> list[dict[str, Any]]:
    """The access log's lines of a call, so many, waited for: the reply may be faster."""
    for _ in range(600):
        lines = [json.loads(line) for line in server.errors if request_id in line]
        found = [
            line
            for line in lines
            if line.get("request_id") == request_id and line["logger"] == "twinserve.access"
        ]
        if len(found) >= count:
            return found
        time.sleep(0.05)
    raise AssertionError(f"no {count} lines of {request_id} in\n{''.join(server.errors)}")


def line_of(server: RunningServer, request_id: str) -> dict[str, Any]:
    """The access log's line of a call; see `lines_of`."""
    return lines_of(server, request_id, 1)[0]
