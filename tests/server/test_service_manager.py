"""systemd is told when the server serves and when it stops, by a datagram."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import start
from twinserve.server import service_manager


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[tuple[socket.socket, str]]:
    """Stand in for systemd: a socket, and its NOTIFY_SOCKET."""
    address = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(address)
        listening.settimeout(30)
        yield listening, address


def test_a_server_says_ready_when_it_serves_and_stopping_when_it_stops(
    manager: tuple[socket.socket, str], tmp_path: Path, twin_file: Path
) -> None:
    listening, address = manager
    flags = [
        "--model",
        twin_file,
        "--data-dir",
        tmp_path / "data",
        "--runners",
        "1",
        "--threads",
        "1",
    ]
    server = start(*flags, environment={"NOTIFY_SOCKET": address})
    try:
        assert listening.recv(100) == b"READY=1"
        assert server.stop() == 0
        assert listening.recv(100) == b"STOPPING=1"
    finally:
        server.kill()


def test_an_abstract_address_is_understood(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind("")  # the kernel picks a free abstract name
        listening.settimeout(5)
        name: bytes = listening.getsockname()
        monkeypatch.setenv("NOTIFY_SOCKET", "@" + name[1:].decode())
        service_manager.tell(service_manager.READY)
        assert listening.recv(100) == b"READY=1"


def test_a_manager_that_is_gone_stops_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "nobody"))
    service_manager.tell(service_manager.READY)
    assert "could not be told READY=1" in caplog.text
