"""One server for the gateway's tests, with a small twin of texts and one of pictures."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import twins
from tests.conftest import RunningServer, start

ONE_THREAD = ("--runners", "1", "--threads", "1")  # measuring what is best takes a second
MESSAGE_LIMIT = 1 << 20


@pytest.fixture(scope="package")
def both(twin_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server of the models `texts` and `pictures`, which takes messages of up to 1 MiB."""
    folder = tmp_path_factory.mktemp("gateway")
    texts = folder / "texts.onnx"
    texts.write_bytes(twins.small_text_twin())
    running = start(
        *("--model", texts, "--model", f"pictures={twin_file}", "--data-dir", folder / "data"),
        *("--max-message-bytes", str(MESSAGE_LIMIT), "--http-cors", "https://app.example"),
        *("--access-log", "1"),  # all: of those that fail, a busy second would leave some out
        *ONE_THREAD,
    )
    yield running
    if running.process.poll() is None:
        running.kill()
