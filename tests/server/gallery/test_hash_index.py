"""The map from keys to numbers against a dictionary."""

from __future__ import annotations

import numpy as np
import pytest

from twinserve.server.gallery import hash_index
from twinserve.server.gallery.hash_index import NOTHING, HashIndex


def check(index: HashIndex, known: dict[int, int], keys: np.ndarray) -> None:
    expected = [known.get(int(key), NOTHING) for key in keys]
    assert index.get(keys).tolist() == expected
    assert len(index) == len(known)
    found_keys, values = index.items()
    assert dict(zip(found_keys.tolist(), values.tolist(), strict=True)) == known


@pytest.mark.parametrize("seed", range(4))
def test_it_agrees_with_a_dictionary(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hash_index, "_PIECE", 7)
    rng = np.random.default_rng(seed)
    universe = rng.integers(0, 2**64, 400, dtype=np.uint64, endpoint=False)
    universe[:3] = (0, 1, 2**64 - 1)
    if seed % 2:  # chains: all of these begin in few slots
        universe = np.arange(0, 400 * 2**40, 2**40, dtype=np.uint64)
    universe = np.unique(universe)
    known: dict[int, int] = {}
    index = HashIndex(int(rng.integers(0, 300)))
    for _ in range(100):
        some = rng.choice(universe, int(rng.integers(0, 30)), replace=False)
        if rng.random() < 0.5:
            fresh = np.array([key for key in some.tolist() if key not in known], dtype=np.uint64)
            values = rng.integers(0, 2**31 - 1, len(fresh))
            index.put(fresh, values)
            known.update(zip(fresh.tolist(), values.tolist(), strict=True))
        else:
            index.drop(some)
            for key in some.tolist():
                known.pop(key, None)
        check(index, known, universe)


def test_a_table_that_is_filled_and_emptied_over_and_over_does_not_grow() -> None:
    index = HashIndex()
    keys = np.arange(1_000, dtype=np.uint64)
    for turn in range(50):
        index.put(keys + np.uint64(turn), np.arange(1_000))
        index.drop(keys + np.uint64(turn))
    assert len(index) == 0
    assert index.nbytes <= 12 * 4_096


def test_a_number_of_more_than_31_bits_is_refused() -> None:
    index = HashIndex()
    index.put(np.array([1], np.uint64), np.array([2**31 - 1]))
    with pytest.raises(OverflowError, match="31 bits"):
        index.put(np.array([2], np.uint64), np.array([2**31]))
    assert index.get(np.array([1, 2], np.uint64)).tolist() == [2**31 - 1, NOTHING]
