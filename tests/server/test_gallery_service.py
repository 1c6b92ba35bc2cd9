"""GalleryService over fakes: reads that nobody waits for end, and slow changes hold up no read."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any

import numpy as np

from tests.server import wire
from twinserve.distance import Metric
from twinserve.errors import SpaceMismatch
from twinserve.server.batching.admission import Admission
from twinserve.server.config import Limits
from twinserve.server.gallery import GallerySettings
from twinserve.server.gate import Gate
from twinserve.server.services.gallery import GalleryService
from twinserve.server.watching.metrics import Metrics
from twinserve.v1 import gallery_service_pb2 as pb

PATIENCE = 30.0
SETTINGS = GallerySettings("faces", "twin", "space", 4, Metric.EUCLIDEAN)


class Ended(Exception):
    """What a real context raises once a call was ended with a status."""


class Context:
    """A call of one client."""

    def __init__(self, seconds: float | None = None) -> None:
        self._end = None if seconds is None else time.monotonic() + seconds
        self.code: Any = None

    def time_remaining(self) -> float | None:
        return None if self._end is None else self._end - time.monotonic()

    def peer(self) -> str:
        return "ipv4:127.0.0.1:1"

    def invocation_metadata(self) -> tuple[()]:
        return ()

    async def abort_with_status(self, status: Any) -> None:
        self.code = status.code
        raise Ended


class EndlessGallery:
    """A gallery whose search goes on for as long as it may."""

    settings = SETTINGS

    def __init__(self) -> None:
        self.searching = threading.Event()
        self.ended = threading.Event()

    def is_quick(self, probes: int, **more: object) -> bool:
        return False

    def search(self, probes: object, *, proceed: Callable[[], None], **more: object) -> None:
        try:
            while True:
                proceed()
                self.searching.set()
                time.sleep(0.001)
        finally:
            self.ended.set()


class Galleries:
    """One endless gallery, and deletions that wait to be let go."""

    def __init__(self) -> None:
        self.gallery = EndlessGallery()
        self.deleting = threading.Event()
        self.let_go = threading.Event()

    def get(self, name: str) -> EndlessGallery:
        return self.gallery

    def list(self, after: str, limit: int, wanted: Callable[[str], bool]) -> list[object]:
        return []

    def delete(self, name: str) -> None:
        self.deleting.set()
        assert self.let_go.wait(PATIENCE)


class NoModels:
    """No model of any space."""

    def using_space(self, name: str, space_id: str) -> object:
        raise SpaceMismatch("no model gives that space")


@asynccontextmanager
async def service(galleries: Galleries) -> AsyncIterator[Any]:
    with ThreadPoolExecutor(1) as readers:
        yield GalleryService(
            galleries,  # type: ignore[arg-type]
            NoModels(),  # type: ignore[arg-type]
            Metrics(),
            Gate(),
            Limits(),
            Admission(10, lambda: 0.001),
            readers,
        )


SEARCH = pb.SearchRequest(gallery="faces", probes=[wire.ready(np.ones(4), "space")])


def test_a_search_ends_in_its_thread_when_the_deadline_passes() -> None:
    galleries, context = Galleries(), Context(seconds=0.2)

    async def run() -> None:
        async with service(galleries) as served:
            try:
                await asyncio.wait_for(served.Search(SEARCH, context), PATIENCE)
            except Ended:
                return
            raise AssertionError("the search was answered")

    asyncio.run(run())
    assert context.code.name == "DEADLINE_EXCEEDED"
    assert galleries.gallery.ended.is_set()


def test_a_search_ends_in_its_thread_when_the_call_is_cancelled() -> None:
    galleries = Galleries()

    async def run() -> None:
        async with service(galleries) as served:
            call = asyncio.ensure_future(served.Search(SEARCH, Context()))
            assert await asyncio.to_thread(galleries.gallery.searching.wait, PATIENCE)
            call.cancel()
            await asyncio.wait([call], timeout=PATIENCE)
            assert call.cancelled()
            assert await asyncio.to_thread(galleries.gallery.ended.wait, PATIENCE)

    asyncio.run(run())


def test_a_gallery_that_is_being_deleted_keeps_no_reader() -> None:
    galleries = Galleries()

    async def run() -> None:
        async with service(galleries) as served:
            request = pb.DeleteGalleryRequest(name="faces")
            deleting = asyncio.ensure_future(served.DeleteGallery(request, Context()))
            assert await asyncio.to_thread(galleries.deleting.wait, PATIENCE)
            listed = served.ListGalleries(pb.ListGalleriesRequest(), Context())
            assert not (await asyncio.wait_for(listed, PATIENCE)).galleries
            assert not deleting.done()
            galleries.let_go.set()
            await asyncio.wait_for(deleting, PATIENCE)

    asyncio.run(run())
