"""What the tests of verbs share: a command run in this process against a scripted server."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.fake_server import FakeServer
from twinserve.cli import __main__ as command_line

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def fake() -> Iterator[FakeServer]:
    server = FakeServer()
    yield server
    server.stop()


@pytest.fixture
def run(
    fake: FakeServer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Run:
    """Run one command against the fake server: exit code, standard output, standard error."""
    monkeypatch.setenv("TWINSERVE_TARGET", fake.target)
    monkeypatch.delenv("TWINSERVE_DEBUG", raising=False)

    def call(*arguments: object) -> tuple[int, str, str]:
        try:
            code = command_line.main([str(argument) for argument in arguments])
        except SystemExit as error:  # argparse, for --help and wrong usage
            code = int(error.code or 0)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder of two subjects and one picture without any; the content is the fake's concern."""
    for name in ("alice/1.png", "alice/2.JPG", "bob/1.png", "stray.png", "alice/notes.txt"):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    return tmp_path / "photos"
