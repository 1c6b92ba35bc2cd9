"""Who holds a data folder, and for how long."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from twinserve.errors import FailedPrecondition
from twinserve.server.storage import data_folder
from twinserve.server.storage.data_folder import DataFolder

# The server dies; a child that has its files open, the lock too, outlives it for a while.
DIES = """
import os, sys, time
from pathlib import Path
from twinserve.server.storage.data_folder import DataFolder
folder = DataFolder(Path(sys.argv[1]))
if not os.fork():
    time.sleep(float(sys.argv[2]))
os._exit(0)
"""


def test_a_dead_server_whose_child_still_holds_the_lock_is_waited_for(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", DIES, str(tmp_path), "1"], check=True, timeout=60)
    DataFolder(tmp_path).close()


def test_a_lock_that_a_dead_server_left_for_good_is_refused_in_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data_folder, "_ORPHAN_SECONDS", 0.2)
    subprocess.run([sys.executable, "-c", DIES, str(tmp_path), "2"], check=True, timeout=60)
    with pytest.raises(FailedPrecondition, match="in use by another server"):
        DataFolder(tmp_path)


def test_a_folder_that_a_living_server_holds_is_refused_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def sleep(_: float) -> None:
        raise AssertionError("it waits for a server that lives")

    folder = DataFolder(tmp_path)
    monkeypatch.setattr(time, "sleep", sleep)
    with pytest.raises(FailedPrecondition, match="in use by another server"):
        DataFolder(tmp_path)
    folder.close()
