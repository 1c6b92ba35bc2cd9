"""Damaged manifests and twin files: refused with one short sentence, or taken as they are."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def fuzz(seed: int, count: int) -> dict[str, int]:
    """Read damaged manifests in a process of its own; see `tests.manifest_fuzz`."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.manifest_fuzz", str(seed), str(count)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, f"seed {seed} ended with {done.returncode}:\n{done.stderr[-3000:]}"
    outcomes: dict[str, int] = json.loads(done.stdout)
    assert sum(outcomes.values()) == count
    assert "refused at length" not in outcomes, "a sentence of more than 2,000 characters"
    return outcomes


def test_a_damaged_manifest_is_refused_with_a_short_sentence_or_reads_back() -> None:
    outcomes = fuzz(7, 1500)
    assert outcomes["refused"] > 800
    assert outcomes["taken"] > 50, "damage to weights and free text is not the manifest's to see"


@pytest.mark.long
@pytest.mark.parametrize("seed", range(100, 110))
def test_many_more_damaged_manifests_are_harmless_too(seed: int) -> None:
    fuzz(seed, 50_000)
