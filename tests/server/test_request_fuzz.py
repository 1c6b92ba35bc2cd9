"""Requests that nobody would send: each has its answer, and the server is as it was before."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
GROWTH = 64 << 20  # bytes that the server may have grown by after the first tenth


def fuzz(seed: int, count: int, seconds: float) -> dict[str, Any]:
    """Send fuzzed requests from a process of its own; see `tests.request_fuzz`."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.request_fuzz", str(seed), str(count)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=seconds,
    )
    assert done.returncode == 0, f"seed {seed} ended with {done.returncode}:\n{done.stderr[-5000:]}"
    report: dict[str, Any] = json.loads(done.stdout)
    assert report["requests"] == count
    assert report["resident_end"] - report["resident_warm"] < GROWTH, report
    return report


def test_fuzzed_requests_are_answered_and_leave_the_server_as_it_was() -> None:
    outcomes = fuzz(7, 1500, 280)["outcomes"]
    for method in ("Embed", "EmbedStream", "Compare", "Enroll", "Search", "Verify", "ModelInfer"):
        assert outcomes[f"{method} OK"] > 5, "much of what is sent should be nearly sound"
    for method in ("Embed", "Compare", "Enroll", "Search", "Verify", "ModelInfer"):
        assert outcomes[f"{method} INVALID_ARGUMENT"] > 5


@pytest.mark.long
@pytest.mark.timeout(4 * 3600)
@pytest.mark.parametrize("seed", range(100, 110))
def test_a_million_fuzzed_requests_are_harmless_too(seed: int) -> None:
    fuzz(seed, 100_000, 3600)
