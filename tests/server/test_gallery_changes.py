"""Moves, renames, counts, aliases and bulk enrolment through the contract."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest

from tests import twins
from tests.conftest import RunningServer
from tests.server import wire
from tests.server.wire import Refused, Stubs
from twinserve.client import Client, EnrollItem
from twinserve.v1 import gallery_pb2, shared_pb2
from twinserve.v1 import gallery_service_pb2 as pb

CODE = grpc.StatusCode
PIXELS, _ = twins.classes_of_pixels(4, 3)


@pytest.fixture(scope="module")
def stubs(server: RunningServer) -> Iterator[Stubs]:
    with server.channel() as channel:
        yield Stubs(channel)


def create(stubs: Stubs, name: str, **more: object) -> gallery_pb2.Gallery:
    key = gallery_pb2.MetadataKey(key="even", type=gallery_pb2.METADATA_TYPE_FLAG)
    made = gallery_pb2.Gallery(name=name, metadata_keys=[key], **more)  # type: ignore[arg-type]
    return stubs.gallery.CreateGallery(pb.CreateGalleryRequest(gallery=made)).gallery


def items(count: int, of: int = 3, prefix: str = "item") -> list[pb.EnrollItem]:
    """Items `item-0` …, of subjects `s0` … by turns, that know whether their number is even."""
    return [
        pb.EnrollItem(
            item=shared_pb2.Item(
                id=f"{prefix}-{i}",
                subject=f"s{i % of}",
                metadata={"even": shared_pb2.MetadataValue(flag=i % 2 == 0)},
            ),
            input=wire.tensor(PIXELS[i % len(PIXELS)]),
        )
        for i in range(count)
    ]


EVEN = shared_pb2.Filter(
    clause=shared_pb2.Clause(key="even", equals=shared_pb2.MetadataValue(flag=True))
)


@pytest.fixture
def gallery(stubs: Stubs) -> str:
    """A gallery of nine items, three each of s0, s1 and s2."""
    name = f"g{uuid.uuid4().hex[:8]}"
    create(stubs, name)
    stubs.gallery.Enroll(pb.EnrollRequest(gallery=name, items=items(9)))
    return name


def counted(stubs: Stubs, gallery: str, **more: object) -> tuple[int, int]:
    reply = stubs.gallery.CountItems(pb.CountItemsRequest(gallery=gallery, **more))  # type: ignore[arg-type]
    return reply.item_count, reply.subject_count


def listed(stubs: Stubs, gallery: str, subject: str = "") -> list[str]:
    request = pb.ListItemsRequest(gallery=gallery, subject=subject, page_size=2)
    found = []
    while True:
        page = stubs.gallery.ListItems(request)
        found += [item.id for item in page.items]
        if not page.next_page_token:
            return found
        request.page_token = page.next_page_token


def test_items_move_by_id_and_by_filter_once_per_request(stubs: Stubs, gallery: str) -> None:
    ids = pb.IdList(ids=["item-0", "item-1"])
    move = pb.MoveItemsRequest(gallery=gallery, ids=ids, subject="new", request_id="m")
    reply = stubs.gallery.MoveItems(move)
    assert reply.moved == 2
    count = pb.CountItemsRequest(gallery=gallery, subject="new", at_least=reply.consistency_token)
    assert stubs.gallery.CountItems(count).item_count == 2
    by_filter = pb.MoveItemsRequest(gallery=gallery, filter=EVEN, subject="even")
    assert stubs.gallery.MoveItems(by_filter).moved == 5
    assert stubs.gallery.MoveItems(move) == reply, "a retry is answered, and done no second time"
    assert listed(stubs, gallery, "new") == ["item-1"]
    move.subject = "other"
    with Refused(CODE.INVALID_ARGUMENT) as refused:
        stubs.gallery.MoveItems(move)
    assert wire.field(refused.status) == "request_id"


def test_a_move_of_an_unknown_id_moves_nothing(stubs: Stubs, gallery: str) -> None:
    ids = pb.IdList(ids=["item-0", "nobody"])
    with Refused(CODE.NOT_FOUND) as refused:
        stubs.gallery.MoveItems(pb.MoveItemsRequest(gallery=gallery, ids=ids, subject="new"))
    assert wire.reason(refused.status) == "ITEM_NOT_FOUND"
    assert counted(stubs, gallery, subject="new") == (0, 0)


def test_a_subject_is_renamed_and_merged_only_when_asked(stubs: Stubs, gallery: str) -> None:
    rename = pb.RenameSubjectRequest(
        gallery=gallery, subject="s0", new_subject="s1", request_id="r"
    )
    with Refused(CODE.ALREADY_EXISTS) as refused:
        stubs.gallery.RenameSubject(rename)
    assert wire.reason(refused.status) == "ALREADY_EXISTS"
    rename.merge = True
    reply = stubs.gallery.RenameSubject(rename)
    assert reply.moved == 3
    assert stubs.gallery.RenameSubject(rename) == reply
    assert counted(stubs, gallery) == (9, 2)
    with Refused(CODE.NOT_FOUND) as refused:
        stubs.gallery.RenameSubject(
            pb.RenameSubjectRequest(gallery=gallery, subject="s0", new_subject="x")
        )
    assert wire.reason(refused.status) == "SUBJECT_NOT_FOUND"
    verify = pb.VerifyRequest(gallery=gallery, subject="s1", probe=wire.tensor(PIXELS[0]))
    assert stubs.gallery.Verify(verify).items_compared == 6


def test_items_are_counted_and_listed_by_subject_and_filter(stubs: Stubs, gallery: str) -> None:
    assert counted(stubs, gallery) == (9, 3)
    assert counted(stubs, gallery, filter=EVEN) == (5, 3)
    assert counted(stubs, gallery, subject="s1", filter=EVEN) == (1, 1)
    assert listed(stubs, gallery, "s1") == ["item-1", "item-4", "item-7"]
    assert listed(stubs, gallery, "nobody") == []
    with Refused(CODE.INVALID_ARGUMENT):
        counted(stubs, gallery, at_least="rubbish")


def test_a_page_token_is_bound_to_its_subject(stubs: Stubs, gallery: str) -> None:
    first = pb.ListItemsRequest(gallery=gallery, subject="s1", page_size=1)
    token = stubs.gallery.ListItems(first).next_page_token
    assert token
    for other in ("", "s2"):
        request = pb.ListItemsRequest(gallery=gallery, subject=other, page_token=token)
        with Refused(CODE.INVALID_ARGUMENT) as refused:
            stubs.gallery.ListItems(request)
        assert wire.reason(refused.status) == "BAD_PAGE_TOKEN"


def test_every_call_takes_an_alias_and_follows_it_when_it_moves(stubs: Stubs) -> None:
    for name in ("nightly-1", "nightly-2"):
        create(stubs, name)
        stubs.gallery.Enroll(pb.EnrollRequest(gallery=name, items=items(9)))
    alias = pb.SetGalleryAliasRequest(alias="nightly", gallery="nightly-1")
    assert stubs.gallery.SetGalleryAlias(alias).previous == ""
    stubs.gallery.Enroll(pb.EnrollRequest(gallery="nightly", items=items(12)))
    shown = stubs.gallery.GetGallery(pb.GetGalleryRequest(name="nightly")).gallery
    assert (shown.name, shown.item_count, list(shown.aliases)) == ("nightly-1", 12, ["nightly"])
    page = stubs.gallery.ListItems(pb.ListItemsRequest(gallery="nightly", page_size=2))
    search = pb.SearchRequest(gallery="nightly", probes=[wire.tensor(PIXELS[0])])
    assert stubs.gallery.Search(search).results[0].hits.hits

    alias.gallery = "nightly-2"
    assert stubs.gallery.SetGalleryAlias(alias).previous == "nightly-1"
    assert counted(stubs, "nightly") == (9, 3)
    galleries = stubs.gallery.ListGalleries(pb.ListGalleriesRequest()).galleries
    assert {one.name: list(one.aliases) for one in galleries if one.name.startswith("night")} == {
        "nightly-1": [],
        "nightly-2": ["nightly"],
    }
    stale = pb.ListItemsRequest(gallery="nightly", page_size=2, page_token=page.next_page_token)
    with Refused(CODE.INVALID_ARGUMENT) as refused:
        stubs.gallery.ListItems(stale)
    assert wire.reason(refused.status) == "BAD_PAGE_TOKEN", "the token was of the other gallery"
    stale = pb.ListItemsRequest(gallery="nightly", at_least=page.consistency_token)
    with Refused(CODE.INVALID_ARGUMENT) as refused:
        stubs.gallery.ListItems(stale)
    assert wire.field(refused.status) == "at_least"
    stale = pb.ListItemsRequest(gallery="nightly-1", page_size=2, page_token=page.next_page_token)
    assert stubs.gallery.ListItems(stale).items, "under its own name the list goes on"


def test_names_and_aliases_are_kept_apart(stubs: Stubs, gallery: str) -> None:
    alias = f"alias-{gallery}"
    stubs.gallery.SetGalleryAlias(pb.SetGalleryAliasRequest(alias=alias, gallery=gallery))
    with Refused(CODE.ALREADY_EXISTS) as refused:
        create(stubs, alias)
    assert gallery in refused.status.message
    for name, told in ((alias, gallery), (gallery, alias)):
        with Refused(CODE.FAILED_PRECONDITION) as refused:
            stubs.gallery.DeleteGallery(pb.DeleteGalleryRequest(name=name))
        assert told in refused.status.message
    with Refused(CODE.ALREADY_EXISTS):
        stubs.gallery.SetGalleryAlias(pb.SetGalleryAliasRequest(alias=gallery, gallery=gallery))
    with Refused(CODE.INVALID_ARGUMENT) as refused:
        stubs.gallery.SetGalleryAlias(pb.SetGalleryAliasRequest(alias="A b", gallery=gallery))
    assert wire.field(refused.status) == "alias"
    other = create(stubs, f"c{gallery}", metric=shared_pb2.METRIC_COSINE)
    switch = pb.SetGalleryAliasRequest(alias=alias, gallery=other.name)
    with Refused(CODE.FAILED_PRECONDITION) as refused:
        stubs.gallery.SetGalleryAlias(switch)
    assert "threshold" in refused.status.message
    stubs.gallery.DeleteGalleryAlias(pb.DeleteGalleryAliasRequest(alias=alias))
    stubs.gallery.SetGalleryAlias(switch)
    stubs.gallery.DeleteGallery(pb.DeleteGalleryRequest(name=gallery))


def test_a_stream_enrols_pictures_as_enroll_does(stubs: Stubs, gallery: str) -> None:
    many = items(60, prefix="bulk")
    many[20].input.image = b"no picture"
    sent = [pb.EnrollRequest(gallery=gallery, items=many[i : i + 7]) for i in range(0, 60, 7)]
    replies = list(stubs.gallery.EnrollStream(iter(sent), timeout=60))
    results = [result for reply in replies for result in reply.results]
    assert [result.HasField("error") for result in results] == [i == 20 for i in range(60)]
    assert wire.field(results[20].error) == "items[6].input.image"
    assert all(reply.timing.batch_rows for reply in replies)
    assert counted(stubs, gallery)[0] == 9 + 59
    again = stubs.gallery.Enroll(pb.EnrollRequest(gallery=gallery, items=many[:7]))
    assert [one.enrolled.change for one in again.results] == [pb.CHANGE_UNCHANGED] * 7
    with Refused(CODE.INVALID_ARGUMENT) as refused:
        metadata = (("twinserve-priority", "urgent"),)
        list(stubs.gallery.EnrollStream(iter(sent), metadata=metadata))
    assert wire.field(refused.status) == "twinserve-priority"


def test_a_stream_waits_where_enroll_is_refused(
    start_server: Callable[..., RunningServer], twin_file: Path, tmp_path: Path
) -> None:
    server = start_server("--model", twin_file, "--data-dir", tmp_path, "--max-rows", "2048")
    rng = np.random.default_rng(1)
    with server.channel() as channel:
        stubs = Stubs(channel)
        create(stubs, "faces")
        sent = []
        for n in range(6):
            many = items(1000, prefix=f"n{n}")
            for one in many:  # all different, so that each is a row
                one.input.CopyFrom(wire.tensor(rng.integers(0, 256, (28, 28, 1)).astype(np.uint8)))
            sent.append(pb.EnrollRequest(gallery="faces", items=many))
        replies = list(stubs.gallery.EnrollStream(iter(sent), timeout=120))
        assert [len(reply.results) for reply in replies] == [1000] * 6
        assert counted(stubs, "faces") == (6000, 3)


def test_moves_renames_and_aliases_outlive_a_kill_and_a_stop_ends_streams(
    start_server: Callable[..., RunningServer], twin_file: Path, tmp_path: Path
) -> None:
    flags = ("--model", twin_file, "--data-dir", tmp_path)
    running = start_server(*flags)
    with running.channel() as channel:
        stubs = Stubs(channel)
        create(stubs, "faces")
        stubs.gallery.Enroll(pb.EnrollRequest(gallery="faces", items=items(9)))
        stubs.gallery.SetGalleryAlias(pb.SetGalleryAliasRequest(alias="live", gallery="faces"))
        ids = pb.IdList(ids=["item-0"])
        stubs.gallery.MoveItems(pb.MoveItemsRequest(gallery="live", ids=ids, subject="moved"))
        stubs.gallery.RenameSubject(
            pb.RenameSubjectRequest(gallery="live", subject="s1", new_subject="renamed")
        )
    running.kill()
    running = start_server(*flags)
    with running.channel() as channel:
        stubs = Stubs(channel)
        assert listed(stubs, "live", "moved") == ["item-0"]
        assert listed(stubs, "live", "renamed") == ["item-1", "item-4", "item-7"]
        assert counted(stubs, "live") == (9, 4)
        go_on = threading.Event()

        def messages() -> Iterator[pb.EnrollRequest]:
            yield pb.EnrollRequest(gallery="live", items=items(1, prefix="last"))
            go_on.wait(30)

        replies = stubs.gallery.EnrollStream(messages(), timeout=60)
        assert next(replies).results[0].enrolled.id == "last-0"
        stopped: list[int] = []
        stopper = threading.Thread(target=lambda: stopped.append(running.stop()))
        stopper.start()
        with Refused(CODE.UNAVAILABLE) as refused:
            next(replies)
        assert wire.reason(refused.status) == "NOT_SERVING"
        go_on.set()
        stopper.join(30)
    assert stopped == [0]


def test_bulk_enrolment_resumes_on_a_server_that_was_killed_and_enrols_nothing_twice(
    start_server: Callable[..., RunningServer], twin_file: Path, tmp_path: Path
) -> None:
    flags = ("--model", twin_file, "--data-dir", tmp_path)
    running = start_server(*flags)
    lives = [running]

    def kill_and_start() -> None:
        lives[0].kill()
        lives.append(start_server(*flags, "--grpc-port", str(running.grpc_port)))

    with Client(running.target) as client:
        client.create_gallery("faces")
        # Ids made by the server: an item that is enrolled twice is there twice.
        pictures = (EnrollItem(PIXELS[n % len(PIXELS)], subject=f"s{n}") for n in range(600))
        found = []
        restart = threading.Thread(target=kill_and_start)
        for number, part in enumerate(client.enroll_stream("faces", pictures, batch=4)):
            found += part.checked()
            if number == 20:
                restart.start()
        restart.join()
        assert len(lives) == 2
        assert [one.change for one in found] == ["created"] * 600
        kept = {item.id: item.subject for item in client.list_items("faces")}
        assert kept == {one.id: f"s{n}" for n, one in enumerate(found)}
