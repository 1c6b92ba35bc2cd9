"""Threads that step back, and those that do not."""

from __future__ import annotations

import os
import sys
import threading
import time
from pathlib import Path

import pytest

from tests.server.gallery.folders import opened
from twinserve.server.gallery.background import NICENESS


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere niceness is of the whole process")
def test_graphs_and_estimates_are_made_behind_those_who_write(tmp_path: Path) -> None:
    with opened(tmp_path):
        mine = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

        def niceness() -> dict[str, int]:
            return {
                thread.name: os.getpriority(os.PRIO_PROCESS, thread.native_id) - mine
                for thread in threading.enumerate()
                if thread.name in ("gallery-writer", "gallery-builder", "gallery-impostors")
                and thread.native_id is not None
            }

        wanted = dict.fromkeys(("gallery-builder", "gallery-impostors"), min(NICENESS, 19 - mine))
        until = time.monotonic() + 10
        while niceness() != {"gallery-writer": 0, **wanted} and time.monotonic() < until:
            time.sleep(0.01)
        assert niceness() == {"gallery-writer": 0, **wanted}
