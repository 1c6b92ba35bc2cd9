"""One server for all clients here: none changes what another sees, and a start takes a second."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import conftest
from tests.conftest import RunningServer


@pytest.fixture(scope="session")
def server(twin_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server of the small twin, without the trials that choose its threads."""
    flags = ["--runners", "1", "--threads", "1"]
    running = conftest.start(
        "--model", twin_file, "--data-dir", tmp_path_factory.mktemp("data"), *flags
    )
    yield running
    if running.process.poll() is None:
        running.kill()
