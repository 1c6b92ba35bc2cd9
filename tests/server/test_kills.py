"""Nothing acknowledged is lost: the server killed at random moments of a stream of enrolments.

A client process (this one) records what was acknowledged while the server, in a process of its
own, is killed with SIGKILL and started again on the same folder. SIGKILL tests the death of the
process, not of the machine; for the latter the store relies on SQLite's synchronous=FULL.
"""

from __future__ import annotations

import random
import threading
import time
from pathlib import Path

import grpc
import numpy as np
import pytest

from tests import conftest
from tests.server import wire
from tests.server.wire import Stubs
from twinserve import manifest
from twinserve.v1 import gallery_pb2, shared_pb2
from twinserve.v1 import gallery_service_pb2 as pb

SEED = 20261123


def vector_of(number: int) -> np.ndarray:
    """The embedding that item `number` was enrolled with; float32 [16]."""
    return np.random.default_rng(number).standard_normal(16).astype(np.float32)


class Enroller:
    """Enrols numbered items until the server is gone; remembers what was acknowledged."""

    def __init__(self, space: str) -> None:
        self.space = space
        self.sent = 0
        self.acknowledged: list[int] = []

    def run(self, server: conftest.RunningServer) -> None:
        with server.channel() as channel:
            stub = Stubs(channel).gallery
            while True:
                numbers = range(self.sent, self.sent + random.Random(self.sent).randint(1, 20))
                self.sent = numbers.stop
                items = [
                    pb.EnrollItem(
                        item=shared_pb2.Item(
                            id=f"n{number}",
                            subject=f"s{number % 7}",
                            metadata={"number": shared_pb2.MetadataValue(integer=number)},
                        ),
                        input=wire.ready(vector_of(number), self.space),
                    )
                    for number in numbers
                ]
                try:
                    reply = stub.Enroll(pb.EnrollRequest(gallery="killed", items=items))
                except grpc.RpcError:
                    return
                assert len(reply.results) == len(items)
                self.acknowledged.extend(numbers)


def check(stub: object, enroller: Enroller) -> int:
    """Every acknowledged item is there and whole, and nothing is there that was not sent."""
    seen: dict[int, shared_pb2.Item] = {}
    token = ""
    while True:
        page = stub.ListItems(  # type: ignore[attr-defined]
            pb.ListItemsRequest(
                gallery="killed", page_size=1000, page_token=token, view=pb.ITEM_VIEW_FULL
            )
        )
        for item in page.items:
            number = int(item.id[1:])
            assert number not in seen, "twice"
            seen[number] = item
        token = page.next_page_token
        if not token:
            break
    missing = set(enroller.acknowledged) - set(seen)
    assert not missing, f"acknowledged and lost: {sorted(missing)[:10]}"
    for number, item in seen.items():
        assert number < enroller.sent, "never sent"
        assert item.subject == f"s{number % 7}"
        assert item.metadata["number"].integer == number
    return len(seen)


def lives(twin_file: Path, folder: Path, kills: int) -> None:
    """Kill a server `kills` times in the middle of enrolments, checking after each restart."""
    moments = random.Random(SEED)
    enroller = Enroller(manifest.read(twin_file).space_id)
    flags = ("--model", twin_file, "--data-dir", folder)
    server = conftest.start(*flags)
    try:
        with server.channel() as channel:
            made = gallery_pb2.Gallery(name="killed")
            Stubs(channel).gallery.CreateGallery(pb.CreateGalleryRequest(gallery=made))
        for _ in range(kills):
            thread = threading.Thread(target=enroller.run, args=(server,))
            thread.start()
            time.sleep(moments.uniform(0.0, 0.25))
            server.kill()
            thread.join()
            server = conftest.start(*flags)
            with server.channel() as channel:
                check(Stubs(channel).gallery, enroller)
        with server.channel() as channel:
            stub = Stubs(channel).gallery
            count = check(stub, enroller)
            assert len(enroller.acknowledged) > 20 * kills, "the kills fell into real work"
            sample = random.Random(SEED).sample(enroller.acknowledged, 200)
            for number in sample:
                got = stub.GetItem(
                    pb.GetItemRequest(gallery="killed", id=f"n{number}", with_embedding=True)
                )
                values = np.array(got.embedding.values, np.float32)
                assert values.tolist() == vector_of(number).tolist()
            found = stub.Search(
                pb.SearchRequest(
                    gallery="killed",
                    probes=[wire.ready(vector_of(n), enroller.space) for n in sample],
                    group_by=pb.GROUP_BY_ITEM,
                    top_k=1,
                )
            )
            hits = [result.hits.hits[0] for result in found.results]
            assert [hit.item.id for hit in hits] == [f"n{n}" for n in sample]
            gallery = stub.GetGallery(pb.GetGalleryRequest(name="killed")).gallery
            assert gallery.item_count == count
        assert server.stop() == 0
    finally:
        if server.process.poll() is None:
            server.kill()


def test_every_acknowledged_item_survives_sigkill(twin_file: Path, tmp_path: Path) -> None:
    lives(twin_file, tmp_path, kills=10)


@pytest.mark.long
def test_every_acknowledged_item_survives_fifty_sigkills(twin_file: Path, tmp_path: Path) -> None:
    lives(twin_file, tmp_path, kills=50)
