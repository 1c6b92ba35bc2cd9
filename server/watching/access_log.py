"""The access log: one line for a call that failed or was slow, or for a share of all calls.

Writing a line costs about as much as answering a small call, so a server under load must not write
one for each call that it refuses: beyond MOST lines a second of failed and slow calls the rest are
left out, and the next line says how many.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable

from twinserve.server.config import AccessLogSettings
from twinserve.server.watching.ended_call import EndedCall

log = logging.getLogger("twinserve.access")

MOST = 50  # lines a second of failed and slow calls


class AccessLog:
    """Writes calls down; see the module.

    Args:
        settings: which.
        draw: gives numbers from 0 to 1, evenly.
        clock: seconds.
    """

    def __init__(
        self,
        settings: AccessLogSettings,
        draw: Callable[[], float] = random.random,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._errors, self._rate = settings.errors, settings.rate
        self._slow = settings.slow_seconds or float("inf")
        self._draw = draw
        self._clock = clock
        # Two threads that end calls at once may let one line too many pass.
        self._second, self._written, self._left_out = 0, 0, 0
        # Whoever asks for an access log wants it though the rest is quieter.
        log.setLevel(logging.INFO)

    def ended(self, call: EndedCall) -> None:
        """Write a call down, if it is one of those."""
        slow = call.seconds >= self._slow
        drawn = self._rate and self._draw() < self._rate
        if not drawn:
            notable = slow or (self._errors and call.code != "OK")
            if not notable or not self._has_room():
                return
        self._write(call, slow)

    def _has_room(self) -> bool:
        second = int(self._clock())
        if second != self._second:
            self._second, self._written = second, 0
        self._written += 1
        if self._written > MOST:
            self._left_out += 1
            return False
        return True

    def _write(self, call: EndedCall, slow: bool) -> None:
        facts: dict[str, object] = {
            "request_id": call.request_id,
            "method": call.method,
            "code": call.code,
            "reason": call.reason,
            "model": call.model,
            "ms": round(call.seconds * 1000, 3),
        }
        timing = call.timing
        if timing is not None:
            for name in ("preprocess", "queue", "inference", "search"):
                facts[f"{name}_ms"] = getattr(timing, f"{name}_us") / 1000
        facts |= {
            "items": call.items,
            "request_bytes": call.request_bytes,
            "reply_bytes": call.reply_bytes,
            "key": call.key,
            "peer": call.peer,
        }
        left_out, self._left_out = self._left_out, 0
        if left_out:
            facts["left_out"] = left_out
        log.log(
            logging.WARNING if slow else logging.INFO,
            "slow call" if slow else "call",
            extra={name: value for name, value in facts.items() if value != ""},
        )
