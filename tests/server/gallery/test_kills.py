"""Processes killed while they write: what was acknowledged is there, and nothing else.

A killed process proves what a process's death leaves behind, not what a power cut does; for that
the store relies on SQLite's fsync before each answer. KILLS and SEED choose another loop.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.server.gallery import child
from tests.server.gallery.child import State
from tests.server.gallery.folders import opened
from twinserve.server.gallery import Gallery, fail_points
from twinserve.server.gallery.memory import Memory

SHARE_FOUND = 0.98  # of the vectors, by graphs that are narrow on purpose


@dataclass
class Life:
    """What one process did until it died."""

    acknowledged: int = 0
    effects: dict[str, State] = field(default_factory=dict)
    pending: dict[str, State] = field(default_factory=dict)  # asked for, not acknowledged
    status: int = 0


class Nursery:
    """Starts processes of child.py, kills them, and listens to what they say."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.server.gallery.child", "many"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[3],
            env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        )

    def live(self, folder: Path, seed: int, *, point: str = "-", after: int = 0, wait: float = 0):
        """One life: until the fail point, or `wait` seconds after so many acknowledgements."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"work {folder} {seed} {point}\n")
        self._process.stdin.flush()
        life = Life()
        pid = int(self._next()[1])
        while True:
            word, rest = self._next()
            if word == "begin":
                life.pending = {
                    item_id: None if state is None else (state[0], state[1])
                    for item_id, state in json.loads(rest).items()
                }
            elif word == "done":
                life.effects.update(life.pending)
                life.pending = {}
                life.acknowledged += 1
                if point == "-" and life.acknowledged == after:
                    time.sleep(wait)
                    os.kill(pid, signal.SIGKILL)
            else:
                assert word == "ended", (word, rest)
                life.status = int(rest)
                return life

    def _next(self) -> tuple[str, str]:
        assert self._process.stdout is not None
        word, _, rest = self._process.stdout.readline().strip().partition(" ")
        return word, rest

    def close(self) -> None:
        self._process.communicate(timeout=60)


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    made = Nursery()
    with contextlib.closing(made):
        yield made


@dataclass
class Restarts:
    """What restarts rested on, and how the graphs did."""

    from_snapshot: int = 0
    by_graph: int = 0
    found: int = 0


@pytest.fixture
def restarts(monkeypatch: pytest.MonkeyPatch) -> Restarts:
    counted = Restarts()
    restored = Memory.restored.__func__  # type: ignore[attr-defined]

    def counting(cls: type[Memory], *values: Any) -> Memory:
        counted.from_snapshot += 1
        return restored(cls, *values)  # type: ignore[no-any-return]

    monkeypatch.setattr(Memory, "restored", classmethod(counting))
    return counted


def take_in(expected: dict[str, State], life: Life, gallery: Gallery) -> bool:
    """Update what is expected; whether the request in flight is there, which then counts too."""
    expected.update(life.effects)
    there = bool(life.pending) and all(
        child.holds(gallery, item_id, state) for item_id, state in life.pending.items()
    )
    if there:
        expected.update(life.pending)
    return there


def check(gallery: Gallery, expected: dict[str, State], restarts: Restarts) -> None:
    """Everything is as expected, in the store, in the exact search and in the graphs."""
    there = {item_id: state for item_id, state in expected.items() if state is not None}
    assert child.present(gallery) == there
    for item_id, state in expected.items():
        assert child.holds(gallery, item_id, state), (item_id, state)
    status = gallery.status()
    assert status.item_count == len(there)
    subjects = {subject or item_id for item_id, (_, subject) in there.items()}
    assert status.subject_count == len(subjects)
    for subject in sorted(subjects)[:5]:
        holders = [i for i, (_, name) in there.items() if (name or i) == subject]
        assert gallery.count(subject=subject).items == len(holders)
    if not there:
        return
    vectors = {item_id: child.embedding(item_id, state[0]) for item_id, state in there.items()}
    probes = np.stack(list(vectors.values()))
    everyone = gallery.search(probes[:1], k=len(there) + 5, by_subject=False, exact=True)
    assert sorted(item.decode() for item in everyone.ids) == sorted(there)
    for exact in (True, False):
        found = gallery.search(probes, k=1, by_subject=False, exact=exact)
        assert len(found.ids) == len(there)
        for item_id, hits in zip(there, found.results, strict=True):
            (hit,) = hits.hits
            assert hit.item_id in there, f"{hit.item_id} has risen from the dead"
            assert hit.subject == there[hit.item_id][1]
            assert (hit.distance == 0.0) == np.array_equal(vectors[hit.item_id], vectors[item_id])
            if hits.exact:
                assert hit.distance == 0.0
            else:
                restarts.by_graph += 1
                restarts.found += hit.distance == 0.0


def loop(folder: Path, nursery: Nursery, restarts: Restarts, kills: int, seed: int) -> None:
    """Kill a process again and again, each the heir of the one before."""
    print(f"{kills} kills, seed {seed}")
    rng = np.random.default_rng(seed)
    expected: dict[str, State] = {}
    acknowledged = 0
    for kill in range(kills):
        if rng.random() < 0.3:
            point = f"{rng.choice(fail_points.POINTS)}:{rng.integers(1, 4)}"
            life = nursery.live(folder, kill, point=point)
        else:
            after, wait = int(rng.integers(1, 40)), float(rng.uniform(0, 0.02))
            life = nursery.live(folder, kill, after=after, wait=wait)
        assert life.status == -signal.SIGKILL, (kill, life.status)
        acknowledged += life.acknowledged
        with opened(folder, child.LIMITS) as galleries:
            if "faces" not in {one.settings.name for one in galleries.list("", 9)}:
                assert not acknowledged
                continue
            gallery = galleries.get("faces")
            take_in(expected, life, gallery)
            check(gallery, expected, restarts)
    print(f"{acknowledged} acknowledged, {restarts}")
    assert acknowledged > 5 * kills
    # Else the loop would have proved nothing of these.
    assert restarts.from_snapshot > 0.5 * kills
    assert restarts.by_graph > 10 * kills
    assert restarts.found >= SHARE_FOUND * restarts.by_graph


def test_nothing_acknowledged_is_lost_when_the_process_is_killed(
    quick_folder: Path, nursery: Nursery, restarts: Restarts
) -> None:
    loop(quick_folder, nursery, restarts, kills=12, seed=20)


@pytest.mark.long
@pytest.mark.timeout(7_200)
def test_nothing_acknowledged_is_lost_in_a_thousand_kills(
    quick_folder: Path, nursery: Nursery, restarts: Restarts
) -> None:
    seed = int(os.environ.get("SEED", time.time_ns() % 2**32))
    loop(quick_folder, nursery, restarts, int(os.environ.get("KILLS", "1000")), seed)


@pytest.mark.parametrize("point", fail_points.POINTS)
def test_a_process_that_dies_at_a_named_place_leaves_all_or_nothing(
    quick_folder: Path, nursery: Nursery, restarts: Restarts, point: str
) -> None:
    expected: dict[str, State] = {}
    for seed, count in enumerate((3, 2)):  # the second dies on what the first left
        life = nursery.live(quick_folder, seed, point=f"{point}:{count}")
        assert life.status == -signal.SIGKILL
        with opened(quick_folder, child.LIMITS) as galleries:
            gallery = galleries.get("faces")
            there = take_in(expected, life, gallery)
            if point == "before_commit":
                assert not there
            elif point in ("after_commit", "after_publish"):
                assert there
            check(gallery, expected, restarts)


def test_a_place_to_die_has_to_exist() -> None:
    with pytest.raises(ValueError, match="name one of before_commit"):
        fail_points.arm("nowhere")
    fail_points.arm("")
    for point in fail_points.POINTS:
        fail_points.reach(point)  # and nobody dies
