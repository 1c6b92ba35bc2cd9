"""How many calls each key has inside, over both ports: none may take the places of all others.

A call that is open costs its client nothing, so one key could fill the server with streams on which
nothing is ever sent. Who has no key is bounded by connection; see `security.connections`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

import grpc


class Shares:
    """Counts the calls of each key; any thread may ask.

    Args:
        most: calls of one key at a time.
        refusal: returns what one more is refused with.
    """

    def __init__(self, most: int, refusal: Callable[[], grpc.Status]) -> None:
        self._most = most
        self._refusal = refusal
        self._inside: dict[str, int] = {}
        self._lock = threading.Lock()

    def take(self, client: str) -> grpc.Status | None:
        """Count a call of a key, "" of none; or return what it is refused with."""
        if not client:
            return None
        with self._lock:
            inside = self._inside.get(client, 0)
            if inside < self._most:
                self._inside[client] = inside + 1
                return None
        return self._refusal()

    def give_back(self, client: str) -> None:
        """Count a call that was taken no more."""
        if not client:
            return
        with self._lock:
            left = self._inside[client] - 1
            if left:
                self._inside[client] = left
            else:
                del self._inside[client]
