"""Files that change while the server runs, and the door that follows its file."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import pytest

from twinserve.errors import ConfigError, Unauthenticated
from twinserve.server.security import key_file, keys
from twinserve.server.security.access import Role
from twinserve.server.security.watched_files import WatchedFiles, watch

EMBED = "/twinserve.v1.EmbeddingService/Embed"


def test_a_change_is_told_once_also_of_what_a_link_points_to(tmp_path: Path) -> None:
    # As Kubernetes mounts a secret: the file is a link through a folder that is a link.
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "keys.toml").write_text("x")
    (tmp_path / "data").symlink_to("one")
    path = tmp_path / "keys.toml"
    path.symlink_to("data/keys.toml")
    told: list[str] = []
    files = WatchedFiles([path, tmp_path / "nothing"], lambda: told.append("changed"))
    files.check()
    assert not told
    (tmp_path / "data").unlink()
    (tmp_path / "data").symlink_to("two")
    files.check()
    files.check()
    assert told == ["changed"]
    path.unlink()
    files.check()
    assert told == ["changed"] * 2


def test_what_fails_at_a_change_is_logged_and_the_next_one_is_seen(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "file"
    told: list[str] = []
    seen = asyncio.Event()

    def changed() -> None:
        told.append(path.read_text())
        seen.set()
        if told == ["bad"]:
            raise ValueError("bad")

    files = WatchedFiles([path], changed)

    async def both() -> None:
        looking = asyncio.create_task(watch([files], 0.01))
        for text in ("bad", "good"):
            path.write_text(text)
            await asyncio.wait_for(seen.wait(), 10)
            seen.clear()
        looking.cancel()

    with caplog.at_level(logging.ERROR):
        asyncio.run(both())
    assert told == ["bad", "good"]
    assert "has no effect" in caplog.text


def test_the_door_follows_its_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "keys.toml"
    with pytest.raises(ConfigError, match="make one with `twinserve key new"):
        key_file.open_door(path)
    metadata = [("authorization", f"Bearer {keys.make(path, 'a', Role.READ)}")]
    path.chmod(0o602)
    with caplog.at_level(logging.WARNING):
        door, files = key_file.open_door(path)
    assert "chmod o-w" in caplog.text
    assert door.admit(EMBED, metadata, "").client == "a"
    path.write_text("[[key]")
    files.check()
    assert door.admit(EMBED, metadata, "").client == "a"
    path.write_text("")
    files.check()
    with pytest.raises(Unauthenticated):
        door.admit(EMBED, metadata, "")
