"""Random operations against a dictionary and brute force, with restarts; the seed is the case.

Most restarts take up a snapshot of the index. OPERATIONS and SEED choose another long run.
"""

from __future__ import annotations

import dataclasses
import os
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from tests.server.gallery.folders import SMALL, Known, brute_force, new, settings
from twinserve.distance import Metric
from twinserve.errors import AlreadyExists, ItemNotFound, SubjectNotFound
from twinserve.server.gallery import (
    All,
    Any_,
    AnyOf,
    Change,
    Clause,
    Enrolled,
    Equals,
    Exists,
    Filter,
    Galleries,
    HnswSettings,
    InRange,
    MetadataValue,
    Not,
)
from twinserve.server.gallery.filters import matches
from twinserve.server.gallery.memory import Memory

DIMENSION = 4
OPERATIONS = 1_200
RESTARTS = 151  # operations from one to the next
LIMITS = dataclasses.replace(SMALL, snapshot_rows=100)
START = datetime(2026, 1, 1, tzinfo=UTC)


class Dice:
    """Random material, from few values, so that ids, vectors and facts collide often."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)

    def below(self, count: int) -> int:
        return int(self.rng.integers(count))

    def item_id(self) -> str:
        return f"i{self.below(150):03}"

    def subject(self) -> str:
        number = self.below(60)
        return "" if number < 10 else f"s{number}" if number < 58 else self.item_id()

    def embedding(self) -> np.ndarray:
        if self.below(3) == 0:
            return self.rng.integers(1, 4, DIMENSION).astype(np.float32)
        return self.rng.normal(size=DIMENSION).astype(np.float32)

    def facts(self) -> dict[str, MetadataValue]:
        all_facts: dict[str, MetadataValue] = {
            "colour": "rgb"[self.below(3)],
            "count": self.below(5),
            "weight": self.below(5) / 4,
            "seen": self.below(2) == 1,
            "at": START + timedelta(hours=self.below(5)),
            "undeclared": "anything",
        }
        return {key: value for key, value in all_facts.items() if self.below(2)}

    def filter(self, depth: int = 0) -> Filter:
        kind = self.below(8 if depth < 2 else 5)
        if kind == 5:
            return Not(self.filter(depth + 1))
        if kind > 5:
            parts = tuple(self.filter(depth + 1) for _ in range(self.below(3) + 1))
            return All(parts) if kind == 6 else Any_(parts)
        key = ("colour", "count", "weight", "seen", "at")[self.below(5)]
        some: tuple[MetadataValue, ...] = {
            "colour": ("r", "g", "unknown"),
            "count": (0, 2, 9),
            "weight": (0.25, 0.5, 0.75),
            "seen": (True, False, True),
            "at": (START, START + timedelta(hours=2), START + timedelta(hours=3)),
        }[key]
        if kind == 0:
            return Clause(key, Exists(bool(self.below(2))))
        if kind == 1 or key == "seen":
            return Clause(key, Equals(some[self.below(3)]))
        if kind == 2:
            return Clause(key, AnyOf(some[: self.below(4)]))
        if kind == 3:
            return Clause(key, InRange(at_least=some[0], below=some[1]))
        return Clause(key, InRange(below=some[2]))


@pytest.mark.parametrize(("seed", "metric"), [(1, Metric.EUCLIDEAN), (2, Metric.COSINE)])
def test_random_operations_agree_with_brute_force(
    quick_folder: Path, seed: int, metric: Metric, monkeypatch: pytest.MonkeyPatch
) -> None:
    operate(quick_folder, seed, metric, OPERATIONS, monkeypatch)


@pytest.mark.long
@pytest.mark.timeout(6 * 3_600)
@pytest.mark.parametrize("metric", list(Metric))
def test_two_hundred_thousand_random_operations_agree_with_brute_force(
    quick_folder: Path, metric: Metric, monkeypatch: pytest.MonkeyPatch
) -> None:
    seed = int(os.environ.get("SEED", time.time_ns() % 2**32))
    operations = int(os.environ.get("OPERATIONS", "200000")) // len(Metric)
    operate(quick_folder, seed, metric, operations, monkeypatch)


def operate(
    quick_folder: Path, seed: int, metric: Metric, operations: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    print(f"{operations} operations, seed {seed}")
    dice = Dice(seed)
    from_snapshot = 0
    restored = Memory.restored.__func__  # type: ignore[attr-defined]

    def counting(cls: type[Memory], *values: object) -> Memory:
        nonlocal from_snapshot
        from_snapshot += 1
        return restored(cls, *values)  # type: ignore[no-any-return]

    monkeypatch.setattr(Memory, "restored", classmethod(counting))
    known: dict[str, Known] = {}
    galleries = Galleries(quick_folder, LIMITS)
    galleries.open()
    # A narrow ef, since a search that asks for a quarter of all vectors is scanned anyway.
    narrow = HnswSettings(m=8, ef_construction=50, ef=4)
    galleries.create(settings(metric=metric, dimension=DIMENSION, hnsw=narrow))
    gallery = galleries.get("faces")
    graph_answers = 0

    def enroll() -> None:
        items, expected = [], []
        for item_id in {dice.item_id() for _ in range(dice.below(8) + 1)}:
            subject, facts = dice.subject(), dice.facts()
            old = known.get(item_id)
            embedding = None if dice.below(4) == 0 else dice.embedding()
            items.append(new(item_id, embedding, subject, facts))
            if embedding is None and old is None:
                expected.append(ItemNotFound)
                continue
            stored = embedding if embedding is not None else old.embedding  # type: ignore[union-attr]
            fresh = Known(subject, facts, stored)
            if old is None:
                expected.append(Change.CREATED)
            elif (subject, facts) == (old.subject, old.metadata) and np.array_equal(
                stored, old.embedding
            ):
                expected.append(Change.UNCHANGED)
            else:
                expected.append(Change.REPLACED)
            known[item_id] = fresh
        results = gallery.enroll(items).result().results
        assert [r.change if isinstance(r, Enrolled) else type(r) for r in results] == expected

    def remove() -> None:
        kind = dice.below(4)
        if kind == 0:
            subject = f"s{dice.below(58)}"
            gone = {i for i, item in known.items() if (item.subject or i) == subject}
            removal = gallery.remove(subject=subject)
        elif kind == 1:
            wanted = All((dice.filter(), Clause("count", Equals(1))))
            gone = {i for i, item in known.items() if matches(wanted, item.metadata)}
            removal = gallery.remove(filter=wanted)
        else:
            ids = [dice.item_id() for _ in range(dice.below(4))]
            gone = set(ids) & set(known)
            removal = gallery.remove(ids=ids)
        assert removal.result().removed == len(gone)
        for item_id in gone:
            del known[item_id]

    def move() -> None:
        subject = dice.subject()
        if dice.below(2):
            wanted = All((dice.filter(), Clause("count", Equals(2))))
            chosen = {i for i, item in known.items() if matches(wanted, item.metadata)}
            moving = gallery.move(subject, filter=wanted)
        else:
            ids = [dice.item_id() for _ in range(dice.below(4))]
            chosen = set(ids)
            moving = gallery.move(subject, ids=ids)
            if not chosen <= set(known):
                with pytest.raises(ItemNotFound):
                    moving.result()
                return
        assert moving.result().moved == sum(known[i].subject != subject for i in chosen)
        for item_id in chosen:
            known[item_id] = replace(known[item_id], subject=subject)

    def rename() -> None:
        old, other = (dice.subject() or dice.item_id() for _ in range(2))
        if old == other:
            return
        held, there = (
            {i for i, item in known.items() if (item.subject or i) == name} for name in (old, other)
        )
        merge = dice.below(2) == 0
        renaming = gallery.rename(old, other, merge=merge)
        if not held or (there and not merge):
            with pytest.raises(AlreadyExists if held else SubjectNotFound):
                renaming.result()
            return
        assert renaming.result().moved == len(held)
        for item_id in held:
            known[item_id] = replace(known[item_id], subject=other)

    def search() -> None:
        nonlocal graph_answers
        probes = np.stack([dice.embedding() for _ in range(dice.below(3) + 1)])
        wanted = dice.filter() if dice.below(2) else None
        k, by_subject, exact = dice.below(12) + 1, dice.below(2) == 0, dice.below(2) == 0
        limit = 1.0 if dice.below(3) == 0 else None
        mean_of = dice.below(4) + 1 if by_subject and dice.below(2) else 1
        outcome = gallery.search(
            probes,
            k=k,
            filter=wanted,
            max_distance=limit,
            by_subject=by_subject,
            exact=exact,
            mean_of=mean_of,
        )
        for probe, hits in zip(probes, outcome.results, strict=True):
            far = np.inf if limit is None else limit
            full = brute_force(known, probe, metric, 10**6, wanted, by_subject, far, mean_of)
            found = [(hit.item_id, hit.distance) for hit in hits.hits]
            assert hits.exact or not exact
            if hits.exact:
                assert found == full[:k]
            else:
                graph_answers += 1
                # Approximate in who is found, never in what is said of them.
                truth = dict(full)
                if mean_of == 1:
                    truth = dict(brute_force(known, probe, metric, 10**6, wanted, False))
                assert all(truth[item_id] == distance for item_id, distance in found)
                assert found == sorted(found, key=lambda pair: (pair[1], pair[0]))
            for hit in hits.hits:
                assert hit.subject == known[hit.item_id].subject
        passing = [i for i, item in known.items() if not wanted or matches(wanted, item.metadata)]
        assert outcome.subjects == len({known[i].subject or i for i in passing})

    def read() -> None:
        item_id = dice.item_id()
        if item_id in known:
            item, embedding = gallery.get_item(item_id)
            assert embedding is not None
            kept = known[item_id]
            assert (item.subject, item.metadata) == (kept.subject, kept.metadata)
            assert np.array_equal(embedding, kept.embedding)
        else:
            with pytest.raises(ItemNotFound):
                gallery.get_item(item_id)
        wanted = dice.filter() if dice.below(2) else None
        subject = dice.subject() if dice.below(2) else ""
        chosen = {
            i: m.subject or i
            for i, m in known.items()
            if (not subject or (m.subject or i) == subject)
            and (not wanted or matches(wanted, m.metadata))
        }
        counted = gallery.count(filter=wanted, subject=subject)
        assert (counted.items, counted.subjects) == (len(chosen), len(set(chosen.values())))
        after = "" if subject else item_id
        listed, _ = gallery.list_items(after=after, limit=20, filter=wanted, subject=subject)
        assert [item.id for item in listed] == sorted(i for i in chosen if i > after)[:20]
        status = gallery.status()
        assert status.item_count == len(known)
        assert status.subject_count == len({m.subject or i for i, m in known.items()})

    try:
        for step in range(operations):
            if step % RESTARTS == RESTARTS - 1:
                galleries.close()
                galleries = Galleries(quick_folder, LIMITS)
                galleries.open()
                gallery = galleries.get("faces")
            (enroll, enroll, enroll, remove, move, rename, search, search, search, read)[
                dice.below(10)
            ]()
    finally:
        galleries.close()
    assert graph_answers > 20, "the graphs were never asked: the test lost its point"
    assert from_snapshot > 0.6 * (operations // RESTARTS), "the snapshots were not taken up"
    print(f"{graph_answers} answers by graph, {from_snapshot} starts from a snapshot")
