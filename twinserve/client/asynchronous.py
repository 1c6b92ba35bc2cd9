"""The client for asyncio: the calls of `Client`, awaited; streams are async iterators."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

import grpc

from twinserve.client import (
    async_streams,
    embedding,
    galleries,
    items,
    searching,
    serving,
)
from twinserve.client.calls import Call, Download, Pages, Stubs, Upload, describe
from twinserve.client.connection import Connection
from twinserve.errors import FailedPrecondition, InternalFault, TwinserveError, Unavailable

T = TypeVar("T")
P = ParamSpec("P")
Method = Callable[Concatenate["AsyncClient", P], T]
# What grpc.aio says in place of the server's status, where a message was just being sent when the
# server ended the stream (grpc issue 36066, open in 1.85).
_STATUS_LOST = "Internal error from Core"


def _call(build: Callable[P, Call[T]]) -> Method[P, Coroutine[Any, Any, T]]:
    async def method(self: AsyncClient, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return await self._make(build(*args, **kwargs))

    describe(method, build, "AsyncClient", "{}")
    return method


def _pages(build: Callable[P, Pages[T]]) -> Method[P, AsyncGenerator[T, None]]:
    def method(self: AsyncClient, /, *args: P.args, **kwargs: P.kwargs) -> AsyncGenerator[T, None]:
        return self._turn(build(*args, **kwargs))

    describe(method, build, "AsyncClient", "AsyncGenerator[{}, None]")
    return method


def _upload(build: Callable[P, Upload[T]]) -> Method[P, AsyncGenerator[T, None]]:
    def method(self: AsyncClient, /, *args: P.args, **kwargs: P.kwargs) -> AsyncGenerator[T, None]:
        return self._send(build(*args, **kwargs))

    describe(method, build, "AsyncClient", "AsyncGenerator[{}, None]")
    return method


def _download(build: Callable[P, Download[T]]) -> Method[P, AsyncGenerator[T, None]]:
    def method(self: AsyncClient, /, *args: P.args, **kwargs: P.kwargs) -> AsyncGenerator[T, None]:
        return self._receive(build(*args, **kwargs))

    describe(method, build, "AsyncClient", "AsyncGenerator[{}, None]")
    return method


def _outcome(build: Callable[P, Download[T]]) -> Method[P, Coroutine[Any, Any, T]]:
    async def method(self: AsyncClient, /, *args: P.args, **kwargs: P.kwargs) -> T:
        async with contextlib.aclosing(self._receive(build(*args, **kwargs))) as outcomes:
            async for outcome in outcomes:
                return outcome
        raise InternalFault(f"the server ended {build.__name__} without its outcome; look there")

    describe(method, build, "AsyncClient", "{}")
    return method


class AsyncClient(Connection):
    """A client for asyncio; safe to share between the tasks of one event loop.

    It can be made anywhere, and belongs to the loop in which it is first called. Cancelling a task
    cancels its call on the server.
    """

    # EmbeddingService
    embed = _call(embedding.embed)
    embed_stream = _upload(embedding.embed_stream)
    compare = _call(embedding.compare)
    # GalleryService
    create_gallery = _call(galleries.create_gallery)
    get_gallery = _call(galleries.get_gallery)
    list_galleries = _pages(galleries.list_galleries)
    delete_gallery = _call(galleries.delete_gallery)
    set_gallery_alias = _call(galleries.set_gallery_alias)
    delete_gallery_alias = _call(galleries.delete_gallery_alias)
    backup_galleries = _outcome(galleries.backup_galleries)
    enroll = _call(items.enroll)
    enroll_stream = _upload(items.enroll_stream)
    remove = _call(items.remove)
    move_items = _call(items.move_items)
    rename_subject = _call(items.rename_subject)
    count_items = _call(items.count_items)
    get_item = _call(items.get_item)
    list_items = _pages(items.list_items)
    export_items = _download(items.export_items)
    search = _call(searching.search)
    verify = _call(searching.verify)
    # ModelService
    models = _pages(serving.models)
    model = _call(serving.model)
    load_model = _call(serving.load_model)
    unload_model = _call(serving.unload_model)
    set_alias = _call(serving.set_alias)
    delete_alias = _call(serving.delete_alias)
    start_shadow = _call(serving.start_shadow)
    stop_shadow = _call(serving.stop_shadow)
    # the server
    health = _call(serving.health)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection; calls that run in other tasks end with ClientClosed."""
        self._closed = True
        if self._channel is not None:
            await self._channel.close()

    # ---- how the kinds of calls are made -------------------------------------------------

    def _begin(self) -> None:
        self._channel: grpc.aio.Channel | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def _open(self) -> Stubs:
        """Return the methods; with the first call the channel is made, in the caller's loop.

        Raises:
            ClientClosed: it was closed.
            FailedPrecondition: it was first called in another event loop.
        """
        if self._closed:
            raise self._closed_error()
        loop = asyncio.get_running_loop()
        if self._channel is None:
            self._loop = loop
            self._channel = (
                grpc.aio.insecure_channel(self.target, options=self._options)
                if self._credentials is None
                else grpc.aio.secure_channel(self.target, self._credentials, options=self._options)
            )
            self._stubs = Stubs(self._channel)
        elif self._loop is not loop:
            raise FailedPrecondition(
                f"this client of {self.target} belongs to another event loop, the one of its "
                "first call; make one client per loop"
            )
        return self._stubs

    def _error(self, failure: grpc.RpcError) -> TwinserveError:
        if failure.code() is grpc.StatusCode.INTERNAL and failure.details() == _STATUS_LOST:
            # The next attempt works, or is told why not.
            return Unavailable(
                f"{self.target} ended the stream, and gRPC did not keep its reason; try again"
            )
        return super()._error(failure)

    @contextlib.contextmanager
    def _reading(self) -> Iterator[None]:
        """Turn gRPC's errors into ours, and the end of a closed client's call into ClientClosed."""
        try:
            yield
        except grpc.RpcError as failure:
            raise self._error(failure) from failure
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if self._closed and task is not None and not task.cancelling():
                raise self._closed_error() from None
            raise

    async def _make(self, call: Call[T]) -> T:
        attempts = self._attempts(call.timeout)
        while True:
            method = call.method(self._open())
            try:
                with self._reading():
                    reply = await method(
                        call.request, timeout=attempts.remaining(), metadata=self._metadata
                    )
                break
            except TwinserveError as error:
                pause = attempts.pause_after(error) if call.retried else None
                if pause is None:
                    raise
            await asyncio.sleep(pause)
        return call.read(reply)

    async def _turn(self, pages: Pages[T]) -> AsyncGenerator[T, None]:
        while True:
            page = await self._make(Call(pages.method, pages.request, _itself, pages.timeout))
            for entry in pages.read(page):
                yield entry
            pages.request.page_token = page.next_page_token
            if not page.next_page_token:
                return

    def _send(self, upload: Upload[T]) -> AsyncGenerator[T, None]:
        self._open()
        return async_streams.upload_answers(
            upload,
            lambda sent: upload.method(self._open())(sent, metadata=self._metadata),
            self._attempts(upload.timeout, upload.at_least),
            self._reading,
        )

    def _receive(self, download: Download[T]) -> AsyncGenerator[T, None]:
        self._open()
        return async_streams.download_answers(
            download,
            lambda request: download.method(self._open())(request, metadata=self._metadata),
            self._attempts(download.timeout),
            self._reading,
        )


def _itself(reply: T) -> T:
    return reply
