"""The writing thread's lag: what is submitted and not yet on disk, and since when."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from prometheus_client import generate_latest

from twinserve.server.gallery.galleries import Galleries
from twinserve.server.gallery.writer import Job, Writer
from twinserve.server.watching import gauges
from twinserve.server.watching.metrics import Metrics


class Disk:
    """An owner whose writes wait until they may go on."""

    def __init__(self) -> None:
        self.reached, self.go_on = threading.Event(), threading.Event()

    def write(self, jobs: Sequence[Job]) -> None:
        self.reached.set()
        assert self.go_on.wait(30)
        for job in jobs:
            job.future.set_result(None)

    def idle(self) -> None:
        return None


def test_the_lag_is_the_age_of_the_oldest_write_that_waits_or_is_under_way() -> None:
    writer, slow, quick = Writer(100), Disk(), Disk()
    quick.go_on.set()
    assert writer.lag == 0
    first = writer.submit(slow, None, rows=1)
    assert slow.reached.wait(30)
    time.sleep(0.05)
    submitted = time.monotonic()
    second = writer.submit(quick, None, rows=1)
    time.sleep(0.05)
    assert writer.lag > 0.1, "the first is on its way to the disk"
    slow.go_on.set()
    first.result(30)
    assert writer.lag <= time.monotonic() - submitted, "that one is on disk"
    second.result(30)
    assert writer.lag == 0
    writer.close()
    assert writer.lag == 0


def test_what_is_on_disk_does_not_lag_while_the_rest_of_its_group_is_written() -> None:
    writer, first, rest, last = Writer(100), Disk(), Disk(), Disk()
    writer.submit(first, None, rows=1)
    assert first.reached.wait(30)
    early = writer.submit(rest, None, rows=1)
    time.sleep(0.05)
    submitted = time.monotonic()
    late = writer.submit(last, None, rows=1)
    rest.go_on.set()
    first.go_on.set()
    early.result(30)
    assert last.reached.wait(30)
    assert 0 < writer.lag <= time.monotonic() - submitted
    last.go_on.set()
    late.result(30)
    writer.close()


def test_rows_wait_until_the_thread_takes_them() -> None:
    writer, disk = Writer(100), Disk()
    first = writer.submit(disk, None, rows=7)
    assert disk.reached.wait(30)
    last = writer.submit(disk, None, rows=5)
    writer.submit(disk, None, rows=6)
    assert writer.waiting_rows == 11
    disk.go_on.set()
    first.result(30)
    last.result(30)
    writer.close()
    assert writer.waiting_rows == 0


def test_chores_that_nobody_waits_for_are_no_lag() -> None:
    writer, disk = Writer(100), Disk()
    chore = writer.submit(disk, None)
    assert disk.reached.wait(30)
    assert writer.lag == 0
    disk.go_on.set()
    chore.result(30)
    writer.close()


def test_the_lag_of_the_galleries_is_exported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    metrics, galleries = Metrics(), Galleries(tmp_path)
    gauges.watch_galleries(metrics, galleries)
    galleries.open()
    name = "twinserve_gallery_durability_lag_seconds"
    assert f"{name} 0.0" in generate_latest(metrics.registry).decode()
    monkeypatch.setattr(Writer, "lag", 2.5)
    assert f"{name} 2.5" in generate_latest(metrics.registry).decode()
    galleries.close()
