"""One server with keys and an audit log for all tests of this folder."""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import twins
from tests.conftest import start
from tests.server.front.conftest import run_front
from tests.server.security.guarded import Guarded
from twinserve.client import EnrollItem
from twinserve.server.security.access import Role

__all__ = ["guarded", "run_front"]

PIXELS, _ = twins.classes_of_pixels(2, 2)
PAST = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)


@pytest.fixture(scope="package")
def guarded(twin_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    folder = tmp_path_factory.mktemp("keys")
    made = Guarded(None, folder / "keys.toml")  # type: ignore[arg-type]
    made.make("ops", Role.ADMIN)
    made.make("reader", Role.READ)
    made.make("writer", Role.WRITE)
    made.make("north", Role.ADMIN, galleries=["north-*", "shared"])
    made.make("south", Role.ADMIN, galleries=["south-*"])
    made.make("old", Role.ADMIN, expires=PAST)
    made.make("slow", Role.READ, rate=0.2, burst=2)
    flags = ("--backup-dir", folder / "backups", "--keys", made.path, "--audit-log", made.audit)
    flags += ("--runners", "1", "--threads", "1")  # nothing is measured at the start
    # All that it would ever log, to look for secrets in.
    loud = {"TWINSERVE_LOG": "DEBUG"}
    data = folder / "data"
    made.server = start("--model", twin_file, "--data-dir", data, *flags, environment=loud)
    with made.client("ops") as client:
        for name in ("north-1", "south-1"):
            client.create_gallery(name)
            client.enroll(name, [EnrollItem(PIXELS[0], subject=name, id="first")])
        client.set_gallery_alias("shared", "south-1")
        client.set_gallery_alias("north-live", "north-1")
    yield made
    assert made.server.stop() == 0
    made.check_logs()
