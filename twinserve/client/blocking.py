"""The blocking client: what each call sends is told elsewhere; here it is sent and waited for."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Concatenate, ParamSpec, Self, TypeVar

import grpc

from twinserve.client import (
    downloads,
    embedding,
    galleries,
    items,
    searching,
    serving,
    uploads,
)
from twinserve.client.calls import Call, Download, Pages, Stubs, Upload, describe
from twinserve.client.connection import Connection
from twinserve.errors import InternalFault

T = TypeVar("T")
P = ParamSpec("P")


def _call(build: Callable[P, Call[T]]) -> Callable[Concatenate[Client, P], T]:
    def method(self: Client, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return self._make(build(*args, **kwargs))

    describe(method, build, "Client", "{}")
    return method


def _pages(build: Callable[P, Pages[T]]) -> Callable[Concatenate[Client, P], Iterator[T]]:
    def method(self: Client, /, *args: P.args, **kwargs: P.kwargs) -> Iterator[T]:
        return self._turn(build(*args, **kwargs))

    describe(method, build, "Client", "Iterator[{}]")
    return method


def _upload(build: Callable[P, Upload[T]]) -> Callable[Concatenate[Client, P], Iterator[T]]:
    def method(self: Client, /, *args: P.args, **kwargs: P.kwargs) -> Iterator[T]:
        return self._send(build(*args, **kwargs))

    describe(method, build, "Client", "Iterator[{}]")
    return method


def _download(build: Callable[P, Download[T]]) -> Callable[Concatenate[Client, P], Iterator[T]]:
    def method(self: Client, /, *args: P.args, **kwargs: P.kwargs) -> Iterator[T]:
        return self._receive(build(*args, **kwargs))

    describe(method, build, "Client", "Iterator[{}]")
    return method


def _outcome(build: Callable[P, Download[T]]) -> Callable[Concatenate[Client, P], T]:
    def method(self: Client, /, *args: P.args, **kwargs: P.kwargs) -> T:
        for outcome in self._receive(build(*args, **kwargs)):
            return outcome
        raise InternalFault(f"the server ended {build.__name__} without its outcome; look there")

    describe(method, build, "Client", "{}")
    return method


class Client(Connection):
    """A client whose calls return when they are answered; safe to share between threads."""

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

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; calls that run in other threads end with ClientClosed."""
        self._closed = True
        self._channel.close()

    # ---- how the kinds of calls are made -------------------------------------------------

    def _begin(self) -> None:
        self._channel = (
            grpc.insecure_channel(self.target, options=self._options)
            if self._credentials is None
            else grpc.secure_channel(self.target, self._credentials, options=self._options)
        )
        self._stubs = Stubs(self._channel)

    def _open(self) -> Stubs:
        if self._closed:
            raise self._closed_error()
        return self._stubs

    def _make(self, call: Call[T]) -> T:
        attempts = self._attempts(call.timeout)
        while True:
            method = call.method(self._open())
            try:
                reply = method(call.request, timeout=attempts.remaining(), metadata=self._metadata)
                break
            except grpc.RpcError as failure:
                error = self._error(failure)
                pause = attempts.pause_after(error) if call.retried else None
                if pause is None:
                    raise error from failure
            time.sleep(pause)
        return call.read(reply)

    def _turn(self, pages: Pages[T]) -> Iterator[T]:
        while True:
            page = self._make(Call(pages.method, pages.request, _itself, pages.timeout))
            yield from pages.read(page)
            pages.request.page_token = page.next_page_token
            if not page.next_page_token:
                return

    def _send(self, upload: Upload[T]) -> Iterator[T]:
        self._open()
        return uploads.answers(
            lambda sent: upload.method(self._open())(sent, metadata=self._metadata),
            uploads.requests(upload),
            upload.read,
            self._attempts(upload.timeout, upload.at_least).seconds,
            self._error,
            self._retries.pause,
            upload.window,
        )

    def _receive(self, download: Download[T]) -> Iterator[T]:
        self._open()
        return downloads.answers(
            download,
            lambda request: download.method(self._open())(request, metadata=self._metadata),
            self._attempts(download.timeout).seconds,
            self._error,
            self._retries.pause,
        )


def _itself(reply: T) -> T:
    return reply
