"""Texts end to end in one block of bytes: ids and subjects cost their length and two bytes.

Append-only: a handle stays good for as long as its `Texts`. One thread appends; others may read
meanwhile, since every access is one step under the interpreter's lock.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Handles = NDArray[np.int64]

MAX_BYTES = 65_535
_LENGTHS = [length.to_bytes(2, "little") for length in range(256)]  # of most
_PIECE = 16_384
_COPY = 1 << 20


class Texts:
    """Where ids and names of subjects lie."""

    def __init__(self, content: bytes = b"") -> None:
        """Start with what `content` gave for an earlier one, or empty."""
        self._bytes = bytearray(content)

    @property
    def nbytes(self) -> int:
        """Bytes that they take."""
        return len(self._bytes)

    def append(self, texts: Sequence[bytes]) -> Handles:
        """Keep UTF-8 texts [n], each of at most MAX_BYTES bytes; return their handles [n]."""
        sizes = np.fromiter(map(len, texts), np.int64, len(texts))
        if int(sizes.max(initial=0)) < len(_LENGTHS):
            parts = [_LENGTHS[len(text)] + text for text in texts]
        else:
            parts = [len(text).to_bytes(2, "little") + text for text in texts]
        sizes += 2
        handles = len(self._bytes) + np.cumsum(sizes) - sizes
        self._bytes += b"".join(parts)
        return handles

    def at(self, handle: int) -> bytes:
        """The UTF-8 text of a handle."""
        kept = self._bytes
        start = handle + 2
        return bytes(kept[start : start + (kept[handle] | kept[handle + 1] << 8)])

    def copied(self, *handles: Handles) -> tuple[NDArray[np.uint8], list[Handles]]:
        """What some handles lead to, end to end, and their handles there.

        The same text of several lists is copied once.
        """
        unique, back = np.unique(np.concatenate(handles), return_inverse=True)
        kept = self._copy(len(self._bytes))
        sizes = 2 + kept[unique].astype(np.int64) + (kept[unique + 1].astype(np.int64) << 8)
        starts = np.cumsum(sizes) - sizes
        content = np.empty(int(sizes.sum()), dtype=np.uint8)
        for first in range(0, len(unique), _PIECE):
            part = slice(first, first + _PIECE)
            size = sizes[part]
            within = np.arange(int(size.sum())) - np.repeat(np.cumsum(size) - size, size)
            begin = int(starts[first])
            content[begin : begin + len(within)] = kept[np.repeat(unique[part], size) + within]
        renamed = np.split(starts[back], np.cumsum([len(one) for one in handles])[:-1])
        return content, list(renamed)

    def _copy(self, size: int) -> NDArray[np.uint8]:
        # In pieces, so that other threads get their turn; a buffer on the bytes themselves would
        # keep them from growing meanwhile.
        copy = np.empty(size, dtype=np.uint8)
        for start in range(0, size, _COPY):
            end = min(start + _COPY, size)
            copy[start:end] = np.frombuffer(self._bytes[start:end], dtype=np.uint8)
        return copy
