"""The client for asyncio against a server that answers as it is told: as the other, awaited."""

from __future__ import annotations

import asyncio
import functools
import inspect
import itertools
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import aclosing
from typing import Any

import grpc
import pytest

from tests.fake_server import FakeServer, status
from twinserve import errors
from twinserve.client import AsyncClient, Client, EnrollItem, Health
from twinserve.v1 import embedding_service_pb2, gallery_service_pb2, model_service_pb2, shared_pb2

UNAVAILABLE = status(grpc.StatusCode.UNAVAILABLE, "draining", reason="NOT_SERVING")
FULL = status(
    grpc.StatusCode.RESOURCE_EXHAUSTED, "queue full", reason="QUEUE_FULL", retry_after=0.2
)

Test = Callable[..., Coroutine[Any, Any, None]]


def in_a_loop(test: Test) -> Callable[..., None]:
    """Run a test in an event loop of its own."""

    @functools.wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        asyncio.run(asyncio.wait_for(test(*args, **kwargs), 30))

    return run


@pytest.fixture(scope="module")
def shared_server() -> Iterator[FakeServer]:
    fake = FakeServer()
    yield fake
    fake.stop()


@pytest.fixture
def server(shared_server: FakeServer) -> FakeServer:
    shared_server.forget()
    return shared_server


def made(server: FakeServer, **settings: Any) -> AsyncClient:
    return AsyncClient(server.target, **{"timeout": 20.0, **settings})


def embedded(request: embedding_service_pb2.EmbedStreamRequest) -> Any:
    """Embed each text into its number."""
    results = [
        embedding_service_pb2.EmbedResult(
            embedding=shared_pb2.Embedding(values=[float(one.text)], space_id="sp")
        )
        for one in request.request.inputs
    ]
    return embedding_service_pb2.EmbedStreamResponse(
        response=embedding_service_pb2.EmbedResponse(results=results)
    )


def enrolled(request: gallery_service_pb2.EnrollRequest) -> gallery_service_pb2.EnrollResponse:
    return gallery_service_pb2.EnrollResponse(
        results=[
            gallery_service_pb2.EnrollResult(
                enrolled=gallery_service_pb2.Enrolled(
                    id=one.item.id, change=gallery_service_pb2.CHANGE_CREATED
                )
            )
            for one in request.items
        ]
    )


async def until(true: Callable[[], bool]) -> None:
    """Wait for something that happens elsewhere."""
    deadline = time.monotonic() + 5
    while not true():
        assert time.monotonic() < deadline, "it did not happen"
        await asyncio.sleep(0.005)


def public(kind: type) -> dict[str, Any]:
    return {
        name: method
        for name, method in inspect.getmembers(kind, inspect.isfunction)
        if not name.startswith("_")
    }


class TestSurface:
    def test_both_clients_have_the_same_calls_with_the_same_parameters_and_texts(self) -> None:
        blocking, awaited = public(Client), public(AsyncClient)
        assert set(blocking) == set(awaited)
        assert len(blocking) == 31
        for name in set(blocking) - {"close"}:
            mine, other = (inspect.signature(one[name]) for one in (blocking, awaited))
            assert mine.parameters == other.parameters, name
            assert blocking[name].__doc__ == awaited[name].__doc__, name
            assert blocking[name].__doc__, name
            if mine.return_annotation.startswith("Iterator["):
                given = mine.return_annotation.removeprefix("Iterator[").removesuffix("]")
                assert other.return_annotation == f"AsyncGenerator[{given}, None]", name
            else:
                assert other.return_annotation == mine.return_annotation, name
                assert inspect.iscoroutinefunction(awaited[name]), name

    def test_both_clients_are_made_from_the_same_settings(self) -> None:
        assert inspect.signature(Client) == inspect.signature(AsyncClient)

    @in_a_loop
    async def test_both_send_the_same_and_read_the_same(self, server: FakeServer) -> None:
        server.on("Embed", embedding_service_pb2.EmbedResponse())
        server.on("Search", gallery_service_pb2.SearchResponse(consistency_token="t"))
        server.on("Enroll", enrolled)
        server.on("ListModels", model_service_pb2.ListModelsResponse())
        server.on("BackupGalleries", [gallery_service_pb2.BackupGalleriesResponse(done=True)])
        calls: list[Callable[[Any], Any]] = [
            lambda client: client.embed(["a"], "m", 8, prompt="query"),
            lambda client: client.search("g", ["a"], far=0.01, filter={"site": "north"}),
            lambda client: client.enroll("g", [EnrollItem("a", id="i")], request_id="one"),
            lambda client: client.backup_galleries("monday"),
        ]
        async with made(server) as client:
            for call in calls:
                with Client(server.target) as blocking:
                    answer = await asyncio.to_thread(call, blocking)
                assert repr(await call(client)) == repr(answer)
            assert [model async for model in client.models()] == []
        asked = [request for name, request in server.requests if name != "ListModels"]
        assert asked[::2] == asked[1::2]


class TestCalls:
    @in_a_loop
    async def test_pages_follow_one_another(self, server: FakeServer) -> None:
        page = gallery_service_pb2.ListItemsResponse
        server.on(
            "ListItems",
            page(items=[shared_pb2.Item(id="a")], next_page_token="x"),
            page(items=[shared_pb2.Item(id="b")]),
        )
        async with made(server) as client:
            assert [item.id async for item in client.list_items("g")] == ["a", "b"]
        assert [one.page_token for one in server.asked("ListItems")] == ["", "x"]

    @in_a_loop
    async def test_a_write_is_retried_under_its_request_id_after_the_delay_that_was_named(
        self, server: FakeServer
    ) -> None:
        server.on("Enroll", UNAVAILABLE, FULL, enrolled)
        start = time.monotonic()
        async with made(server) as client:
            results = await client.enroll("g", [EnrollItem("a", id="i")])
        assert results.checked()[0].id == "i"
        assert time.monotonic() - start >= 0.2
        assert len({request.request_id for request in server.asked("Enroll")}) == 1
        assert len(server.asked("Enroll")) == 3

    @in_a_loop
    async def test_an_error_is_of_the_class_that_its_reason_names(self, server: FakeServer) -> None:
        gone = status(grpc.StatusCode.NOT_FOUND, "no gallery g", reason="GALLERY_NOT_FOUND")
        server.on("GetGallery", gone)
        async with made(server) as client:
            with pytest.raises(errors.GalleryNotFound, match="no gallery g"):
                await client.get_gallery("g")

    @in_a_loop
    async def test_a_late_answer_is_deadline_exceeded(self, server: FakeServer) -> None:
        with server.held("GetGallery"):
            async with made(server) as client:
                with pytest.raises(errors.DeadlineExceeded, match="longer timeout"):
                    await client.get_gallery("g", timeout=0.05)

    @in_a_loop
    async def test_the_deadline_covers_all_attempts(self, server: FakeServer) -> None:
        server.on("GetGallery", UNAVAILABLE)
        start = time.monotonic()
        async with made(server) as client:
            with pytest.raises(errors.Unavailable):
                await client.get_gallery("g", timeout=1.0)
        assert time.monotonic() - start < 10.0, "and is not begun anew by each"
        assert len(server.asked("GetGallery")) > 1

    @in_a_loop
    async def test_a_cancelled_task_cancels_its_call_on_the_server(
        self, server: FakeServer
    ) -> None:
        with server.held("GetGallery"):
            async with made(server) as client:
                task = asyncio.create_task(client.get_gallery("g"))
                await until(lambda: len(server.requests) == 1)
                assert server.ended == []
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
                await until(lambda: server.ended == ["GetGallery"])

    @in_a_loop
    async def test_a_timeout_of_asyncios_own_leaves_the_client_usable(
        self, server: FakeServer
    ) -> None:
        async with made(server) as client:
            with server.held("GetGallery"), pytest.raises(TimeoutError):
                await asyncio.wait_for(client.get_gallery("g"), 0.05)
            server.on("GetGallery", gallery_service_pb2.GetGalleryResponse())
            await client.get_gallery("g")

    @in_a_loop
    async def test_many_tasks_share_one_client_each_with_its_own_answer(
        self, server: FakeServer
    ) -> None:
        def echo(request: Any) -> Any:
            return gallery_service_pb2.GetItemResponse(item=shared_pb2.Item(id=request.id))

        server.on("GetItem", echo)
        async with made(server) as client:
            found = await asyncio.gather(*(client.get_item("g", str(n)) for n in range(50)))
        assert [item.id for item in found] == [str(n) for n in range(50)]

    @in_a_loop
    async def test_health_is_asked_once(self, server: FakeServer) -> None:
        server.on("Check", UNAVAILABLE)
        async with made(server) as client:
            with pytest.raises(errors.Unavailable):
                await client.health()
        assert len(server.asked("Check")) == 1
        assert Health.SERVING == "SERVING"


class TestLife:
    @in_a_loop
    async def test_a_closed_client_says_so(self, server: FakeServer) -> None:
        async with made(server) as client:
            pass
        with pytest.raises(errors.ClientClosed, match="is closed; make a new one"):
            await client.get_gallery("g")
        with pytest.raises(errors.ClientClosed):
            client.embed_stream(["a"])
        await client.close()

    @in_a_loop
    async def test_closing_ends_the_calls_of_other_tasks_and_not_the_tasks(
        self, server: FakeServer
    ) -> None:
        with server.held("GetGallery"), server.held("EmbedStream"):
            client = made(server)
            call = asyncio.create_task(client.get_gallery("g"))
            stream = asyncio.create_task(anext(client.embed_stream(["1"])))
            server.on("GetItem", UNAVAILABLE)
            pausing = asyncio.create_task(client.get_item("g", "i"))
            await until(lambda: len(server.ended) > 2)
            await client.close()
            for task in (call, stream, pausing):
                with pytest.raises(errors.ClientClosed):
                    await task

    def test_the_blocking_client_says_so_too(self, server: FakeServer) -> None:
        client = Client(server.target)
        raised: list[BaseException] = []

        def call() -> None:
            try:
                client.get_gallery("g")
            except errors.TwinserveError as error:
                raised.append(error)

        with server.held("GetGallery"):
            thread = threading.Thread(target=call)
            thread.start()
            while not server.requests:
                time.sleep(0.005)
            client.close()
            thread.join(5)
        assert [type(one) for one in raised] == [errors.ClientClosed]
        with pytest.raises(errors.ClientClosed):
            client.get_gallery("g")

    def test_a_client_is_made_anywhere_and_belongs_to_its_first_loop(
        self, server: FakeServer
    ) -> None:
        server.on("GetGallery", gallery_service_pb2.GetGalleryResponse())
        client = made(server)

        async def call() -> None:
            await client.get_gallery("g")

        async def call_and_close() -> None:
            with pytest.raises(errors.FailedPrecondition, match="one client per loop"):
                await client.get_gallery("g")

        first = asyncio.new_event_loop()
        try:
            first.run_until_complete(call())
            asyncio.run(call_and_close())
            first.run_until_complete(client.close())
        finally:
            first.close()


class TestUploads:
    @in_a_loop
    async def test_any_iterable_is_embedded_in_order_and_counted(self, server: FakeServer) -> None:
        server.on("EmbedStream", embedded)

        async def texts() -> AsyncIterator[str]:
            for n in range(7):
                yield str(n)

        async with made(server) as client:
            for source, total in (([str(n) for n in range(7)], 7), (texts(), None)):
                told: list[tuple[int, int | None]] = []
                found = [
                    value
                    async for part in client.embed_stream(
                        source, batch=3, progress=lambda *how, told=told: told.append(how)
                    )
                    for value in part.vectors[:, 0].tolist()
                ]
                assert found == [float(n) for n in range(7)]
                assert told == [(3, total), (6, total), (7, total)]
        assert server.finished == ["EmbedStream"] * 2, "an orderly end, and not a cancelled one"

    @in_a_loop
    async def test_of_an_endless_source_only_a_windows_worth_is_taken(
        self, server: FakeServer
    ) -> None:
        server.on("EmbedStream", embedded)
        taken = 0

        async def texts() -> AsyncIterator[str]:
            nonlocal taken
            for n in itertools.count():
                taken += 1
                yield str(n)

        async with (
            made(server) as client,
            aclosing(client.embed_stream(texts(), batch=2, window=3)) as parts,
        ):
            for answered in range(1, 6):
                await anext(parts)
                await asyncio.sleep(0.01)
                assert taken <= 2 * (answered + 3)
            taken = 0
            with server.held("EmbedStream"):
                first = asyncio.create_task(anext(client.embed_stream(texts(), batch=2, window=3)))
                await until(lambda: taken == 2 * 3)
                await asyncio.sleep(0.02)
                assert taken == 2 * 3, "three batches are under way, and no more"
                first.cancel()
        await until(lambda: len(server.ended) == len(server.requests))

    @in_a_loop
    async def test_a_slow_source_holds_back_no_answer(self, server: FakeServer) -> None:
        server.on("EmbedStream", embedded)
        more = asyncio.Event()

        async def texts() -> AsyncIterator[str]:
            yield "1"
            await more.wait()
            yield "2"

        async with made(server, timeout=2.0) as client:
            parts = client.embed_stream(texts(), batch=1)
            assert (await anext(parts)).vectors.tolist() == [[1.0]]
            # The source may be silent for longer than a reply may take.
            asyncio.get_running_loop().call_later(2.1, more.set)
            assert (await anext(parts)).vectors.tolist() == [[2.0]]
            assert await anext(parts, None) is None

    @in_a_loop
    async def test_what_was_not_answered_is_sent_again_under_its_request_id(
        self, server: FakeServer
    ) -> None:
        server.on("EnrollStream", enrolled, UNAVAILABLE, FULL, enrolled)

        async def items() -> AsyncIterator[EnrollItem]:
            for n in range(3):
                # Pulled from while the connection is lost: it must not end for that.
                await asyncio.sleep(0.02)
                yield EnrollItem("a", id=str(n))

        async with made(server) as client:
            results = [
                part.checked()[0].id
                async for part in client.enroll_stream("g", items(), batch=1, timeout=20.0)
            ]
        assert results == ["0", "1", "2"]
        first, *others = [one.request_id for one in server.asked("EnrollStream")]
        assert len(set(others)) == 2
        assert first not in others
        assert others[0] == others[1]

    @in_a_loop
    async def test_a_stream_whose_end_grpc_did_not_keep_the_reason_of_is_taken_for_a_lost_one(
        self,
    ) -> None:
        """It does so now and then, where a message was being sent (grpc issue 36066)."""
        async with AsyncClient() as client:
            for details, kind in (
                ("Internal error from Core", errors.Unavailable),
                ("Embed failed inside the server", errors.InternalFault),
            ):
                none = grpc.aio.Metadata()
                failure = grpc.aio.AioRpcError(grpc.StatusCode.INTERNAL, none, none, details)
                with pytest.raises(kind), client._reading():
                    raise failure

    @in_a_loop
    async def test_errors_of_the_source_and_of_a_whole_batch_are_raised(
        self, server: FakeServer
    ) -> None:
        async def texts() -> AsyncIterator[str]:
            yield "1"
            raise errors.Unavailable("what the texts come from is away")

        server.on("EmbedStream", embedded)
        async with made(server) as client:
            with pytest.raises(errors.Unavailable, match="come from"):
                async for _ in client.embed_stream(texts(), batch=1):
                    pass
            unknown = status(grpc.StatusCode.NOT_FOUND, "no model", reason="MODEL_NOT_FOUND")
            server.on("EmbedStream", embedding_service_pb2.EmbedStreamResponse(error=unknown))
            with pytest.raises(errors.ModelNotFound):
                await anext(client.embed_stream(["1"]))
            with pytest.raises(errors.InvalidInput, match="batch is 0"):
                client.embed_stream(["1"], batch=0)

    @in_a_loop
    async def test_a_reply_that_does_not_come_ends_the_wait(self, server: FakeServer) -> None:
        with server.held("EmbedStream"):
            async with made(server) as client:
                with pytest.raises(errors.DeadlineExceeded, match="no reply"):
                    await anext(client.embed_stream(["1"], timeout=0.05))

    def test_the_blocking_client_names_the_other_for_async_iterables(
        self, server: FakeServer
    ) -> None:
        async def texts() -> AsyncIterator[str]:
            yield "1"

        with Client(server.target) as client, pytest.raises(errors.InvalidInput, match="Async"):
            client.embed_stream(texts())


class TestDownloads:
    @staticmethod
    def message(*ids: str) -> gallery_service_pb2.ExportItemsResponse:
        return gallery_service_pb2.ExportItemsResponse(
            items=[shared_pb2.Item(id=one) for one in ids],
            embeddings=bytes(4 * len(ids)),
            dimension=1,
            item_count=3,
        )

    @in_a_loop
    async def test_a_broken_export_goes_on_after_the_last_item(self, server: FakeServer) -> None:
        server.on(
            "ExportItems",
            [self.message("a", "b"), UNAVAILABLE],
            [self.message("c"), UNAVAILABLE],
            [],
        )
        told: list[tuple[int, int | None]] = []
        async with made(server) as client:
            found = [
                item.id
                async for part in client.export_items("g", progress=lambda *how: told.append(how))
                for item in part.items
            ]
        assert found == ["a", "b", "c"]
        assert [one.after for one in server.asked("ExportItems")] == ["", "b", "c"]
        assert told == [(2, 3), (3, 3)]

    @in_a_loop
    async def test_a_backup_tells_how_it_goes_and_is_not_begun_anew(
        self, server: FakeServer
    ) -> None:
        copied = gallery_service_pb2.BackupGalleriesResponse
        server.on(
            "BackupGalleries",
            [copied(gallery="g", bytes_done=1, bytes_total=2), copied(done=True, path="/b")],
            [UNAVAILABLE],
        )
        told: list[tuple[str, int, int]] = []
        async with made(server) as client:
            backup = await client.backup_galleries("b", progress=lambda *how: told.append(how))
            assert (backup.path, told) == ("/b", [("g", 1, 2)])
            with pytest.raises(errors.Unavailable):
                await client.backup_galleries("b")
        assert len(server.asked("BackupGalleries")) == 2
