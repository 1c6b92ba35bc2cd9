"""The two calls that carry whole galleries away: ExportItems and BackupGalleries.

Both answer with a stream. An export is read a message at a time, in the readers' threads, and only
when the client took the message before; a backup runs in a thread of its own and is told of twice a
second. When the server stops, both end as UNAVAILABLE: an export goes on elsewhere from the last id
that arrived, a backup is made anew.
"""

from __future__ import annotations

import asyncio
import functools
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from pathlib import Path
from typing import Any, Protocol, TypeVar

from twinserve.errors import Code, FailedPrecondition, Unavailable
from twinserve.server.gallery import Filter
from twinserve.server.gallery.galleries import Galleries
from twinserve.server.gallery.gallery import Gallery
from twinserve.server.gate import Gate, stopping
from twinserve.server.services import auditing, codec, gallery_codec
from twinserve.server.services.calls import (
    Context,
    Serving,
    abort,
    finish,
    priority_of,
    status_of_failure,
)
from twinserve.server.watching.ended_call import EndedCall
from twinserve.v1 import gallery_service_pb2 as pb

MESSAGE_BYTES = 1 << 20  # of an export, about
TOLD_SECONDS = 0.5  # between two messages of a backup

Request = TypeVar("Request")
Response = TypeVar("Response")
Result = TypeVar("Result")


Servicer = TypeVar("Servicer", bound=Serving)


class Read(Protocol):
    """Runs a blocking read in a thread."""

    def __call__(self, call: Callable[[], Result]) -> Awaitable[Result]:
        """Return what the call returns."""
        ...


def streaming(
    method: Callable[[Servicer, Request, Context], AsyncIterator[Response]],
) -> Callable[[Servicer, Request, Context], AsyncIterator[Response]]:
    """Wrap a servicer's method that answers with a stream, as `unary` does those with one reply.

    It is timed and counted as one call, and its errors become the status that the stream ends with.
    """
    name = method.__name__
    is_audited = name in auditing.CHANGES

    @functools.wraps(method)
    async def call(self: Servicer, request: Request, context: Context) -> AsyncIterator[Response]:
        began = time.perf_counter()
        code, status = "CANCELLED", None
        ended: object = None
        try:
            priority_of(context)
            answer: Any = method(self, request, context)
            async with aclosing(answer) as responses:
                async for response in responses:
                    yield response
            code, ended = "OK", request
        except Exception as error:
            status = status_of_failure(self, name, error, context)
            code, ended = Code(status.code).name, status
            await abort(context, status)
        finally:
            if is_audited:
                auditing.record(name, request, context, ended)
            finish(self, EndedCall(name, code, "", began, context, request, status))

    return call


class Stopping:
    """Whether the server stops or the call was given up; a block that watches the gate.

    The gate is entered for each piece of work: a client that reads slowly must not hold it open.
    """

    def __init__(self, gate: Gate) -> None:
        self.gate = gate
        self._closing = threading.Event()
        self.given_up = threading.Event()

    def __enter__(self) -> Stopping:
        if not self.gate.watch(self._closing.set):
            raise stopping()
        return self

    def __exit__(self, *exception: object) -> None:
        self.given_up.set()
        self.gate.unwatch(self._closing.set)

    def check(self) -> None:
        """Raise where the work is to end.

        Raises:
            Unavailable: the server stops, or nobody waits any more.
        """
        if self._closing.is_set():
            raise stopping()
        if self.given_up.is_set():
            raise Unavailable("the caller has gone")


async def export_items(
    gallery: Gallery, request: pb.ExportItemsRequest, gate: Gate, read: Read
) -> AsyncIterator[pb.ExportItemsResponse]:
    """Read a gallery's items out, in one message at least, which tells the dimension.

    Raises:
        GalleryNotFound: it was deleted meanwhile.
        StoreDamaged: an item is not as it was written.
        UndeclaredKey, InvalidInput: the filter cannot be answered.
        Unavailable: the server stops.
    """
    chosen = gallery_codec.filter_of(request.filter) if request.HasField("filter") else None
    with Stopping(gate) as ending:
        count = gallery.status().item_count
        after, done = request.after, False
        while not done:

            def stretch(after: str = after) -> tuple[pb.ExportItemsResponse, str, bool]:
                with gate.enter():
                    ending.check()
                    return _stretch(gallery, after, chosen, not request.without_embedding, count)

            message, after, done = await read(stretch)
            # Also one without items, since who filters much out is to hear that we are at it.
            yield message


def _stretch(
    gallery: Gallery, after: str, chosen: Filter | None, embeddings: bool, count: int
) -> tuple[pb.ExportItemsResponse, str, bool]:
    found = gallery.export(after, MESSAGE_BYTES, filter=chosen, embeddings=embeddings)
    message = pb.ExportItemsResponse(
        items=[gallery_codec.item_message(item) for item in found.items],
        embeddings=found.embeddings,
        dimension=gallery.settings.dimension,
        item_count=count,
    )
    return message, found.last, found.done


class Backups:
    """Makes the backups that are asked for, one at a time, below one folder.

    Args:
        galleries: to copy.
        parent: of all backups; None where the server was given none.
        gate: that closes when the server stops.
    """

    def __init__(self, galleries: Galleries, parent: Path | None, gate: Gate) -> None:
        self._galleries = galleries
        self._parent = parent
        self._gate = gate
        self._thread = ThreadPoolExecutor(2, thread_name_prefix="backup")  # one to be refused

    async def make(
        self, request: pb.BackupGalleriesRequest
    ) -> AsyncIterator[pb.BackupGalleriesResponse]:
        """Make a backup, and tell how far it is; the last message says that it is whole.

        Raises:
            FailedPrecondition: the server has no folder for backups.
            Unavailable: the server stops; nothing is left of the backup.
            TwinserveError: see `Galleries.backup`.
        """
        parent = self._parent
        if parent is None:
            raise FailedPrecondition(
                "this server makes no backups, since it was given no folder for them; start it "
                "with --backup-dir DIR"
            )
        folder = codec.required(request.folder, "folder")
        told = pb.BackupGalleriesResponse()
        with Stopping(self._gate) as ending:

            def tell(gallery: str, done: int, total: int) -> None:
                nonlocal told
                ending.check()
                told = pb.BackupGalleriesResponse(
                    gallery=gallery, bytes_done=done, bytes_total=total
                )

            def work() -> Path:
                with self._gate.enter():
                    return self._galleries.backup(list(request.galleries), parent, folder, tell)

            running = asyncio.get_running_loop().run_in_executor(self._thread, work)
            try:
                while not (await asyncio.wait([running], timeout=TOLD_SECONDS))[0]:
                    yield told
                path = await running
            finally:
                # What it ends with when nobody waits for it is no news to anybody.
                running.add_done_callback(lambda future: future.cancelled() or future.exception())
            yield pb.BackupGalleriesResponse(
                bytes_done=told.bytes_done,
                bytes_total=told.bytes_done,
                done=True,
                path=str(path.absolute()),
            )
