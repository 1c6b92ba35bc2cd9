"""Many inputs over one stream: batches out, their answers in, in order, over lost connections.

A bounded number of batches is under way; inputs are taken from their iterator as replies come. When
a server stops or is lost, the batches that it did not answer go to the next one, so each input has
exactly one answer. Sending a batch twice does no harm: embedding has no effect, and an enrolment
carries a request_id by which the server knows it again.
"""

from __future__ import annotations

import contextlib
import queue
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Generic, TypeVar

import grpc
import numpy as np

from twinserve import messages
from twinserve.errors import DeadlineExceeded, Exhausted, TwinserveError, Unavailable
from twinserve.messages import Embeddings, Timing
from twinserve.v1 import embedding_service_pb2 as pb

Sent = TypeVar("Sent")
Answer = TypeVar("Answer")

# Batches under way on one stream.
WINDOW = 16


def embed_stream(
    open_stream: Callable[[Iterator[pb.EmbedStreamRequest]], Any],
    requests: Iterable[pb.EmbedRequest],
    patience: float,
    read_error: Callable[[grpc.RpcError], TwinserveError],
    pause: Callable[[TwinserveError, int, float], float | None],
    window: int = WINDOW,
) -> Iterator[Embeddings]:
    """Send requests and give the embeddings of each, in order.

    Args:
        open_stream: opens EmbedStream.
        requests: each with some inputs; their request_id is set here.
        patience: as for `answers`.
        read_error: as for `answers`.
        pause: as for `answers`.
        window: as for `answers`.

    Raises:
        TwinserveError: what no retry helps against, such as an unknown model.
        DeadlineExceeded: no reply came for `patience` seconds.
    """

    def numbered() -> Iterator[pb.EmbedStreamRequest]:
        for number, request in enumerate(requests):
            request.request_id = str(number)
            yield pb.EmbedStreamRequest(request=request)

    def read(sent: pb.EmbedStreamRequest, reply: pb.EmbedStreamResponse) -> Embeddings:
        return _read(reply, len(sent.request.inputs))

    return answers(open_stream, numbered(), read, patience, read_error, pause, window)


def answers(
    open_stream: Callable[[Iterator[Sent]], Any],
    requests: Iterable[Sent],
    read: Callable[[Sent, Any], Answer],
    patience: float,
    read_error: Callable[[grpc.RpcError], TwinserveError],
    pause: Callable[[TwinserveError, int, float], float | None],
    window: int = WINDOW,
) -> Iterator[Answer]:
    """Send messages over a stream that answers in order, and give the answer of each.

    Args:
        open_stream: opens the stream.
        requests: the messages; each may come to be sent again.
        read: makes the answer of a message and its reply; Unavailable or Exhausted, raised there,
            have the message and those after it sent again.
        patience: seconds for which a reply may be waited for, attempts included.
        read_error: makes our error of gRPC's.
        pause: seconds to wait before the stream is opened again after an error, the attempts and
            seconds since the last reply; None where it is not to be.
        window: messages under way.

    Raises:
        TwinserveError: what no retry helps against.
        DeadlineExceeded: no reply came for `patience` seconds.
    """
    source = iter(requests)
    unanswered: deque[Sent] = deque()
    attempt, since = 0, time.monotonic()
    done = False
    while not (done and not unanswered):
        stream = _Stream[Sent](open_stream, patience)
        try:
            for request in unanswered:
                stream.send(request)
            while True:
                while not done and len(unanswered) < window:
                    request_ = next(source, None)
                    if request_ is None:
                        done = True
                        break
                    unanswered.append(request_)
                    stream.send(request_)
                if not unanswered:
                    return
                found = read(unanswered[0], stream.receive())
                unanswered.popleft()
                attempt = 0
                yield found
                since = time.monotonic()
        except grpc.RpcError as failure:
            error = _late(patience) if stream.late else read_error(failure)
            seconds = pause(error, attempt, time.monotonic() - since)
            if seconds is None or time.monotonic() - since + seconds > patience:
                raise error from failure
        except (Unavailable, Exhausted) as error:
            # One message was refused: it and those after it are sent again.
            seconds = pause(error, attempt, time.monotonic() - since)
            if seconds is None or time.monotonic() - since + seconds > patience:
                raise
        finally:
            stream.close()
        time.sleep(seconds)
        attempt += 1


class _Stream(Generic[Sent]):
    """One opened stream, and the watch over its replies."""

    def __init__(self, open_stream: Callable[..., Any], patience: float) -> None:
        self.late = False
        self._patience = patience
        self._outbox: queue.SimpleQueue[Sent | None] = queue.SimpleQueue()
        self._replies = open_stream(iter(self._outbox.get, None))
        self._waits_since: float | None = None
        self._closed = threading.Event()
        threading.Thread(target=self._watch, daemon=True).start()

    def send(self, request: Sent) -> None:
        self._outbox.put(request)

    def receive(self) -> Any:
        self._waits_since = time.monotonic()
        try:
            reply = next(self._replies, None)
        finally:
            self._waits_since = None
        if reply is None:
            raise Unavailable("the server ended the stream before it had answered; try again")
        return reply

    def close(self) -> None:
        self._closed.set()
        self._outbox.put(None)
        with contextlib.suppress(Exception):
            self._replies.cancel()

    def _watch(self) -> None:
        while not self._closed.wait(min(1.0, self._patience / 4)):
            since = self._waits_since
            if since is not None and time.monotonic() - since > self._patience:
                self.late = True
                self._replies.cancel()
                return


def _late(patience: float) -> TwinserveError:
    return DeadlineExceeded(
        f"no reply came on the stream for {patience:g} s; give it a longer timeout, or look at "
        "what keeps the server busy"
    )


def _read(reply: pb.EmbedStreamResponse, count: int) -> Embeddings:
    """Return a reply's embeddings; where every input failed, rows of no width and the errors.

    Raises:
        TwinserveError: a fault of the whole request.
    """
    if reply.WhichOneof("reply") == "response":
        return messages.from_embed_response(reply.response)
    error = messages.from_status(reply.error)
    failed = {_place(item): item for item in error.items or (error,)}
    if None in failed:
        raise error
    errors = tuple(failed.get(place, error) for place in range(count))
    return Embeddings(
        vectors=np.full((count, 0), np.nan, np.float32),
        space_id="",
        model_version="",
        timing=Timing(0, 0, 0, 0, 0, ""),
        errors=errors,
        token_counts=(0,) * count,
        truncated=(False,) * count,
    )


def _place(error: TwinserveError) -> int | None:
    found = re.match(r"request\.inputs\[(\d+)\]", error.field)
    return int(found[1]) if found else None
