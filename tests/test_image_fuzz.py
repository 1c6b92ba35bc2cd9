"""Damaged pictures of every format: refused or decoded, in no time and within memory."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def fuzz(seed: int, count: int) -> dict[str, int]:
    """Decode damaged pictures in a process of its own; see `tests.image_fuzz`."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.image_fuzz", str(seed), str(count)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, f"seed {seed} ended with {done.returncode}:\n{done.stderr[-3000:]}"
    report = json.loads(done.stdout)
    outcomes: dict[str, int] = report["outcomes"]
    assert sum(outcomes.values()) == count
    assert report["slowest"] < 5, "seconds of one processor for a picture of a megapixel"
    return outcomes


def test_damaged_pictures_neither_crash_nor_hang_nor_take_memory() -> None:
    outcomes = fuzz(7, 4000)
    assert set(outcomes) == {"decoded", "IMAGE_UNDECODABLE", "LIMIT_EXCEEDED", "EMPTY_INPUT"}
    assert outcomes["decoded"] > 400, "damage that nothing notices should be among it"
    assert outcomes["LIMIT_EXCEEDED"] > 20, "and headers that claim too much"


@pytest.mark.long
@pytest.mark.parametrize("seed", range(100, 120))
def test_many_more_damaged_pictures_are_harmless_too(seed: int) -> None:
    fuzz(seed, 50_000)
