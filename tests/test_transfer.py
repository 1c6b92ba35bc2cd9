"""Whole galleries to Parquet and back, with a client that is cut off wherever a test likes."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from twinserve import transfer
from twinserve.distance import Metric
from twinserve.errors import (
    DataError,
    GalleryNotFound,
    InvalidInput,
    SpaceMismatch,
    TwinserveError,
    Unavailable,
)
from twinserve.messages import Enrolled, EnrollItem, Exported, Gallery, Hnsw, Item, Results
from twinserve.v1 import gallery_pb2

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

AT = datetime(2024, 5, 6, 7, 8, 9, 123457, UTC)
COUNT = 53


class Server:
    """The calls of a client that a transfer makes, over galleries in a dictionary."""

    def __init__(self) -> None:
        self.galleries: dict[str, dict[str, Any]] = {}
        self.settings: dict[str, Gallery] = {}
        self.answers: dict[str, Results[Enrolled]] = {}
        self.sent = 0
        self.lose_after: int | None = None  # calls or batches before the connection breaks
        self.lose_answer = False  # the write was done, and nobody heard

    def create_gallery(
        self,
        name: str,
        *,
        model: str = "",
        dimension: int = 0,
        metric: str | None = None,
        metadata_keys: dict[str, str] | None = None,
        max_items: int = 0,
        max_bytes: int = 0,
        hnsw: gallery_pb2.HnswConfig | None = None,
    ) -> Gallery:
        graph = Hnsw(16, 200, 64)
        if hnsw is not None:
            graph = Hnsw(hnsw.m, hnsw.ef_construction, hnsw.ef)
        made = Gallery(
            name=name,
            model=model,
            space_id="space",
            dimension=dimension,
            metric=Metric(metric or "euclidean"),
            metadata_keys=metadata_keys or {},
            max_items=max_items,
            item_count=0,
            subject_count=0,
            index_debt=0,
            create_time=AT,
            max_bytes=max_bytes,
            hnsw=graph,
        )
        self.settings[name] = made
        self.galleries[name] = {}
        return made

    def get_gallery(self, name: str) -> Gallery:
        if name not in self.settings:
            raise GalleryNotFound(name)
        return dataclasses.replace(self.settings[name], item_count=len(self.galleries[name]))

    def export_items(self, name: str, *, after: str = "") -> Iterator[Exported]:
        items = sorted((i, entry) for i, entry in self.galleries[name].items() if i > after)
        for number, start in enumerate(range(0, len(items), 5)):
            if number == self.lose_after:
                raise Unavailable("gone")
            part = [entry for _, entry in items[start : start + 5]]
            yield Exported(
                tuple(Item(i, s, m, AT, AT) for i, s, m, _ in part),
                np.stack([vector for *_, vector in part]),
                3,
                len(self.galleries[name]),
            )

    def enroll(
        self,
        name: str,
        items: Sequence[EnrollItem],
        *,
        request_id: str,
        timeout: float,
    ) -> Results[Enrolled]:
        self.sent += 1
        if self.lose_after is not None and self.sent > self.lose_after and not self.lose_answer:
            raise Unavailable("gone")
        if request_id in self.answers:
            return self.answers[request_id]
        results: list[Enrolled | TwinserveError] = []
        for place, item in enumerate(items):
            vector = np.asarray(item.input.values)  # type: ignore[union-attr]
            entry = (item.id, item.subject, dict(item.metadata), vector)
            if not vector.any():
                results.append(InvalidInput("all zeros", field=f"items[{place}].input"))
                continue
            there = self.galleries[name].get(item.id)
            self.galleries[name][item.id] = entry
            results.append(Enrolled(item.id, "created" if there is None else "replaced"))
        self.answers[request_id] = Results(tuple(results), 0, None)  # type: ignore[arg-type]
        if self.lose_after is not None and self.sent > self.lose_after:
            raise Unavailable("gone")
        return self.answers[request_id]


@pytest.fixture
def server() -> Any:
    server = Server()
    server.create_gallery(
        "a",
        model="twin",
        dimension=3,
        metric="cosine",
        metadata_keys={"age": "integer"},
        max_items=70,
        max_bytes=1 << 30,
        hnsw=gallery_pb2.HnswConfig(m=8, ef_construction=50, ef=32),
    )
    rng = np.random.default_rng(5)
    for n in range(COUNT):
        metadata = {"age": n, "free": "é" * n} if n % 2 else {}
        vector = rng.normal(size=3).astype(np.float32)
        server.galleries["a"][f"i{n}"] = (f"i{n}", f"s{n % 4}", metadata, vector)
    return server


def content(server: Any, name: str) -> dict[str, tuple[Any, ...]]:
    return {i: (s, m, v.tobytes()) for i, s, m, v in server.galleries[name].values()}


def test_a_gallery_comes_back_as_it_was(server: Any, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    done = transfer.export_gallery(
        server, "a", tmp_path / "out", lambda *how: told.append(how), part_rows=20
    )
    assert (done.items, done.parts, done.exported) == (COUNT, 3, COUNT)
    assert told[-1] == (COUNT, COUNT)
    assert sorted(path.name for path in done.folder.iterdir()) == [
        "gallery.json",
        "part-00000.parquet",
        "part-00001.parquet",
        "part-00002.parquet",
    ]
    made = transfer.create_like(server, "b", done.folder)
    original = server.get_gallery("a")
    assert made == dataclasses.replace(original, name="b", item_count=0)
    told.clear()
    found = transfer.import_items(server, "b", done.folder, lambda *how: told.append(how), batch=7)
    assert (found.rows, found.skipped, found.changes) == (COUNT, 0, {"created": COUNT})
    assert told[-1] == (COUNT, COUNT)
    assert content(server, "b") == content(server, "a")
    assert not list(done.folder.glob(".*")), "what an import notes goes when it is done"


@pytest.mark.parametrize("lost", range(11))
def test_an_export_goes_on_after_its_last_whole_part(
    server: Any, tmp_path: Path, lost: int
) -> None:
    server.lose_after = lost
    with pytest.raises(Unavailable):
        transfer.export_gallery(server, "a", tmp_path, part_rows=10)
    assert not [one for one in tmp_path.iterdir() if "part-" in one.name and one.name[0] == "."]
    (tmp_path / ".part-00009.parquet.partial").write_text("of one that was killed")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("part-*")}
    with pytest.raises(DataError, match="not complete"):
        transfer.files_of(tmp_path)
    server.lose_after = None
    done = transfer.export_gallery(server, "a", tmp_path, part_rows=10)
    assert done.items == COUNT
    assert done.exported == COUNT - 10 * len(before)
    assert all(path.stat().st_mtime_ns == at for path, at in before.items())
    ids = [i for path in transfer.files_of(tmp_path) for i in pq.read_table(path)["id"].to_pylist()]
    assert ids == sorted(server.galleries["a"])


def test_an_export_never_goes_into_a_folder_of_something_else(server: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(DataError, match="not empty"):
        transfer.export_gallery(server, "a", tmp_path)
    transfer.export_gallery(server, "a", tmp_path / "whole")
    with pytest.raises(DataError, match="complete export of gallery 'a'"):
        transfer.export_gallery(server, "a", tmp_path / "whole")
    server.lose_after = 3
    with pytest.raises(Unavailable):
        transfer.export_gallery(server, "a", tmp_path / "half", part_rows=10)
    server.lose_after = None
    server.settings["a"] = dataclasses.replace(server.settings["a"], create_time=datetime.now(UTC))
    with pytest.raises(DataError, match="created differ"):
        transfer.export_gallery(server, "a", tmp_path / "half", part_rows=10)


def test_an_empty_gallery_is_exported_and_made_again(server: Any, tmp_path: Path) -> None:
    server.galleries["a"].clear()
    done = transfer.export_gallery(server, "a", tmp_path)
    assert (done.items, done.parts) == (0, 0)
    made = transfer.create_like(server, "b", tmp_path, model="other")
    assert (made.dimension, made.model) == (3, "other")
    assert transfer.import_items(server, "b", tmp_path).rows == 0


@pytest.mark.parametrize("lose_answer", [False, True])
@pytest.mark.parametrize("lost", [0, 1, 4, 8])
def test_an_import_goes_on_and_does_nothing_twice(
    server: Any, tmp_path: Path, lost: int, lose_answer: bool
) -> None:
    transfer.export_gallery(server, "a", tmp_path, part_rows=20)
    transfer.create_like(server, "b", tmp_path)
    server.lose_after, server.lose_answer = lost, lose_answer
    with pytest.raises(Unavailable):
        transfer.import_items(server, "b", tmp_path, batch=5)
    there = len(server.galleries["b"])
    server.lose_after = None
    done = transfer.import_items(server, "b", tmp_path, batch=5)
    assert content(server, "b") == content(server, "a")
    assert done.skipped + sum(done.changes.values()) == COUNT
    assert set(done.changes) <= {"created"}, "what was done is answered again, not done again"
    assert done.skipped <= there


def test_an_import_that_was_done_can_be_done_again(server: Any, tmp_path: Path) -> None:
    transfer.export_gallery(server, "a", tmp_path)
    transfer.create_like(server, "b", tmp_path)
    transfer.import_items(server, "b", tmp_path)
    server.galleries["b"].clear()
    assert transfer.import_items(server, "b", tmp_path).changes == {"created": COUNT}
    assert len(server.galleries["b"]) == COUNT


def test_a_file_that_changed_is_imported_from_its_start(server: Any, tmp_path: Path) -> None:
    def write(value: float) -> None:
        vectors = pa.array([[value, n, 1] for n in range(20)], pa.list_(pa.float32()))
        table = pa.table({"id": [f"x{n}" for n in range(20)], "embedding": vectors})
        pq.write_table(table, tmp_path / "x.parquet")

    server.create_gallery("b", dimension=3)
    write(1.0)
    server.lose_after = 2
    with pytest.raises(Unavailable):
        transfer.import_items(server, "b", tmp_path / "x.parquet", batch=5)
    server.lose_after = None
    write(2.0)
    done = transfer.import_items(server, "b", tmp_path / "x.parquet", batch=5)
    assert done.skipped == 0
    assert {vector[0] for *_, vector in server.galleries["b"].values()} == {2.0}


def test_a_folder_that_cannot_be_written_is_imported_all_the_same(
    server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    transfer.export_gallery(server, "a", tmp_path)
    transfer.create_like(server, "b", tmp_path)

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError("read-only")

    monkeypatch.setattr(transfer, "_write_json", refuse)
    assert transfer.import_items(server, "b", tmp_path).changes == {"created": COUNT}


def test_a_row_that_the_server_refuses_is_named_and_where_the_next_run_begins(
    server: Any, tmp_path: Path
) -> None:
    vectors = [[1, n, 1] for n in range(30)]
    vectors[17] = [0, 0, 0]
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"embedding": pa.array(vectors, pa.list_(pa.float32()))}), path)
    server.create_gallery("b", dimension=3)
    with pytest.raises(DataError, match=r"x\.parquet, row 18: all zeros"):
        transfer.import_items(server, "b", path, batch=5)
    (notes,) = tmp_path.glob(".import-b.json")
    assert json.loads(notes.read_text())["rows"]["x.parquet"]["rows"] == 15


def test_embeddings_of_another_space_or_dimension_are_refused_before_a_row_is_sent(
    server: Any, tmp_path: Path
) -> None:
    transfer.export_gallery(server, "a", tmp_path)
    server.create_gallery("b", dimension=3)
    server.settings["b"] = dataclasses.replace(server.settings["b"], space_id="elsewhere")
    with pytest.raises(SpaceMismatch, match="elsewhere"):
        transfer.import_items(server, "b", tmp_path)
    with pytest.raises(SpaceMismatch):
        transfer.import_items(server, "b", tmp_path / "part-00000.parquet")
    server.settings["b"] = dataclasses.replace(server.settings["b"], space_id="space", dimension=4)
    with pytest.raises(DataError, match="3 values, and gallery 'b' takes 4"):
        transfer.import_items(server, "b", tmp_path)
    assert server.sent == 0


def test_what_is_no_import_is_refused_with_a_sentence(server: Any, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        transfer.import_items(server, "a", tmp_path / "nothing")
    with pytest.raises(DataError, match=r"no \*\.parquet"):
        transfer.import_items(server, "a", tmp_path)
    with pytest.raises(GalleryNotFound):
        transfer.import_items(server, "nobody", tmp_path)
    transfer.export_gallery(server, "a", tmp_path / "out", part_rows=10)
    (tmp_path / "out" / "part-00002.parquet").unlink()
    with pytest.raises(DataError, match="5 parts, and its export wrote 6"):
        transfer.import_items(server, "a", tmp_path / "out")
    (tmp_path / "out" / "gallery.json").write_text("{")
    with pytest.raises(DataError, match="is not JSON"):
        transfer.import_items(server, "a", tmp_path / "out")
