"""Arrays in one file, checksummed and mapped into memory: for what the store can give again.

    magic, length of the header, header (JSON: facts, and name -> dtype, shape, offset)
    the arrays, each beginning at a multiple of 4096 bytes
    CRC-32 of each MiB of everything before, little-endian

The CRC-32 of that last part is the file's `check`: whoever keeps it knows this very file again. A
file is written under another name, flushed and renamed, so a crash leaves the old one or none.
`verify` reads every byte; `mapped` believes what it reads, so verify first.
"""

from __future__ import annotations

import json
import mmap
import os
import struct
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

MAGIC = b"TWINARR1"
ALIGNMENT = 4_096
BLOCK = 1 << 20  # bytes of one checksum; within it the interpreter's lock is free


class NotAsWritten(Exception):
    """A file is not what was written; the message says how. What it held has to be made again."""


@dataclass(frozen=True)
class Stretches:
    """An array that is written piece by piece, since it would not fit in memory as a whole."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    pieces: Callable[[], Iterable[NDArray[Any]]]


@dataclass(frozen=True)
class Written:
    """What to know a file again by."""

    size: int
    check: int


Content = NDArray[Any] | Stretches


def write(path: Path, arrays: Mapping[str, Content], facts: Mapping[str, Any]) -> Written:
    """Write arrays and facts (JSON) to a file, durably.

    Raises:
        OSError: it cannot be written, such as on a full disk; nothing is left of it.
    """
    header = _header(arrays, facts)
    aside = path.with_name(path.name + ".tmp")
    try:
        with aside.open("wb+", buffering=0) as file:
            sums = _Checksums()
            _put(file.fileno(), header, sums)
            for name, array in arrays.items():
                pieces = array.pieces() if isinstance(array, Stretches) else (array,)
                written = 0
                for piece in pieces:
                    data = np.ascontiguousarray(piece).astype(_stored(array.dtype), copy=False)
                    if data.nbytes:
                        _put(file.fileno(), data.reshape(-1).view(np.uint8).data, sums)
                    written += data.nbytes
                if written != _nbytes(array):
                    raise AssertionError(f"{name} has {written} bytes, not {_nbytes(array)}")
                _put(file.fileno(), bytes(-written % ALIGNMENT), sums)
            trailer = sums.all()
            _put(file.fileno(), trailer, _Checksums())
            os.fsync(file.fileno())
            size = file.tell()
        aside.rename(path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    return Written(size, zlib.crc32(trailer))


def verify(path: Path, written: Written) -> None:
    """Read a file through.

    Raises:
        NotAsWritten: it is missing, or a byte of it is not as `write` left it.
    """
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size != written.size:
                raise NotAsWritten(f"{path.name} has {size} bytes, not {written.size}")
            body = size - 4 * _blocks_of(size)
            file.seek(body)
            trailer = file.read()
            if zlib.crc32(trailer) != written.check:
                raise NotAsWritten(f"{path.name} is another file than the one that was meant")
            file.seek(0)
            for number, (sum_,) in enumerate(struct.iter_unpack("<I", trailer)):
                data = file.read(min(BLOCK, body - number * BLOCK))
                if zlib.crc32(data) != sum_:
                    raise NotAsWritten(f"{path.name} is not as written near byte {number * BLOCK}")
    except OSError as error:
        raise NotAsWritten(f"{path.name} cannot be read: {error}") from error


def mapped(path: Path) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """The arrays of a verified file, mapped read-only, and its facts."""
    with path.open("rb") as file:
        memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    (length,) = struct.unpack_from("<Q", memory, len(MAGIC))
    header = json.loads(memory[len(MAGIC) + 8 : len(MAGIC) + 8 + length])
    arrays = {}
    for name, (dtype, shape, offset) in header["arrays"].items():
        count = int(np.prod(shape))
        array = np.frombuffer(memory, dtype=np.dtype(dtype), count=count, offset=offset)
        arrays[name] = array.reshape(shape)
    return arrays, header["facts"]


def fsync_folder(path: Path) -> None:
    """Make renames in a folder durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class _Checksums:
    """CRC-32 of each block of a stream."""

    def __init__(self) -> None:
        self._done: list[int] = []
        self._sum = 0
        self._filled = 0

    def add(self, data: memoryview) -> None:
        start = 0
        while start < len(data):
            stop = min(len(data), start + BLOCK - self._filled)
            self._sum = zlib.crc32(data[start:stop], self._sum)
            self._filled += stop - start
            start = stop
            if self._filled == BLOCK:
                self._done.append(self._sum)
                self._sum = self._filled = 0

    def all(self) -> bytes:
        sums = self._done + ([self._sum] if self._filled else [])
        return struct.pack(f"<{len(sums)}I", *sums)


def _put(descriptor: int, data: bytes | memoryview, sums: _Checksums) -> None:
    view = memoryview(data)
    sums.add(view)
    while len(view):
        view = view[os.write(descriptor, view[: 8 * BLOCK]) :]


def _blocks_of(size: int) -> int:
    """How many blocks a file of `size` bytes has, its checksums left out."""
    return max(0, -(-size // (BLOCK + 4)))


def _header(arrays: Mapping[str, Content], facts: Mapping[str, Any]) -> bytes:
    # The offsets depend on the header's length, and that on the digits of the offsets: so the
    # header is given more room than it needs.
    room = 256 + len(json.dumps(facts)) + sum(len(name) + 120 for name in arrays)
    offset = _aligned(room)
    table = {}
    for name, array in arrays.items():
        table[name] = [_stored(array.dtype).str, list(array.shape), offset]
        offset += _aligned(_nbytes(array))
    text = json.dumps({"facts": facts, "arrays": table}).encode()
    header = MAGIC + struct.pack("<Q", len(text)) + text
    return header.ljust(_aligned(room), b"\0")


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def _stored(dtype: np.dtype[Any]) -> np.dtype[Any]:
    return dtype.newbyteorder("<")


def _nbytes(array: Content) -> int:
    return int(np.prod(array.shape)) * array.dtype.itemsize
