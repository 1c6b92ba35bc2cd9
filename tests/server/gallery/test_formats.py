"""Data folders that the code of each format wrote open, and keep everything (fixtures/make.py)."""

from __future__ import annotations

import json
import sqlite3
import tarfile
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.server.gallery.fixtures import make
from tests.server.gallery.folders import Known, brute_force, opened
from twinserve.distance import Metric
from twinserve.server.gallery import Clause, Equals, Galleries, Gallery
from twinserve.server.gallery.memory import Memory
from twinserve.server.gallery.snapshots import HNSWLIB
from twinserve.server.gallery.store import SCHEMA_VERSION
from twinserve.server.storage import data_folder

FIXTURES = Path(__file__).parent / "fixtures"
FORMATS = sorted(path.name for path in FIXTURES.glob("*.tar.gz"))


def unpacked(name: str, target: Path) -> tuple[Path, dict[str, Any]]:
    with tarfile.open(FIXTURES / name) as packed:
        packed.extractall(target, filter="data")
    return target / "data", json.loads((target / "expected.json").read_text())


def known_of(said: dict[str, Any]) -> dict[str, Known]:
    known = {}
    for one in said["items"]:
        facts = {
            key: datetime.fromisoformat(value) if key == "at" else value
            for key, value in one["metadata"].items()
        }
        embedding = np.frombuffer(bytes.fromhex(one["embedding"]), dtype=np.float32)
        known[one["id"]] = Known(one["subject"], facts, embedding)
    return known


def check(gallery: Gallery, said: dict[str, Any]) -> None:
    known = known_of(said)
    assert gallery.settings == make.settings(gallery.settings.name, Metric(said["metric"]))
    assert gallery.status().create_time.isoformat() == said["created"]
    listed, _ = gallery.list_items(limit=1_000)
    assert [item.id for item in listed] == sorted(known)
    for item, one in zip(listed, said["items"], strict=True):
        kept = known[item.id]
        assert (item.subject, item.metadata) == (kept.subject, kept.metadata)
        assert item.create_time.isoformat() == one["created"]
        assert item.update_time.isoformat() == one["updated"]
        embedding = gallery.get_item(item.id)[1]
        assert embedding is not None
        assert embedding.tobytes().hex() == one["embedding"]
    green = Clause("colour", Equals("grün"))
    for probe in np.random.default_rng(5).normal(size=(5, 4)).astype(np.float32):
        for wanted in (None, green):
            (hits,) = gallery.search(probe[None], k=7, exact=True, filter=wanted).results
            expected = brute_force(known, probe, gallery.settings.metric, 7, wanted)
            assert [(hit.item_id, hit.distance) for hit in hits.hits] == expected


@pytest.mark.parametrize("name", FORMATS)
def test_a_folder_of_an_earlier_format_opens_and_keeps_everything(
    quick_folder: Path, name: str
) -> None:
    root, said = unpacked(name, quick_folder)
    for _ in range(2):  # as it was, and brought up to date
        with opened(root, make.LIMITS) as galleries:
            names = [status.settings.name for status in galleries.list("", 9)]
            assert names == sorted(said["galleries"])
            for alias, meant in said["aliases"].items():
                assert galleries.get(alias) is galleries.get(meant)
            for gallery_name, content in said["galleries"].items():
                gallery = galleries.get(gallery_name)
                check(gallery, content)
                # A token and a retry of before are still understood.
                gallery.wait_for(content["token"], 0.0)
                items = [make.item(n, vectors()[n]) for n in (51, 52)]
                again = gallery.enroll(items, request_id="once").result()
                assert [one.change.value for one in again.results] == content["retried"]  # type: ignore[union-attr]
                assert again.token == content["token"]
    assert version(root / "catalog.db") == data_folder.SCHEMA_VERSION
    for store in (root / "galleries").glob("*/store.db"):
        assert version(store) == SCHEMA_VERSION


@pytest.mark.parametrize("name", FORMATS)
def test_a_folder_of_an_earlier_format_takes_changes(quick_folder: Path, name: str) -> None:
    root, said = unpacked(name, quick_folder)
    fresh = np.array([1, 2, 3, 4], dtype=np.float32)
    with opened(root, make.LIMITS) as galleries:
        change(galleries, fresh)
    with opened(root, make.LIMITS) as galleries:
        listed = {item.id: item for item in galleries.get("faces").list_items(limit=1_000)[0]}
        known = known_of(said["galleries"]["faces"])
        assert listed.keys() == known.keys() - {"i05"} | {"i70"}
        assert listed["i20"].subject == "i70"
        (hits,) = galleries.get("faces").search(fresh[None], k=1).results
        assert (hits.hits[0].item_id, hits.hits[0].distance) == ("i70", 0.0)
        check(galleries.get("voices"), said["galleries"]["voices"])


def test_the_snapshots_of_the_present_format_are_taken_up(
    quick_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, said = unpacked("format2.tar.gz", quick_folder)
    manifests = [path.read_text() for path in (root / "galleries").glob("*/index/manifest.json")]
    assert len(manifests) == 2
    if not all(f'"hnswlib": "{HNSWLIB}"' in manifest for manifest in manifests):
        pytest.skip("another version of hnswlib, whose files may be others")

    def loaded(gallery: Gallery) -> Memory:
        raise AssertionError("its snapshot was refused")

    monkeypatch.setattr(Gallery, "_loaded", loaded)
    with opened(root, make.LIMITS) as galleries:
        for name, content in said["galleries"].items():
            check(galleries.get(name), content)


def vectors() -> np.ndarray:
    return np.random.default_rng(1).normal(size=(60, 4)).astype(np.float32)


def change(galleries: Galleries, fresh: np.ndarray) -> None:
    gallery = galleries.get("faces")
    gallery.enroll([make.item(70, fresh)]).result()
    gallery.remove(ids=["i05"]).result()
    gallery.move("i70", ids=["i20"]).result()


def version(path: Path) -> int:
    connection = sqlite3.connect(path)
    try:
        return int(connection.execute("PRAGMA user_version").fetchone()[0])
    finally:
        connection.close()
