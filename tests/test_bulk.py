"""Bulk embedding: every input once and in order, whatever becomes of the connection."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import numpy as np
import pytest
from google.rpc import status_pb2

from tests.fake_server import status
from twinserve import messages
from twinserve.client import uploads
from twinserve.client.embedding import read_stream_reply
from twinserve.errors import (
    DeadlineExceeded,
    DiskFull,
    ModelNotFound,
    TwinserveError,
    Unavailable,
    UndecodableImage,
)
from twinserve.v1 import embedding_service_pb2 as pb
from twinserve.v1 import gallery_service_pb2 as gallery_pb
from twinserve.v1 import shared_pb2

Answer = Callable[[pb.EmbedRequest], pb.EmbedStreamResponse]


class Lost(grpc.RpcError):
    """A connection that is gone."""


class FakeStream:
    """Answers what is sent, one message at a time, until it is lost."""

    def __init__(self, sent: Iterator[pb.EmbedStreamRequest], answer: Answer) -> None:
        self._sent = sent
        self._answer = answer
        self._cancelled = threading.Event()

    def __iter__(self) -> FakeStream:
        return self

    def __next__(self) -> pb.EmbedStreamResponse:
        message = next(self._sent)
        return self._answer(message.request)

    def cancel(self) -> None:
        self._cancelled.set()


def value_of(request: pb.EmbedRequest) -> pb.EmbedStreamResponse:
    results = [
        pb.EmbedResult(embedding=shared_pb2.Embedding(values=[float(one.text)]))
        for one in request.inputs
    ]
    return pb.EmbedStreamResponse(
        response=pb.EmbedResponse(results=results), request_id=request.request_id
    )


def requests(count: int, size: int = 1) -> Iterator[pb.EmbedRequest]:
    for i in range(0, count, size):
        texts = [shared_pb2.Input(text=str(n)) for n in range(i, min(i + size, count))]
        yield pb.EmbedRequest(inputs=texts)


def numbered(source: Iterator[pb.EmbedRequest]) -> Iterator[pb.EmbedStreamRequest]:
    for number, request in enumerate(source):
        request.request_id = str(number)
        yield pb.EmbedStreamRequest(request=request)


def run(
    open_stream: Callable[[Iterator[pb.EmbedStreamRequest]], Any],
    source: Iterator[pb.EmbedRequest],
    patience: float = 30.0,
    window: int = 4,
    pauses: list[float | None] | None = None,
) -> Iterator[messages.Embeddings]:
    def pause(error: TwinserveError, attempt: int, elapsed: float) -> float | None:
        if pauses:
            return pauses.pop(0)
        return 0.0 if isinstance(error, Unavailable) else None

    return uploads.answers(
        open_stream,
        numbered(source),
        read_stream_reply,
        patience,
        lambda failure: Unavailable("lost"),
        pause,
        window,
    )


def values(found: Iterator[messages.Embeddings]) -> list[float]:
    return [float(value) for part in found for value in part.vectors[:, 0]]


def test_replies_are_given_in_the_order_of_the_inputs() -> None:
    found = run(lambda sent: FakeStream(sent, value_of), requests(23, 5))
    assert values(found) == [float(i) for i in range(23)]


def test_nothing_at_all_is_no_reply() -> None:
    assert list(run(lambda sent: FakeStream(sent, value_of), iter(()))) == []


def test_inputs_are_taken_no_faster_than_they_are_answered() -> None:
    taken: list[int] = []

    def source() -> Iterator[pb.EmbedRequest]:
        for request in requests(50):
            taken.append(1)
            yield request

    found = run(lambda sent: FakeStream(sent, value_of), source(), window=6)
    for i in range(10):
        next(found)
        assert len(taken) <= i + 6


def test_what_a_lost_server_did_not_answer_goes_to_the_next() -> None:
    answered: list[str] = []
    streams: list[int] = []

    def open_stream(sent: Iterator[pb.EmbedStreamRequest]) -> FakeStream:
        streams.append(0)

        def answer(request: pb.EmbedRequest) -> pb.EmbedStreamResponse:
            streams[-1] += 1
            if streams[-1] == 4 and len(streams) < 3:
                raise Lost
            answered.append(request.inputs[0].text)
            return value_of(request)

        return FakeStream(sent, answer)

    assert values(run(open_stream, requests(12))) == [float(i) for i in range(12)]
    assert len(streams) == 3
    assert answered == [str(i) for i in range(12)]


def test_a_stream_that_ends_early_is_a_lost_one() -> None:
    streams: list[int] = []

    def open_stream(sent: Iterator[pb.EmbedStreamRequest]) -> Any:
        streams.append(1)
        if len(streams) == 1:
            return FakeStream(iter(()), value_of)
        return FakeStream(sent, value_of)

    assert values(run(open_stream, requests(5))) == [0.0, 1.0, 2.0, 3.0, 4.0]


def test_a_message_that_is_refused_for_now_is_sent_again() -> None:
    refused: list[str] = []

    def answer(request: pb.EmbedRequest) -> pb.EmbedStreamResponse:
        if request.request_id == "2" and len(refused) < 2:
            refused.append(request.request_id)
            full = status(grpc.StatusCode.UNAVAILABLE, "stopping", reason="UNAVAILABLE")
            return pb.EmbedStreamResponse(error=full, request_id=request.request_id)
        return value_of(request)

    assert values(run(lambda sent: FakeStream(sent, answer), requests(5))) == [0, 1, 2, 3, 4]
    assert refused == ["2", "2"]


def test_giving_up_raises_what_was_wrong() -> None:
    def answer(request: pb.EmbedRequest) -> pb.EmbedStreamResponse:
        raise Lost

    with pytest.raises(Unavailable, match="lost"):
        list(run(lambda sent: FakeStream(sent, answer), requests(5), pauses=[0.0, None]))


def fault(code: grpc.StatusCode, reason: str, field: str = "") -> status_pb2.Status:
    return status(code, "a sentence that says what was wrong", reason=reason, field=field)


def test_a_fault_of_the_whole_request_is_raised() -> None:
    def answer(request: pb.EmbedRequest) -> pb.EmbedStreamResponse:
        error = fault(grpc.StatusCode.NOT_FOUND, "MODEL_NOT_FOUND", "request.model")
        return pb.EmbedStreamResponse(error=error, request_id=request.request_id)

    with pytest.raises(ModelNotFound):
        list(run(lambda sent: FakeStream(sent, answer), requests(5)))


def test_a_batch_whose_inputs_all_failed_holds_their_errors_and_the_next_goes_on() -> None:
    def answer(request: pb.EmbedRequest) -> pb.EmbedStreamResponse:
        if request.request_id != "1":
            return value_of(request)
        error = fault(grpc.StatusCode.INVALID_ARGUMENT, "IMAGE_UNDECODABLE", "request.inputs[0]")
        return pb.EmbedStreamResponse(error=error, request_id=request.request_id)

    found = list(run(lambda sent: FakeStream(sent, answer), requests(6, 2)))
    assert [len(part) for part in found] == [2, 2, 2]
    assert all(isinstance(error, UndecodableImage) for error in found[1].errors)
    assert found[1].vectors.shape == (2, 0)
    assert np.array_equal(found[2].vectors[:, 0], [4.0, 5.0])


def test_a_reply_that_does_not_come_ends_the_wait() -> None:
    class Silent(FakeStream):
        def __next__(self) -> pb.EmbedStreamResponse:
            assert self._cancelled.wait(30)
            raise Lost

    with pytest.raises(DeadlineExceeded, match="no reply"):
        list(run(lambda sent: Silent(sent, value_of), requests(2), patience=0.2))


def enrolments(count: int) -> Iterator[gallery_pb.EnrollRequest]:
    for i in range(count):
        item = gallery_pb.EnrollItem(item=shared_pb2.Item(id=str(i)))
        yield gallery_pb.EnrollRequest(items=[item], request_id=f"r{i}")


class Enrolments:
    """A server that keeps what it is sent, and is lost right after having kept its third."""

    def __init__(self) -> None:
        self.kept: dict[str, str] = {}  # item by request_id
        self.sent: list[str] = []

    def open(self, sent: Iterator[gallery_pb.EnrollRequest]) -> Iterator[Any]:
        return self.Stream(self, sent)

    class Stream:
        def __init__(self, server: Enrolments, sent: Iterator[gallery_pb.EnrollRequest]) -> None:
            self._server, self._sent, self._answered = server, sent, 0

        def __next__(self) -> gallery_pb.EnrollResponse:
            request = next(self._sent)
            self._server.sent.append(request.request_id)
            again = request.request_id in self._server.kept
            self._server.kept[request.request_id] = request.items[0].item.id
            self._answered += 1
            if self._answered == 3 and not again:
                raise Lost
            done = gallery_pb.Enrolled(id=request.items[0].item.id)
            return gallery_pb.EnrollResponse(results=[gallery_pb.EnrollResult(enrolled=done)])

        def cancel(self) -> None:
            pass


def test_enrolments_without_an_answer_are_sent_again_under_their_own_request_id() -> None:
    server = Enrolments()
    found = uploads.answers(
        server.open,
        enrolments(8),
        lambda sent, reply: (sent.request_id, reply.results[0].enrolled.id),
        30.0,
        lambda failure: Unavailable("lost"),
        lambda error, attempt, elapsed: 0.0,
        4,
    )
    assert list(found) == [(f"r{i}", str(i)) for i in range(8)]
    assert server.kept == {f"r{i}": str(i) for i in range(8)}
    assert server.sent.count("r2") == 2, "kept, and lost before it was answered"


def test_a_server_that_stays_full_is_waited_for_only_so_long() -> None:
    def answer(request: pb.EmbedRequest) -> pb.EmbedStreamResponse:
        raise Lost

    def run_out() -> None:
        list(
            uploads.answers(
                lambda sent: FakeStream(sent, answer),
                numbered(requests(1)),
                read_stream_reply,
                0.3,
                lambda failure: DiskFull("no room on the disk", retry_after=0.1),
                lambda error, attempt, elapsed: error.retry_after,
            )
        )

    with pytest.raises(DiskFull):
        run_out()


def test_an_error_of_the_source_itself_is_raised_and_never_taken_for_the_servers() -> None:
    def source() -> Iterator[pb.EmbedRequest]:
        yield from requests(1)
        raise Unavailable("the gallery that is copied from is away")

    found = run(lambda sent: FakeStream(sent, value_of), source())
    with pytest.raises(Unavailable, match="copied from"):
        list(found)
