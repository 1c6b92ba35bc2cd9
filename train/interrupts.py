"""Ctrl-C and SIGTERM, heard between two steps: a training that is told to stop leaves whole files.

In: signals. Out: a word on which signal came. The second Ctrl-C stops at once, with what is on disk
by then.
"""

from __future__ import annotations

import signal
import sys
import threading
from types import FrameType, TracebackType
from typing import Any

# What a run's results call the end that each makes.
_ENDS = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}


class Interrupts:
    """While it is entered, the first signal is only noted; outside the main thread none is heard.

    Args:
        says: tell the user on standard error that the signal was heard.
    """

    def __init__(self, says: bool = False) -> None:
        self.heard: str | None = None  # interrupted or terminated
        self._says = says
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            for number in _ENDS:
                self._before[number] = signal.signal(number, self._hear)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        if self.heard is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.heard = _ENDS[signal.Signals(number)]
        if self._says:
            print(
                "\nstopping after this step, then the best twin so far is measured; Ctrl-C again "
                "stops at once",
                file=sys.stderr,
            )
