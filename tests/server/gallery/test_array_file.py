"""Files of arrays: what was written comes back, and what is not as written is refused."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from twinserve.server.gallery import array_file
from twinserve.server.gallery.array_file import NotAsWritten, Stretches, Written


def some_arrays() -> dict[str, Any]:
    rng = np.random.default_rng(1)
    return {
        "labels": np.arange(700, dtype=np.int64),
        "vectors": rng.normal(size=(33, 5)).astype(np.float32),
        "lengths": rng.normal(size=17),
        "present": rng.random(9) < 0.5,
        "keys": rng.integers(0, 2**63, 12).astype(np.uint64),
        "nothing": np.zeros(0, dtype=np.uint8),
        "turned": np.arange(12, dtype=np.int32).reshape(3, 4).T,
        "big endian": np.arange(4, dtype=">i4"),
        "no rows": np.zeros((0, 5), dtype=np.float32),
    }


def check_same(path: Path, arrays: dict[str, Any], facts: dict[str, Any]) -> None:
    found, said = array_file.mapped(path)
    assert said == facts
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        assert found[name].shape == array.shape
        assert found[name].dtype == array.dtype.newbyteorder("<")
        assert np.array_equal(found[name], array)
        assert not found[name].flags.writeable


def test_arrays_and_facts_come_back_as_they_were(tmp_path: Path) -> None:
    path, arrays, facts = tmp_path / "x.arrays", some_arrays(), {"gallery": "äöü", "dimension": 5}
    written = array_file.write(path, arrays, facts)
    array_file.verify(path, written)
    assert written.size == path.stat().st_size
    check_same(path, arrays, facts)
    assert list(tmp_path.iterdir()) == [path]


def test_an_array_written_in_pieces_is_like_one_written_at_once(tmp_path: Path) -> None:
    whole = np.random.default_rng(2).normal(size=(1_000, 3)).astype(np.float32)
    pieces = Stretches(whole.dtype, whole.shape, lambda: iter(np.array_split(whole, 7)))
    at_once = array_file.write(tmp_path / "a", {"x": whole}, {})
    assert array_file.write(tmp_path / "b", {"x": pieces}, {}) == at_once
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_pieces_that_are_not_the_array_are_a_fault_and_leave_nothing(tmp_path: Path) -> None:
    short = Stretches(np.dtype(np.float32), (9, 3), lambda: iter([np.zeros((8, 3), np.float32)]))
    with pytest.raises(AssertionError, match="has 96 bytes, not 108"):
        array_file.write(tmp_path / "x", {"x": short}, {})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("size", [0, 1, 4_095, 4_096, 4_097, 8_192, 12_287, 12_288, 40_000])
def test_checksums_fit_wherever_the_last_block_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    monkeypatch.setattr(array_file, "BLOCK", 8_192)
    arrays = {"x": np.random.default_rng(size).integers(0, 255, size).astype(np.uint8)}
    written = array_file.write(tmp_path / "x", arrays, {})
    array_file.verify(tmp_path / "x", written)
    check_same(tmp_path / "x", arrays, {})


def test_any_changed_byte_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(array_file, "BLOCK", 8_192)
    path = tmp_path / "x"
    written = array_file.write(path, {"x": np.arange(1_500, dtype=np.int64)}, {"a": 1})
    good = path.read_bytes()
    for where in [*range(0, len(good), 97), *range(len(good) - 20, len(good))]:
        data = bytearray(good)
        data[where] ^= 1 << where % 8
        path.write_bytes(data)
        with pytest.raises(NotAsWritten):
            array_file.verify(path, written)
    path.write_bytes(good)
    array_file.verify(path, written)


def test_what_is_shorter_longer_missing_or_another_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x"
    arrays = {"x": np.arange(2_000)}
    written = array_file.write(path, arrays, {})
    good = path.read_bytes()
    for data in (b"", good[:-1], good + b"\0", good[: len(good) // 2]):
        path.write_bytes(data)
        with pytest.raises(NotAsWritten, match=f"has {len(data)} bytes, not {len(good)}"):
            array_file.verify(path, written)
    path.unlink()
    with pytest.raises(NotAsWritten, match="cannot be read"):
        array_file.verify(path, written)
    other = array_file.write(path, {"x": np.arange(1, 2_001)}, {})
    assert other.size == written.size
    with pytest.raises(NotAsWritten, match="is another file"):
        array_file.verify(path, written)
    with pytest.raises(NotAsWritten):
        array_file.verify(path, Written(other.size, written.check))
    array_file.verify(path, other)


def test_a_disk_that_fills_up_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x"
    written = array_file.write(path, {"x": np.arange(10)}, {})
    left = 9_000
    write = os.write

    def filling(descriptor: int, data: memoryview) -> int:
        nonlocal left
        if left <= 0:
            raise OSError(28, "No space left on device")
        count = write(descriptor, data[:left])  # a short write comes first
        left -= count
        return count

    with monkeypatch.context() as patched:
        patched.setattr(os, "write", filling)
        with pytest.raises(OSError, match="No space"):
            array_file.write(path, {"x": np.arange(100_000)}, {})
    assert list(tmp_path.iterdir()) == [path]
    array_file.verify(path, written)


def test_short_writes_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: write(descriptor, data[:1_000]))
    arrays = some_arrays()
    written = array_file.write(tmp_path / "x", arrays, {})
    array_file.verify(tmp_path / "x", written)
    check_same(tmp_path / "x", arrays, {})


def test_the_longest_names_and_largest_numbers_fit_the_header(tmp_path: Path) -> None:
    arrays = {f"column.{'k' * 60}{n:02}.values": np.arange(n % 3) for n in range(64)}
    arrays |= {f"column.{'k' * 60}{n:02}.texts": np.zeros((n, 1), np.float64) for n in range(64)}
    written = array_file.write(tmp_path / "x", arrays, {"gallery": "f" * 32})
    array_file.verify(tmp_path / "x", written)
    check_same(tmp_path / "x", arrays, {"gallery": "f" * 32})
