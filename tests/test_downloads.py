"""Streams from the server, read by hand-made ones: resumed, refused, stalled."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence

import grpc
import numpy as np
import pytest

from twinserve.client import downloads, items
from twinserve.errors import (
    DeadlineExceeded,
    GalleryNotFound,
    InternalFault,
    TwinserveError,
    Unavailable,
)
from twinserve.messages import Exported
from twinserve.v1 import gallery_service_pb2 as pb
from twinserve.v1 import shared_pb2


class Broken(grpc.RpcError):
    """What gRPC raises, with what we make of it."""

    def __init__(self, error: TwinserveError) -> None:
        super().__init__(error.message)
        self.error = error


class Stream:
    """Gives messages, then breaks or ends."""

    def __init__(self, messages: Sequence[pb.ExportItemsResponse], end: Broken | None) -> None:
        self._messages = iter(messages)
        self._end = end
        self.cancelled = False

    def __next__(self) -> pb.ExportItemsResponse:
        for message in self._messages:
            return message
        if self._end is not None:
            raise self._end
        raise StopIteration

    def cancel(self) -> None:
        self.cancelled = True


def message(*ids: str) -> pb.ExportItemsResponse:
    values = np.arange(len(ids) * 2, dtype="<f4")
    return pb.ExportItemsResponse(
        items=[shared_pb2.Item(id=one) for one in ids],
        embeddings=values.tobytes(),
        dimension=2,
        item_count=4,
    )


def export(begin: Callable[[pb.ExportItemsRequest], Stream], after: str = "") -> list[Exported]:
    download = items.export_items("g", after=after)
    return list(downloads.answers(download, begin, 30.0, read_error, once_more))


def opened(
    streams: Iterator[Stream], asked: list[str]
) -> Callable[[pb.ExportItemsRequest], Stream]:
    def begin(request: pb.ExportItemsRequest) -> Stream:
        asked.append(request.after)
        return next(streams)

    return begin


def read_error(failure: grpc.RpcError) -> TwinserveError:
    assert isinstance(failure, Broken)
    return failure.error


def once_more(error: TwinserveError, attempt: int, elapsed: float) -> float | None:
    return 0.0 if isinstance(error, Unavailable) and attempt < 2 else None


def test_a_broken_export_goes_on_after_the_last_item() -> None:
    gone = Broken(Unavailable("gone"))
    streams = [
        Stream([message("a", "b")], gone),
        Stream([], gone),
        Stream([message(), message("c")], gone),
        Stream([message("d")], None),
    ]
    asked: list[str] = []
    found = export(opened(iter(streams), asked), "0")
    assert [[item.id for item in part.items] for part in found] == [["a", "b"], ["c"], ["d"]]
    assert asked == ["0", "b", "b", "c"]
    assert found[0].embeddings.tolist() == [[0.0, 1.0], [2.0, 3.0]]
    assert all(stream.cancelled for stream in streams)


@pytest.mark.parametrize(
    ("streams", "kind", "tries"),
    [
        ([Stream([message("a")], Broken(GalleryNotFound("deleted")))], GalleryNotFound, 1),
        ([Stream([], Broken(Unavailable("gone"))) for _ in range(3)], Unavailable, 3),
    ],
)
def test_what_no_retry_helps_against_is_raised(
    streams: list[Stream], kind: type[TwinserveError], tries: int
) -> None:
    asked: list[str] = []
    begin = opened(iter(streams), asked)
    with pytest.raises(kind):
        export(begin)
    assert len(asked) == tries


def test_embeddings_that_do_not_fit_their_items_are_refused() -> None:
    wrong = message("a")
    wrong.items.add(id="b")
    begin = opened(iter([Stream([wrong], None)]), [])
    with pytest.raises(InternalFault, match="2 items"):
        export(begin)


def test_a_stream_without_news_is_given_up() -> None:
    class Silent:
        def __init__(self) -> None:
            self._cancelled = threading.Event()

        def __next__(self) -> None:
            assert self._cancelled.wait(30)
            raise Broken(Unavailable("cancelled"))

        def cancel(self) -> None:
            self._cancelled.set()

    with pytest.raises(DeadlineExceeded, match=r"0\.05 s"):
        list(downloads.read(Silent, 0.05, read_error))


def test_leaving_a_stream_early_cancels_it() -> None:
    stream = Stream([message("a"), message("b")], None)
    reading = downloads.read(lambda: stream, 30.0, read_error)
    next(reading)
    reading.close()
    assert stream.cancelled
