"""ExportItems and BackupGalleries on a real server: streams, refusals, and copies that serve."""

from __future__ import annotations

import asyncio
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import grpc
import numpy as np
import pytest

from tests.conftest import RunningServer, start
from tests.server import wire
from tests.server.wire import Stubs
from twinserve.client import Client, EnrollItem, Vector
from twinserve.errors import (
    AlreadyExists,
    FailedPrecondition,
    GalleryFull,
    GalleryNotFound,
    InvalidInput,
    Unavailable,
    UndeclaredKey,
)
from twinserve.messages import Hnsw
from twinserve.server.gallery.backup import Progress
from twinserve.server.gate import Gate
from twinserve.server.services.gallery_copy import Backups
from twinserve.v1 import gallery_service_pb2 as pb

Server = Callable[..., RunningServer]
MIB = 1 << 20


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("copies")


@pytest.fixture(scope="module")
def server(twin_file: Path, folder: Path) -> Iterator[RunningServer]:
    """A server that makes backups."""
    (folder / "backups" / ".old.partial").mkdir(parents=True)
    flags = ("--data-dir", folder / "data", "--backup-dir", folder / "backups")
    running = start("--model", twin_file, *flags)
    yield running
    if running.process.poll() is None:
        running.kill()


@pytest.fixture(scope="module")
def client(server: RunningServer) -> Iterator[Client]:
    with Client(server.target) as client:
        yield client


@pytest.fixture
def gallery(client: Client) -> Iterator[str]:
    name = f"g{uuid.uuid4().hex[:8]}"
    client.create_gallery(name, metadata_keys={"count": "integer"})
    yield name
    client.delete_gallery(name)


def fill(client: Client, gallery: str, count: int, note: str = "", first: int = 0) -> None:
    space = client.get_gallery(gallery).space_id
    rng = np.random.default_rng(first)
    at = datetime(2024, 5, 6, 7, 8, 9, 123456, UTC)
    for begin in range(first, first + count, 500):
        client.enroll(
            gallery,
            [
                EnrollItem(
                    Vector(rng.normal(size=16).astype(np.float32), space),
                    id=f"i{n:06}",
                    subject=f"s{n % 9}",
                    metadata={"count": n % 3, "note": note, "at": at, "flag": True, "x": n / 7},
                )
                for n in range(begin, min(begin + 500, first + count))
            ],
        ).checked()


def test_an_export_has_every_item_as_get_item_has_it(client: Client, gallery: str) -> None:
    fill(client, gallery, 40)
    (batch,) = client.export_items(gallery)
    assert batch.item_count == 40
    assert batch.embeddings.shape == (40, 16)
    for item, vector in zip(batch.items, batch.embeddings, strict=True):
        known = client.get_item(gallery, item.id, with_embedding=True)
        assert known.vector is not None
        assert vector.tobytes() == np.asarray(known.vector.values).tobytes()
        assert (item.subject, item.metadata) == (known.subject, known.metadata)
        assert (item.create_time, item.update_time) == (known.create_time, known.update_time)
    rest = [item for part in client.export_items(gallery, after="i000037") for item in part.items]
    assert [item.id for item in rest] == ["i000038", "i000039"]
    (chosen,) = client.export_items(gallery, filter={"count": 1}, with_embedding=False)
    assert {item.metadata["count"] for item in chosen.items} == {1}
    assert chosen.embeddings.shape == (len(chosen.items), 0)


def test_messages_of_an_export_stay_small_and_a_slow_reader_holds_nobody_up(
    client: Client, server: RunningServer, gallery: str
) -> None:
    fill(client, gallery, 3_000, note="x" * 4_000)
    with server.channel() as channel:
        stream = Stubs(channel).gallery.ExportItems(pb.ExportItemsRequest(gallery=gallery))
        first = next(iter(stream))
        assert MIB / 2 < first.ByteSize() < 1.5 * MIB
        assert first.dimension == 16
        time.sleep(0.5)
        began = time.monotonic()
        fill(client, gallery, 1, first=9_000)
        assert client.get_gallery(gallery).item_count == 3_001
        assert time.monotonic() - began < 5
        messages = [first, *stream]
    assert max(message.ByteSize() for message in messages) < 1.5 * MIB
    ids = [item.id for message in messages for item in message.items]
    assert ids == [f"i{n:06}" for n in range(3_000)] + ["i009000"]


def test_what_cannot_be_exported_is_refused_with_a_sentence(client: Client, gallery: str) -> None:
    with pytest.raises(GalleryNotFound):
        list(client.export_items("nobody"))
    with pytest.raises(UndeclaredKey):
        list(client.export_items(gallery, filter={"note": "x"}))
    with pytest.raises(InvalidInput):
        list(client.export_items(gallery, at_least="nonsense"))
    assert [part.items for part in client.export_items(gallery)] == []


def test_a_gallery_deleted_meanwhile_ends_its_export(client: Client, server: RunningServer) -> None:
    client.create_gallery("doomed")
    fill(client, "doomed", 3_000, note="x" * 8_000)
    with server.channel() as channel:
        stream = Stubs(channel).gallery.ExportItems(pb.ExportItemsRequest(gallery="doomed"))
        next(iter(stream))
        client.delete_gallery("doomed")
        with wire.Refused(grpc.StatusCode.NOT_FOUND) as refused:
            list(stream)
    assert wire.reason(refused.status) == "GALLERY_NOT_FOUND"


def test_a_copy_made_while_others_write_serves_what_was_acknowledged(
    client: Client, server: RunningServer, folder: Path, twin_file: Path, start_server: Server
) -> None:
    client.create_gallery("people", max_bytes=100 * MIB)
    client.create_gallery("others")
    fill(client, "people", 2_000)
    stop = threading.Event()
    written = 0

    def write() -> None:
        nonlocal written
        while not stop.is_set():
            fill(client, "people", 10, first=10_000 + 10 * written)
            written += 1

    writer = threading.Thread(target=write)
    writer.start()
    told: list[tuple[str, int, int]] = []
    try:
        made = client.backup_galleries("first", ["people"], lambda *how: told.append(how))
    finally:
        stop.set()
        writer.join()
    assert Path(made.path) == folder / "backups" / "first"
    assert made.bytes > 2_000 * 64
    known = client.get_gallery("people")
    exported = {
        i.id: v.tobytes()
        for b in client.export_items("people")
        for i, v in zip(b.items, b.embeddings, strict=True)
    }
    copy = start_server("--model", twin_file, "--data-dir", made.path)
    with Client(copy.target) as reader:
        assert [one.name for one in reader.list_galleries()] == ["people"]
        copied = reader.get_gallery("people")
        assert (copied.create_time, copied.max_bytes) == (known.create_time, 100 * MIB)
        there = {
            i.id: v.tobytes()
            for b in reader.export_items("people")
            for i, v in zip(b.items, b.embeddings, strict=True)
        }
        fill(reader, "people", 1, first=90_000)
    assert there.items() <= exported.items()
    assert {f"i{n:06}" for n in range(2_000)} <= set(there)
    assert (len(there) - 2_000) % 10 == 0
    with pytest.raises(AlreadyExists):
        client.backup_galleries("first")
    for name in ("people", "others"):
        client.delete_gallery(name)


def test_what_cannot_be_backed_up_is_refused_with_a_sentence(client: Client, folder: Path) -> None:
    with pytest.raises(InvalidInput) as refused:
        client.backup_galleries("../out")
    assert refused.value.field == "folder"
    with pytest.raises(InvalidInput):
        client.backup_galleries("")
    with pytest.raises(GalleryNotFound, match="nobody"):
        client.backup_galleries("second", ["nobody"])
    assert not (folder / "backups" / "second").exists()
    assert not list((folder / "backups").glob(".*")), "the start swept what was cut off"


class EndlessBackup:
    """Galleries whose backup goes on for as long as it may."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.ended: list[BaseException] = []

    def backup(self, names: object, parent: Path, folder: str, tell: Progress) -> Path:
        try:
            while True:
                tell("faces", 1, 2)
                self.begun.set()
                time.sleep(0.001)
        except BaseException as error:
            self.ended.append(error)
            raise


def test_a_backup_that_nobody_waits_for_ends() -> None:
    galleries = EndlessBackup()
    gate = Gate()

    async def cancelled() -> None:
        backups = Backups(galleries, Path("backups"), gate)  # type: ignore[arg-type]
        request = pb.BackupGalleriesRequest(folder="copy")
        told = backups.make(request)
        first = await anext(told)
        assert (first.gallery, first.bytes_done, first.bytes_total) == ("faces", 1, 2)
        waiting = asyncio.ensure_future(anext(told))
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert await gate.close(30.0) == 0

    asyncio.run(cancelled())
    assert len(galleries.ended) == 1


def test_a_backup_ends_as_unavailable_when_the_server_stops() -> None:
    galleries = EndlessBackup()
    gate = Gate()

    async def stopped() -> None:
        backups = Backups(galleries, Path("backups"), gate)  # type: ignore[arg-type]
        told = backups.make(pb.BackupGalleriesRequest(folder="copy"))
        await anext(told)
        closing = asyncio.ensure_future(gate.close(30.0))
        with pytest.raises(Unavailable):
            async for _ in told:
                pass
        assert await closing == 0

    asyncio.run(stopped())
    assert len(galleries.ended) == 1


def test_a_server_without_a_folder_for_backups_says_which_flag(
    twin_file: Path, tmp_path: Path, start_server: Server
) -> None:
    running = start_server("--model", twin_file, "--data-dir", tmp_path)
    with Client(running.target) as client, pytest.raises(FailedPrecondition, match="--backup-dir"):
        client.backup_galleries("copy")


def test_a_stopping_server_ends_a_backup_and_leaves_nothing(
    twin_file: Path, tmp_path: Path, start_server: Server
) -> None:
    flags = ("--data-dir", tmp_path / "data", "--backup-dir", tmp_path / "backups")
    running = start_server("--model", twin_file, *flags)
    with Client(running.target) as client:
        client.create_gallery("large")
        fill(client, "large", 2_000, note="x" * 15_000)
        with running.channel() as channel:
            stream = Stubs(channel).gallery.BackupGalleries(
                pb.BackupGalleriesRequest(folder="copy")
            )
            reading = threading.Thread(target=lambda: _drain(stream))
            reading.start()
            assert running.stop() == 0
            reading.join()
    there = [path.name for path in (tmp_path / "backups").iterdir()]
    assert there in ([], ["copy"])
    assert stream.code() is (grpc.StatusCode.OK if there else grpc.StatusCode.UNAVAILABLE)


def _drain(stream: Iterator[object]) -> None:
    try:
        for _ in stream:
            pass
    except grpc.RpcError:
        pass


def test_a_gallery_says_its_bytes_and_keeps_to_them(client: Client) -> None:
    made = client.create_gallery("bounded", max_bytes=MIB)
    assert made.max_bytes == MIB
    assert 0 < made.disk_bytes < MIB
    assert made.hnsw == Hnsw(16, 200, 64)
    with pytest.raises(GalleryFull, match=str(MIB)):
        fill(client, "bounded", 500, note="x" * 8_000)
    fill(client, "bounded", 10)
    assert client.get_gallery("bounded").item_count == 10
    for value in (-1, 5):
        with pytest.raises(InvalidInput) as refused:
            client.create_gallery("other", max_bytes=value)
        assert refused.value.field == "gallery.max_bytes"
    client.delete_gallery("bounded")
