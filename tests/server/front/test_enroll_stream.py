"""EnrollStream over a front and real galleries, of ready vectors: order, waiting, faults, ends."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from google.rpc import code_pb2

from tests.server import wire
from tests.server.front.conftest import Running
from tests.server.gallery.folders import opened, settings
from tests.server.wire import Refused
from twinserve.errors import DiskFull, QueueFull, SpaceMismatch
from twinserve.server.batching.admission import Admission
from twinserve.server.config import Limits
from twinserve.server.gallery import Galleries, GalleryLimits
from twinserve.server.gate import Gate
from twinserve.server.services import enroll_stream
from twinserve.server.services.gallery import GalleryService
from twinserve.server.watching.metrics import Metrics
from twinserve.v1 import gallery_service_pb2 as pb
from twinserve.v1 import gallery_service_pb2_grpc as rpc
from twinserve.v1 import shared_pb2

PATIENCE = 30.0


class NoModels:
    """No model of any space."""

    def using_space(self, name: str, space_id: str) -> object:
        raise SpaceMismatch("no model gives that space")


class House:
    """Galleries in this process, and stubs that call them through a front."""

    def __init__(self, galleries: Galleries, running: Running) -> None:
        self.galleries = galleries
        self.running = running
        self.gate = Gate()
        self.threads = ThreadPoolExecutor(4)
        self.service = GalleryService(
            galleries,
            NoModels(),  # type: ignore[arg-type]
            Metrics(),
            self.gate,
            Limits(),
            Admission(10, lambda: 0.001),
            self.threads,
        )
        rpc.add_GalleryServiceServicer_to_server(self.service, running.front)  # type: ignore[arg-type]
        self.stub = rpc.GalleryServiceStub(running.channel())

    def subjects(self) -> dict[str, str]:
        items, _ = self.galleries.get("faces").list_items(limit=10_000)
        return {item.id: item.subject for item in items}

    def settle(self) -> None:
        """Wait until no call is inside, and nothing of one either."""
        self.running.settle()
        for _ in range(1500):
            if not self.gate.inside:
                return
            time.sleep(0.01)
        raise AssertionError(f"{self.gate.inside} messages are inside for good")


@pytest.fixture
def begin(run_front: Callable[..., Running], tmp_path: Path) -> Iterator[Callable[..., House]]:
    """Open a house with the gallery `faces`."""
    closing: list[Callable[[], None]] = []

    def start(limits: GalleryLimits = GalleryLimits()) -> House:  # noqa: B008
        context = opened(tmp_path, limits)
        galleries = context.__enter__()
        galleries.create(settings())
        house = House(galleries, run_front({}))
        closing.append(lambda: context.__exit__(None, None, None))
        closing.append(house.threads.shutdown)
        return house

    yield start
    for close in reversed(closing):
        close()


def vector(seed: int) -> shared_pb2.Input:
    return wire.ready(np.random.default_rng(seed).normal(size=4), "space")


def request(
    *ids: str, subject: str = "", gallery: str = "faces", bad: Sequence[str] = (), **more: Any
) -> pb.EnrollRequest:
    """An EnrollRequest of items; those in `bad` are of another dimension."""
    items = [
        pb.EnrollItem(
            item=shared_pb2.Item(id=one, subject=subject),
            input=wire.ready(np.ones(3), "space") if one in bad else vector(hash(one) % 1000),
        )
        for one in ids
    ]
    return pb.EnrollRequest(gallery=gallery, items=items, **more)


def changes(response: pb.EnrollResponse) -> list[int]:
    return [result.enrolled.change for result in response.results]


def test_requests_are_answered_in_their_order_and_all_is_kept(begin: Callable[..., House]) -> None:
    house = begin()
    names = [[f"i{n}-{k}" for k in range(3)] for n in range(50)]
    replies = list(house.stub.EnrollStream((request(*ids) for ids in names), timeout=PATIENCE))
    assert [[r.enrolled.id for r in one.results] for one in replies] == names
    assert all(changes(one) == [pb.CHANGE_CREATED] * 3 for one in replies)
    assert len(house.subjects()) == 150
    house.galleries.get("faces").wait_for(replies[-1].consistency_token, 0.0)
    house.settle()


def test_several_requests_wait_for_one_commit_and_no_more_than_the_window_is_read(
    begin: Callable[..., House], monkeypatch: pytest.MonkeyPatch
) -> None:
    house = begin()
    gallery = house.galleries.get("faces")
    queued: list[tuple[Callable[[], Future[Any]], Future[Any]]] = []
    changed = threading.Condition()
    enroll = gallery.enroll

    def hold(items: Any, **more: Any) -> Future[Any]:
        held: Future[Any] = Future()
        with changed:
            queued.append((lambda: enroll(items, **more), held))
            changed.notify_all()
        return held

    monkeypatch.setattr(gallery, "enroll", hold)
    sent: list[int] = []

    def messages() -> Iterator[pb.EnrollRequest]:
        for n in range(100):
            sent.append(n)
            yield request(f"i{n}")

    replies = house.stub.EnrollStream(messages(), timeout=PATIENCE)
    most = enroll_stream.REQUESTS
    with changed:
        assert changed.wait_for(lambda: len(queued) == most, PATIENCE)
        assert not changed.wait_for(lambda: len(queued) > most, 0.3)
    for n in range(100):
        with changed:
            assert changed.wait_for(lambda n=n: len(queued) > n, PATIENCE)  # type: ignore[misc]
        really, held = queued[n]
        held.set_result(really().result())
        assert next(replies).results[0].enrolled.id == f"i{n}"
    assert list(replies) == []
    house.settle()


def test_of_two_requests_that_name_an_item_the_later_one_stands(
    begin: Callable[..., House], monkeypatch: pytest.MonkeyPatch
) -> None:
    house = begin()
    embed = house.service._embed
    first = threading.Event()

    async def slow_at_first(*arguments: Any) -> Any:
        if not first.is_set():
            first.set()
            await asyncio.sleep(0.3)
        return await embed(*arguments)

    monkeypatch.setattr(house.service, "_embed", slow_at_first)
    sent = [request("one", subject=f"s{n}") for n in range(5)]
    list(house.stub.EnrollStream(iter(sent), timeout=PATIENCE))
    assert house.subjects() == {"one": "s4"}


def test_an_item_that_fails_stands_in_its_place_and_the_stream_goes_on(
    begin: Callable[..., House],
) -> None:
    house = begin()
    sent = [
        request("a", "b", bad=["b"]),
        request("c", bad=["c"]),
        request("not an id", "d"),
        request("e"),
    ]
    replies = list(house.stub.EnrollStream(iter(sent), timeout=PATIENCE))
    failed = [[r.error.code for r in one.results] for one in replies]
    assert failed == [[0, code_pb2.INVALID_ARGUMENT], [3], [3, 0], [0]]
    assert wire.field(replies[0].results[1].error) == "items[1].input.embedding"
    assert wire.field(replies[1].results[0].error) == "items[0].input.embedding"
    assert wire.field(replies[2].results[0].error) == "items[0].item.id"
    assert set(house.subjects()) == {"a", "d", "e"}


FAULTS = {
    "no gallery": (request("x", gallery="nobody"), grpc.StatusCode.NOT_FOUND, "gallery"),
    "no items": (request(), grpc.StatusCode.INVALID_ARGUMENT, "items"),
    "atomic": (
        request("x", "y", bad=["y"], atomic=True),
        grpc.StatusCode.INVALID_ARGUMENT,
        "items[1].input.embedding",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_request_that_fails_as_a_whole_ends_the_stream_after_the_answers_before_it(
    begin: Callable[..., House], fault: str
) -> None:
    house = begin()
    bad, code, field = FAULTS[fault]
    replies = house.stub.EnrollStream(
        iter([request("a"), request("b"), bad, request("c"), request("d")]), timeout=PATIENCE
    )
    assert [next(replies).results[0].enrolled.id for _ in range(2)] == ["a", "b"]
    with Refused(code) as refused:
        next(replies)
    if code is grpc.StatusCode.INVALID_ARGUMENT:
        assert wire.field(refused.status) == field
    house.settle()
    assert set(house.subjects()) == {"a", "b"}, "what comes after the fault is not enrolled"


def test_a_fault_of_the_disk_ends_the_stream_with_its_own_status(
    begin: Callable[..., House], monkeypatch: pytest.MonkeyPatch
) -> None:
    house = begin()
    gallery = house.galleries.get("faces")
    full: Future[Any] = Future()
    full.set_exception(DiskFull("the disk has no room for more", retry_after=5.0))
    monkeypatch.setattr(gallery, "enroll", lambda *_, **__: full)
    with Refused(grpc.StatusCode.RESOURCE_EXHAUSTED) as refused:
        list(house.stub.EnrollStream(iter([request("long" * 5)]), timeout=PATIENCE))
    assert wire.reason(refused.status) == "DISK_FULL"
    house.settle()


def test_an_index_that_lags_behind_is_waited_for(begin: Callable[..., House]) -> None:
    house = begin(GalleryLimits(exact_scan_below=0, segment_rows=8, max_index_debt=16))
    sent = (request(*(f"i{n}-{k}" for k in range(8))) for n in range(20))
    replies = list(house.stub.EnrollStream(sent, timeout=PATIENCE))
    assert len(replies) == 20
    assert len(house.subjects()) == 160


def test_a_full_queue_is_waited_for_and_for_no_longer_than_the_deadline(
    begin: Callable[..., House], monkeypatch: pytest.MonkeyPatch
) -> None:
    house = begin()
    gallery = house.galleries.get("faces")
    enroll, refusals = gallery.enroll, 3

    def sometimes(*arguments: Any, **more: Any) -> Any:
        nonlocal refusals
        refusals -= 1
        if refusals >= 0:
            raise QueueFull("too many rows wait to be written", retry_after=0.05)
        return enroll(*arguments, **more)

    monkeypatch.setattr(gallery, "enroll", sometimes)
    assert len(list(house.stub.EnrollStream(iter([request("a")]), timeout=PATIENCE))) == 1
    refusals = 10**9
    with Refused(grpc.StatusCode.RESOURCE_EXHAUSTED) as refused:
        list(house.stub.EnrollStream(iter([request("b")]), timeout=0.7))
    assert wire.reason(refused.status) == "QUEUE_FULL"
    house.settle()


def test_a_server_that_stops_answers_what_it_accepted_and_sends_the_client_elsewhere(
    begin: Callable[..., House],
) -> None:
    house = begin()
    go_on = threading.Event()

    def messages() -> Iterator[pb.EnrollRequest]:
        yield request("a")
        yield request("b")
        go_on.wait(PATIENCE)

    replies = house.stub.EnrollStream(messages(), timeout=PATIENCE)
    assert [next(replies).results[0].enrolled.id for _ in range(2)] == ["a", "b"]
    house.running.on_loop(house.gate.close(1.0))
    with Refused(grpc.StatusCode.UNAVAILABLE) as refused:
        next(replies)
    assert wire.reason(refused.status) == "NOT_SERVING"
    with Refused(grpc.StatusCode.UNAVAILABLE):
        list(house.stub.EnrollStream(iter([request("c")]), timeout=PATIENCE))
    go_on.set()
    house.settle()
    assert set(house.subjects()) == {"a", "b"}


def test_a_client_that_leaves_keeps_nothing_inside(
    begin: Callable[..., House], monkeypatch: pytest.MonkeyPatch
) -> None:
    house = begin()
    gallery = house.galleries.get("faces")
    waiting: list[Future[Any]] = []

    def never(*_: Any, **__: Any) -> Future[Any]:
        waiting.append(Future())
        return waiting[-1]

    monkeypatch.setattr(gallery, "enroll", never)
    hold = threading.Event()

    def messages() -> Iterator[pb.EnrollRequest]:
        for n in range(20):
            yield request(f"i{n}")
        hold.wait(PATIENCE)

    replies = house.stub.EnrollStream(messages(), timeout=PATIENCE)
    while len(waiting) < enroll_stream.REQUESTS:
        time.sleep(0.01)
    replies.cancel()
    house.settle()
    # The calls' own loop is told last.
    for _ in range(1500):
        if all(one.cancelled() for one in waiting):
            break
        time.sleep(0.01)
    assert all(one.cancelled() for one in waiting), "the writer does not write what nobody awaits"
    hold.set()


def test_a_request_that_is_sent_again_is_answered_as_before(begin: Callable[..., House]) -> None:
    house = begin()
    sent = [request(f"i{n}", request_id=f"r{n}") for n in range(3)]
    first = list(house.stub.EnrollStream(iter(sent), timeout=PATIENCE))
    again = list(house.stub.EnrollStream(iter(sent[1:]), timeout=PATIENCE))
    assert [changes(one) for one in again] == [[pb.CHANGE_CREATED]] * 2
    tokens = [one.consistency_token for one in first[1:]]
    assert [one.consistency_token for one in again] == tokens
    unary = house.stub.Enroll(sent[0])
    assert unary.consistency_token == first[0].consistency_token, "and by Enroll too"
