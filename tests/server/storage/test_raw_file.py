"""The bytes of a file in use: read in parts, copied whole or not at all, closed for good."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from twinserve.server.storage import raw_file
from twinserve.server.storage.raw_file import RawFile


def test_a_file_is_read_in_parts_and_not_after_it_was_closed(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"0123456789")
    file = RawFile(tmp_path / "a")
    file.drop_cached()
    assert [file.read(offset, 4) for offset in (0, 4, 8, 12)] == [4, 4, 2, 0]
    file.close()
    file.drop_cached()
    assert file.read(0, 4) == 0


def test_a_copy_is_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(raw_file, "COPIED_BYTES", 4)
    (tmp_path / "a").write_bytes(b"0123456789")
    file = RawFile(tmp_path / "a")
    left = [True, True, False]
    assert not file.copy_to(tmp_path / "b", lambda: left.pop(0))
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert file.copy_to(tmp_path / "b", lambda: True)
    assert (tmp_path / "b").read_bytes() == b"0123456789"

    def full(*arguments: object) -> bytes:
        raise OSError(errno.EIO, "it failed")

    monkeypatch.setattr("os.pread", full)
    with pytest.raises(OSError, match="it failed"):
        file.copy_to(tmp_path / "c", lambda: True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]
    file.close()
