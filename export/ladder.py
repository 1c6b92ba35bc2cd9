"""Texts of every length that a twin takes, made of real ones: the rungs that the gate climbs.

In: token ids of real texts. Out: per length, from one word to the contract's limit, a few rows of
exactly that length. What all texts begin and end with (special tokens, a prompt) is left at its
place; between, real texts are joined up to reach a length, and cut to end there.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from twinserve.feed import Row, Rows
from twinserve.manifest import TextInput

ROWS_PER_RUNG = 3
_SHORTEST = 8
# So much at each end may be special tokens or a prompt; more would be the text itself.
_MOST_SHARED = 64


def ladder(rows: Rows, contract: TextInput) -> list[list[Row]]:
    """Return `ROWS_PER_RUNG` rows per length, lengths rising: one word, 8, 16, 32 ... the limit.

    Args:
        rows: int64 [length] each, at least one of them; in no order.
        contract: says the limit.
    """
    before, after = _frame(rows)
    inner = [row[len(before) : len(row) - len(after)] for row in rows]
    inner = [row for row in inner if len(row)] or list(rows)
    fixed = len(before) + len(after)
    lengths = {min(fixed + 1, contract.max_tokens), contract.max_tokens}
    length = _SHORTEST
    while length < contract.max_tokens:
        if length > fixed:
            lengths.add(length)
        length *= 2
    return [
        [
            _of_length(inner, before, after, length, start=number * len(inner) // ROWS_PER_RUNG)
            for number in range(ROWS_PER_RUNG)
        ]
        for length in sorted(lengths)
    ]


def _frame(rows: Rows) -> tuple[Row, Row]:
    """Return the ids that all rows begin with, and those that all end with."""
    shortest = min(len(row) for row in rows)
    empty: NDArray[np.int64] = np.zeros(0, dtype=np.int64)
    if len(rows) < 2:  # a row alone shares all of itself
        return empty, empty
    most = min(shortest - 1, _MOST_SHARED)
    first = rows[0]
    heads = np.stack([row[:most] for row in rows]) == first[:most]
    before = int(np.cumprod(heads.all(axis=0)).sum())
    room = min(shortest - 1 - before, _MOST_SHARED)
    if room <= 0:
        return first[:before], empty
    tails = np.stack([row[len(row) - room :] for row in rows]) == first[len(first) - room :]
    after = int(np.cumprod(tails.all(axis=0)[::-1]).sum())
    return first[:before], first[len(first) - after :]


def _of_length(inner: list[Row], before: Row, after: Row, length: int, start: int) -> Row:
    wanted = length - len(before) - len(after)
    if wanted < 1:  # a limit that leaves no room for the frame
        return np.resize(np.concatenate([before, inner[start % len(inner)], after]), length)
    pieces: list[Row] = []
    while sum(len(piece) for piece in pieces) < wanted:
        pieces.append(inner[(start + len(pieces)) % len(inner)])
    return np.concatenate([before, np.concatenate(pieces)[:wanted], after])
