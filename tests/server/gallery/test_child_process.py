"""One call in a child process: what may go wrong with the child, and with its parent.

The calls keep the interpreter's lock, as they must: os.mkdir would not.
"""

from __future__ import annotations

import ctypes
import functools
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from tests.server.gallery.test_estimator import until
from twinserve.distance import Metric
from twinserve.server.gallery import HnswSettings, child_process
from twinserve.server.gallery.segments import Graph


def making(path: Path) -> functools.partial[object]:
    return functools.partial(ctypes.PyDLL(None).mkdir, str(path).encode(), 0o755)


def test_the_call_happens_and_its_files_stay(tmp_path: Path) -> None:
    child_process.call(making(tmp_path / "made"), 60)
    assert (tmp_path / "made").is_dir()


def test_a_call_that_fails_is_told_by_its_files_alone(tmp_path: Path) -> None:
    child_process.call(making(tmp_path / "no" / "such"), 60)
    assert list(tmp_path.iterdir()) == []


CRASHES = """
import os
from twinserve.server.gallery import child_process
try:
    child_process.call(os.abort, 60)
except OSError as error:
    print(error)
"""


def test_a_child_that_crashes_is_an_error() -> None:
    output = subprocess.check_output([sys.executable, "-c", CRASHES], text=True, timeout=60)
    assert f"was ended by signal {signal.SIGABRT:d}" in output


def test_a_child_that_hangs_is_killed() -> None:
    with pytest.raises(OSError, match="was not done after 0 s") as late:
        child_process.call(functools.partial(time.sleep, 600), 0.2)
    pid = int(str(late.value).split()[3])
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)  # and nobody has to wait for it any more


def test_threads_that_work_meanwhile_do_not_stop_it(tmp_path: Path) -> None:
    vectors = np.random.default_rng(1).normal(size=(500, 8)).astype(np.float32)
    graph = Graph(8, Metric.EUCLIDEAN, HnswSettings())
    assert graph.build(vectors, 1, lambda: False)
    ending = threading.Event()

    def calculating() -> None:
        matrix = np.ones((200, 200), dtype=np.float32)
        while not ending.is_set():
            matrix = matrix @ matrix / np.float32(200)
            sum(n * n for n in range(1_000))

    threads = [threading.Thread(target=calculating) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for number in range(20):
            child_process.call(making(tmp_path / f"{number}"), 60)
            child_process.call(graph.saving(tmp_path / f"{number}" / "graph"), 60)
    finally:
        ending.set()
        for thread in threads:
            thread.join()
    sizes = [(tmp_path / f"{number}" / "graph").stat().st_size for number in range(20)]
    assert sizes == [graph.file_size] * 20


WAITS = """
import functools, threading, time
from twinserve.server.gallery import child_process
threading.Thread(target=child_process.call, args=(functools.partial(time.sleep, 600), 600)).start()
"""


def test_a_child_does_not_outlive_its_parent() -> None:
    """It would hold what the parent held: the lock of the data folder, for one."""
    parent = subprocess.Popen([sys.executable, "-c", WAITS])
    tasks = Path(f"/proc/{parent.pid}/task")

    def children() -> list[int]:
        return [
            int(word)
            for task in tasks.iterdir()
            for word in (task / "children").read_text().split()
        ]

    until(children)
    (child,) = children()

    def asleep() -> bool:  # so it has gone beyond its first step
        return state_of(child) == "S"

    until(asleep)
    parent.kill()
    parent.wait()

    until(lambda: state_of(child) in ("", "Z", "X"))


def state_of(pid: int) -> str:
    """As the kernel says; "" = there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return ""
