"""Snapshots of the index: taken up when they are whole and of this state, else made anew.

Whatever a snapshot has become, the gallery opens and answers exactly as before.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.server.gallery import damage
from tests.server.gallery.damage import DAMAGES, DIMENSION, LIMITS, NAMES, answers, settle
from tests.server.gallery.folders import new, one_gallery, opened
from tests.server.gallery.test_estimator import until
from twinserve.server.gallery import Gallery, array_file
from twinserve.server.gallery import gallery as gallery_module
from twinserve.server.gallery.memory import Memory
from twinserve.server.gallery.snapshots import Snapshots
from twinserve.server.gallery.store import MOST_CHANGES

REFUSED = "the snapshot of the index is not used"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, object]]:
    """A folder that is never changed, and its answers, as memory made from the store gives them."""
    root = tmp_path_factory.mktemp("made") / "data"
    damage.make(root)
    without = root.with_name("without")
    shutil.copytree(root, without)
    shutil.rmtree(damage.index_of(without))
    with opened(without, LIMITS) as galleries:
        settle(galleries.get(NAMES[0]))
        right = answers(galleries.get(NAMES[0]))
    return root, right


@pytest.fixture
def data(made: tuple[Path, object], quick_folder: Path) -> Path:
    target = quick_folder / "data"
    shutil.copytree(made[0], target)
    return target


@pytest.fixture
def right(made: tuple[Path, object]) -> object:
    return made[1]


@pytest.fixture
def made_anew(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the galleries whose memory was made from the store alone."""
    names: list[str] = []
    loaded = Gallery._loaded

    def noting(gallery: Gallery) -> Memory:
        names.append(gallery.settings.name)
        return loaded(gallery)

    monkeypatch.setattr(Gallery, "_loaded", noting)
    return names


def give_up_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the process were killed: no snapshot at the end."""
    monkeypatch.setattr(Gallery, "finish", lambda gallery: None)


def test_a_start_takes_up_the_snapshot_and_what_changed_since(
    data: Path, right: object, made_anew: list[str]
) -> None:
    with opened(data, LIMITS) as galleries:
        gallery = galleries.get(NAMES[0])
        assert any(segment.graph for segment in gallery.view.segments)  # at once
        assert answers(gallery) == right
    assert made_anew == []


def test_what_happened_after_a_snapshot_is_repeated_on_it_again_and_again(
    data: Path, made_anew: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    give_up_at_the_end(monkeypatch)
    manifest = (damage.index_of(data) / "manifest.json").read_bytes()
    for seed in range(3):
        with opened(data, LIMITS) as galleries:
            gallery = galleries.get(NAMES[0])
            gallery.remove(ids=["fresh", "i100", "i101"]).result()
            damage.change(gallery, seed)
            gallery.enroll([new("i101", np.ones(DIMENSION), f"again{seed}")]).result()
            expected = answers(gallery)
        with opened(data, LIMITS) as galleries:
            assert answers(galleries.get(NAMES[0])) == expected
        assert (damage.index_of(data) / "manifest.json").read_bytes() == manifest
    assert made_anew == []


@pytest.mark.parametrize("wound", DAMAGES, ids=lambda wound: wound.__name__)
@pytest.mark.parametrize("kind", ["vectors", "graph", "rows", "manifest"])
def test_a_damaged_snapshot_is_made_anew(
    data: Path,
    right: object,
    made_anew: list[str],
    caplog: pytest.LogCaptureFixture,
    kind: str,
    wound: Callable[[Path, np.random.Generator], None],
) -> None:
    wound(damage.files(damage.index_of(data))[kind], np.random.default_rng(5))
    with opened(data, LIMITS) as galleries:
        gallery = galleries.get(NAMES[0])
        settle(gallery)
        assert answers(gallery) == right
    assert made_anew == [NAMES[0]]  # and the other one from its snapshot
    missing = (kind, wound) == ("manifest", damage.remove)
    assert missing or f"gallery faces: {REFUSED}" in caplog.text
    made_anew.clear()
    with opened(data, LIMITS) as galleries:  # from the new one
        assert answers(galleries.get(NAMES[0])) == right
    assert made_anew == []


@pytest.mark.parametrize("kind", ["vectors", "graph", "rows", "manifest"])
def test_a_file_of_another_gallerys_snapshot_is_refused(
    data: Path, right: object, made_anew: list[str], kind: str
) -> None:
    mine, other = (damage.files(damage.index_of(data, name))[kind] for name in NAMES)
    shutil.copy(other, mine)
    with opened(data, LIMITS) as galleries:
        gallery = galleries.get(NAMES[0])
        settle(gallery)
        assert answers(gallery) == right
    assert made_anew == [NAMES[0]]


def test_another_gallerys_whole_snapshot_is_refused(
    data: Path, right: object, made_anew: list[str]
) -> None:
    mine, other = (damage.index_of(data, name) for name in NAMES)
    shutil.rmtree(mine)
    shutil.copytree(other, mine)
    with opened(data, LIMITS) as galleries:
        gallery = galleries.get(NAMES[0])
        settle(gallery)
        assert answers(gallery) == right
    assert made_anew == [NAMES[0]]


def _name_a_file_elsewhere(content: dict[str, Any]) -> None:
    content["segments"][0]["name"] = "../index/" + content["segments"][0]["name"]


def _count_otherwise(content: dict[str, Any]) -> None:
    next(one for one in content["segments"] if "graph" in one)["count"] += 1


def _lose_a_segment(content: dict[str, Any]) -> None:
    content["segments"].pop(0)


def _double_a_segment(content: dict[str, Any]) -> None:
    content["segments"].append(content["segments"][0])


@pytest.mark.parametrize(
    "edit",
    [
        lambda content: content.update(version=2),
        lambda content: content.update(dimension=DIMENSION + 1),
        lambda content: content.update(metric="euclidean"),
        lambda content: content.update(space_id="another"),
        lambda content: content.update(gallery="another"),
        lambda content: content.update(hnswlib="0.0.1"),
        lambda content: content.update(hnsw=[4, 10]),
        lambda content: content["keys"].pop(),
        lambda content: content["keys"].__setitem__(0, ["colour", "integer"]),
        lambda content: content.update(id=content["id"] + 1),
        lambda content: content.update(sequence=10**6),
        lambda content: content.update(sequence=-1),
        lambda content: content.update(sequence="x"),
        lambda content: content.pop("segments") and None,
        lambda content: content.update(segments=None),
        lambda content: content.update(segments=[1]),
        lambda content: content.update(rows="x"),
        lambda content: content["rows"].update(size=0),
        lambda content: [],
        lambda content: "x",
        lambda content: {},
        _name_a_file_elsewhere,
        _count_otherwise,
        _lose_a_segment,
        _double_a_segment,
    ],
)
def test_a_manifest_that_says_something_else_is_refused(
    data: Path,
    right: object,
    made_anew: list[str],
    caplog: pytest.LogCaptureFixture,
    edit: Callable[[dict[str, Any]], Any],
) -> None:
    damage.rewrite_manifest(damage.index_of(data) / "manifest.json", edit)
    with opened(data, LIMITS) as galleries:
        gallery = galleries.get(NAMES[0])
        settle(gallery)
        assert answers(gallery) == right
    assert made_anew == [NAMES[0]]
    assert f"gallery faces: {REFUSED}" in caplog.text


def index_and_store(root: Path) -> tuple[Path, Path]:
    index = damage.index_of(root)
    return index, index.with_name("store.db")


@pytest.mark.parametrize("later", [1, 2])
def test_a_snapshot_of_an_older_state_is_taken_up_only_while_the_store_knows_it(
    data: Path,
    quick_folder: Path,
    made_anew: list[str],
    monkeypatch: pytest.MonkeyPatch,
    later: int,
) -> None:
    """The store knows the last two; `later` came after the one that is put back."""
    monkeypatch.setattr(Gallery, "_worth_saving", lambda gallery, least: least == 1_000)
    index, _ = index_and_store(data)
    shutil.copytree(index, quick_folder / "older")
    for number in range(later):
        with opened(data, LIMITS) as galleries:
            gallery = galleries.get(NAMES[0])
            rows = np.random.default_rng(number).normal(size=(130, DIMENSION)).astype(np.float32)
            gallery.enroll([new(f"r{number}-{n}", row) for n, row in enumerate(rows)]).result()
            gallery.remove(ids=[f"i{n}" for n in range(20 + number, 200, 10)]).result()
            settle(gallery)
            expected = answers(gallery)
    shutil.rmtree(index)
    shutil.copytree(quick_folder / "older", index)
    assert made_anew == []
    with opened(data, LIMITS) as galleries:
        gallery = galleries.get(NAMES[0])
        settle(gallery)
        assert answers(gallery) == expected
    assert made_anew == ([] if later == 1 else [NAMES[0]])


def test_a_store_put_back_from_a_backup_does_not_take_up_a_later_index(
    data: Path, quick_folder: Path, right: object, made_anew: list[str]
) -> None:
    _, store = index_and_store(data)
    shutil.copy(store, quick_folder / "backup")
    with opened(data, LIMITS) as galleries:
        gallery = galleries.get(NAMES[0])
        rows = np.random.default_rng(3).normal(size=(200, DIMENSION)).astype(np.float32)
        gallery.enroll([new(f"later{n}", row) for n, row in enumerate(rows)]).result()
        gallery.remove(ids=[f"i{n}" for n in range(20, 60)]).result()
        settle(gallery)
    for name in ("store.db-wal", "store.db-shm"):
        store.with_name(name).unlink(missing_ok=True)
    shutil.copy(quick_folder / "backup", store)
    made_anew.clear()
    with opened(data, LIMITS) as galleries:
        gallery = galleries.get(NAMES[0])
        settle(gallery)
        assert answers(gallery) == right
    assert made_anew == [NAMES[0]]


def test_a_shortened_log_makes_an_older_snapshot_useless_and_not_wrong(
    data: Path, right: object, made_anew: list[str]
) -> None:
    with opened(data, LIMITS) as galleries:
        gallery = galleries.get(NAMES[0])
        store = gallery.store
        sequence = store.sequence
        assert sequence > store.changes_since
        gallery._writer.call(lambda: store.shorten_log(sequence)).result()
        assert store.changes_since == sequence
        gallery._writer.call(lambda: store.shorten_log(sequence - 1)).result()
        assert store.changes_since == sequence  # what is gone stays gone
    made_anew.clear()
    with opened(data, LIMITS) as galleries:
        gallery = galleries.get(NAMES[0])
        settle(gallery)
        assert answers(gallery) == right
    assert made_anew == [NAMES[0]]


def test_a_log_with_a_gap_is_noticed_by_the_number_of_items(
    data: Path, right: object, made_anew: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    _, path = index_and_store(data)
    connection = sqlite3.connect(path)
    (numbers,) = connection.execute("SELECT number FROM items WHERE id = 'fresh'").fetchall()
    connection.execute("DELETE FROM changes WHERE ? BETWEEN first AND last", numbers)
    connection.commit()
    connection.close()
    with opened(data, LIMITS) as galleries:
        gallery = galleries.get(NAMES[0])
        settle(gallery)
        assert answers(gallery) == right
    assert made_anew == [NAMES[0]]
    assert f"gallery faces: {REFUSED}" in caplog.text


def test_without_a_snapshot_the_log_is_kept_until_it_is_long(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(data, LIMITS) as galleries:
        store = galleries.get(NAMES[0]).store
        before = store.changes_since
        writer = galleries.get(NAMES[0])._writer
        writer.call(lambda: store.shorten_log(None)).result()
        assert (store.changes_since, MOST_CHANGES) == (before, 50_000)
        monkeypatch.setattr("twinserve.server.gallery.store.MOST_CHANGES", 3)
        writer.call(lambda: store.shorten_log(None)).result()
        assert store.changes_since == store.sequence


def test_the_log_of_changes_is_shortened_to_what_the_snapshot_needs(data: Path) -> None:
    with opened(data, LIMITS) as galleries:
        gallery = galleries.get(NAMES[0])
        manifest = gallery._snapshots.manifest
        assert manifest is not None
        gallery.enroll([new("one", np.ones(DIMENSION))]).result()
        until(lambda: gallery.store.changes_since >= manifest.sequence)  # at the next idle moment


class Gate:
    """Stops a snapshot before its rows are written."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.reached, self.open = threading.Event(), threading.Event()
        write = array_file.write

        def gated(path: Path, arrays: Any, facts: Any) -> array_file.Written:
            if path.name.startswith("rows-"):
                self.reached.set()
                assert self.open.wait(60)
            return write(path, arrays, facts)

        monkeypatch.setattr(array_file, "write", gated)


def test_a_snapshot_says_its_own_state_while_writes_go_on(
    quick_folder: Path, monkeypatch: pytest.MonkeyPatch, made_anew: list[str]
) -> None:
    give_up_at_the_end(monkeypatch)
    gate = Gate(monkeypatch)
    rng = np.random.default_rng(4)
    vectors = rng.normal(size=(400, DIMENSION)).astype(np.float32)
    with one_gallery(quick_folder, damage.wanted(NAMES[0]), LIMITS) as gallery:
        colours = [{"colour": "rgb"[n % 3], "count": n} for n in range(300)]
        gallery.enroll([new(f"i{n}", vectors[n], f"s{n // 3}", colours[n]) for n in range(300)])
        assert gate.reached.wait(60)
        before = gallery.view.sequence
        # The view was taken; its rows are read while all this happens.
        gallery.move("moved", ids=["i1", "i2", "i3"]).result()
        damage.change(gallery, 8)
        gallery.remove(ids=[f"i{n}" for n in range(40, 90)]).result()
        gallery.enroll([new(f"l{n}", vectors[n], f"s{n}") for n in range(300, 400)]).result()
        gate.open.set()
        until(lambda: gallery._snapshots.manifest is not None)
        manifest = gallery._snapshots.manifest
        assert manifest is not None
        assert manifest.sequence == before
        settle(gallery)
        expected = answers(gallery)
    with opened(quick_folder, LIMITS) as galleries:
        assert answers(galleries.get(NAMES[0])) == expected
    assert made_anew == ["faces"]  # when it was created


def test_only_the_files_that_are_needed_stay(data: Path) -> None:
    index = damage.index_of(data)
    (index / "segment-0123.arrays").write_bytes(b"left by a crash")
    (index / "rows-1.arrays.tmp").write_bytes(b"left by a crash")
    (index / "a folder").mkdir()  # not ours; in nobody's way
    with opened(data, LIMITS) as galleries:
        gallery = galleries.get(NAMES[0])

        def tidied() -> bool:
            manifest = gallery._snapshots.manifest
            assert manifest is not None
            wanted = {"manifest.json", f"rows-{manifest.sequence}.arrays", "a folder"}
            wanted |= {f"{name}.arrays" for name in manifest.segments}
            wanted |= {f"{name}.graph" for name in manifest.graphs}
            return wanted == {path.name for path in index.iterdir()}

        until(tidied)
        rows = np.random.default_rng(3).normal(size=(200, DIMENSION)).astype(np.float32)
        gallery.enroll([new(f"later{n}", row) for n, row in enumerate(rows)]).result()
        gallery.remove(ids=[f"i{n}" for n in range(200)]).result()
        settle(gallery)
    with opened(data, LIMITS) as galleries:
        gallery = galleries.get(NAMES[0])
        until(tidied)


def no_room(monkeypatch: pytest.MonkeyPatch, index: Path) -> None:
    """No file of this folder can be written, as on a full or read-only disk."""
    write, opened_path = array_file.write, Path.open

    def refused(path: Path, *rest: Any) -> array_file.Written:
        if path.parent == index:
            raise OSError(28, "No space left on device")
        return write(path, *rest)

    def refused_open(path: Path, mode: str = "r", *rest: Any, **more: Any) -> Any:
        if path.parent == index and "r" not in mode:
            raise OSError(30, "Read-only file system")
        return opened_path(path, mode, *rest, **more)

    monkeypatch.setattr(array_file, "write", refused)
    monkeypatch.setattr(Path, "open", refused_open)


def test_without_room_for_the_index_the_search_is_right_and_a_later_snapshot_works(
    quick_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    made_anew: list[str],
) -> None:
    monkeypatch.setattr(gallery_module, "RETRY_SNAPSHOT_SECONDS", 0.2)
    vectors = np.random.default_rng(4).normal(size=(300, DIMENSION)).astype(np.float32)
    with one_gallery(quick_folder, damage.wanted(NAMES[0]), LIMITS) as gallery:
        index = quick_folder / "galleries" / gallery.key / "index"
        with monkeypatch.context() as patched:
            no_room(patched, index)
            colours = [{"colour": "rgb"[n % 3], "count": n} for n in range(300)]
            items = [new(f"i{n}", vectors[n], f"s{n // 3}", colours[n]) for n in range(300)]
            gallery.enroll(items).result()
            gallery.move("moved", ids=["i1", "i2"]).result()
            settle(gallery)
            assert "stay in memory" in caplog.text
            assert all(not segment.file for segment in gallery.view.segments)
            damage.change(gallery, 1)
            expected = answers(gallery)
            assert gallery._snapshots.manifest is None
        gallery.enroll([new("last", vectors[0])]).result()  # now there is room again
        gallery.remove(ids=["last"]).result()

        def written() -> bool:
            gallery._builder.consider(gallery)
            return gallery._snapshots.manifest is not None

        until(written)
        assert all(segment.file for segment in gallery.view.segments if segment.graph)
        assert answers(gallery) == expected
        give_up_at_the_end(monkeypatch)
    made_anew.clear()
    with opened(quick_folder, LIMITS) as galleries:
        assert answers(galleries.get(NAMES[0])) == expected
    assert made_anew == []


def test_without_room_all_the_time_everything_but_a_fast_start_works(
    quick_folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with opened(quick_folder, LIMITS) as galleries:
        galleries.create(damage.wanted(NAMES[0]))
        no_room(monkeypatch, quick_folder / "galleries" / galleries.get(NAMES[0]).key / "index")
        gallery = galleries.get(NAMES[0])
        vectors = np.random.default_rng(4).normal(size=(300, DIMENSION)).astype(np.float32)
        gallery.enroll([new(f"i{n}", row, f"s{n // 3}") for n, row in enumerate(vectors)])
        gallery.move("moved", ids=["i1", "i2"]).result()
        settle(gallery)
        damage.change(gallery, 1)
        expected = answers(gallery)
        for n in range(30):  # what is tried again is not tried at every write
            gallery.enroll([new(f"i{n}", None, f"s{n // 3}")]).result()
            gallery.remove(ids=["nobody"]).result()
    assert caplog.text.count("no snapshot of the index could be written") <= 2
    with opened(quick_folder, LIMITS) as galleries:
        gallery = galleries.get(NAMES[0])
        settle(gallery)
        assert gallery.status().item_count == len(answers_ids(expected))


def answers_ids(said: object) -> list[str]:
    assert isinstance(said, list)
    return [item_id for item_id, _, _ in said[-1]]


@pytest.mark.parametrize("failing", ["note", "rename", "fsync"])
def test_a_snapshot_that_fails_leaves_the_one_before(
    data: Path,
    right: object,
    made_anew: list[str],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    failing: str,
) -> None:
    """However often: the store must go on knowing the one that is there."""
    index, _ = index_and_store(data)
    manifest = (index / "manifest.json").read_bytes()
    rename = Path.rename

    def refused(path: Path, *rest: Any) -> Any:
        if path.name == "manifest.json.tmp":
            raise OSError(28, "No space left on device")
        return rename(path, *rest)

    for _ in range(3):
        with opened(data, LIMITS) as galleries, monkeypatch.context() as patched:
            gallery = galleries.get(NAMES[0])
            connection = gallery.store._connection
            if failing == "note":
                connection.execute("PRAGMA query_only = ON")  # as good as a full disk
            elif failing == "rename":
                patched.setattr(Path, "rename", refused)
            else:
                patched.setattr(os, "fsync", failing_fsync)
            changed = gallery._changed_rows
            assert not gallery._save_snapshot(aside=False)
            assert gallery._changed_rows == changed
            if failing == "note":
                connection.execute("PRAGMA query_only = OFF")
            patched.setattr(Gallery, "finish", lambda gallery: None)
            galleries.close()
    assert caplog.text.count("no snapshot of the index could be written") >= 3
    assert (index / "manifest.json").read_bytes() == manifest
    with opened(data, LIMITS) as galleries:
        assert answers(galleries.get(NAMES[0])) == right
    assert made_anew == []


def failing_fsync(descriptor: int) -> None:
    raise OSError(5, "Input/output error")


def test_a_snapshot_at_the_end_that_fails_keeps_nobody_from_closing(
    data: Path, right: object, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(snapshots: Snapshots, *rest: Any, **more: Any) -> None:
        raise MemoryError("no room for the rows")

    with monkeypatch.context() as patched:
        patched.setattr(Snapshots, "save", fails)
        patched.setattr(Gallery, "_worth_saving", lambda gallery, least: True)
        with opened(data, LIMITS):
            pass
    assert caplog.text.count("no snapshot at the end") == 2
    with opened(data, LIMITS) as galleries:
        assert answers(galleries.get(NAMES[0])) == right


def test_a_graph_that_was_written_short_is_no_snapshot(
    data: Path, made_anew: list[str], caplog: pytest.LogCaptureFixture, right: object
) -> None:
    """hnswlib says nothing of a full disk."""
    with opened(data, LIMITS) as galleries:
        gallery = galleries.get(NAMES[0])
        (graph,) = [s.graph for s in gallery.view.segments if s.graph][:1]
        snapshots_ = gallery._snapshots
        before = snapshots_.manifest

        class Short:
            file_size = graph.file_size + 8
            saving = graph.saving

        with pytest.raises(OSError, match="is the disk full"):
            snapshots_._write_graph(Short(), "segment-short", aside=False)  # type: ignore[arg-type]
        assert snapshots_.manifest == before
        assert not list(snapshots_.folder.glob("segment-short*"))


def test_many_items_of_one_vector_and_one_subject_come_back(
    quick_folder: Path, made_anew: list[str]
) -> None:
    others = np.random.default_rng(1).normal(size=(200, DIMENSION)).astype(np.float32)
    same = np.ones(DIMENSION)
    with one_gallery(quick_folder, damage.wanted(NAMES[0]), LIMITS) as gallery:
        gallery.enroll([new(f"o{n:03}", row, "others") for n, row in enumerate(others)]).result()
        for start in range(0, 2_000, 500):
            some = [new(f"same{n:04}", same, f"s{n % 2}") for n in range(start, start + 500)]
            gallery.enroll(some).result()
        settle(gallery)
        gallery.remove(ids=[f"same{n:04}" for n in range(100)]).result()
    made_anew.clear()
    with opened(quick_folder, LIMITS) as galleries:
        gallery = galleries.get(NAMES[0])
        for exact in (True, False):
            probes = same.astype(np.float32)[None]
            found = gallery.search(probes, k=1_000, by_subject=False, exact=exact)
            assert found.ids == [f"same{n:04}".encode() for n in range(100, 1_100)]
        assert gallery.count(subject="s0").items == 950
        assert gallery.remove(ids=[f"same{n:04}" for n in range(100, 1_999)]).result().removed
        (hits,) = gallery.search(probes, k=1, by_subject=False).results
        assert hits.hits[0].item_id == "same1999"
    assert made_anew == []


def test_new_settings_of_the_server_do_not_spoil_a_snapshot(data: Path, right: object) -> None:
    """Sizes of segments are the server's own, and may be others at the next start."""
    for segment_rows in (16, 1_000):
        limits = dataclasses.replace(LIMITS, segment_rows=segment_rows)
        with opened(data, limits) as galleries:
            gallery = galleries.get(NAMES[0])
            assert answers(gallery) == right


def run_damages(root: Path, count: int, seed: int) -> None:
    print(f"{count} damages, seed {seed}")
    finished = subprocess.run(
        [sys.executable, "-m", "tests.server.gallery.damage", str(root), str(count), str(seed)],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[3],
        check=False,
    )
    assert finished.returncode == 0, finished.stdout[-500:] + finished.stderr[-3_000:]
    assert finished.stdout.endswith("all right\n")


def test_no_damage_crashes_a_start_or_changes_an_answer(data: Path) -> None:
    run_damages(data, 5, seed=20)


@pytest.mark.long
@pytest.mark.timeout(3_600)
def test_no_damage_of_five_hundred_crashes_a_start_or_changes_an_answer(data: Path) -> None:
    seed = int(os.environ.get("SEED", time.time_ns() % 2**32))
    run_damages(data, int(os.environ.get("DAMAGES", "500")), seed)
