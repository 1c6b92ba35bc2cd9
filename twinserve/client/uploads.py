"""Many messages over one stream: batches out, their answers in, in order, over lost connections.

A bounded number of batches is under way; inputs are taken from their iterator as replies come. When
a server stops or is lost, the batches that it did not answer go to the next one, so each input has
exactly one answer. Sending a batch twice does no harm: embedding has no effect, and an enrolment
carries a request_id by which the server knows it again.
"""

from __future__ import annotations

import contextlib
import itertools
import queue
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import grpc

from twinserve.client.calls import WINDOW, Upload
from twinserve.client.downloads import ReadError, Watched, stalled
from twinserve.client.retries import Attempts, Pause
from twinserve.errors import Exhausted, InvalidInput, TwinserveError, Unavailable

Sent = TypeVar("Sent")
Answer = TypeVar("Answer")


def requests(upload: Upload[Any]) -> Iterator[Any]:
    """Give the messages of an upload, made when they are asked for.

    Raises:
        InvalidInput: its items come from an async iterable.
    """
    if not isinstance(upload.items, Iterable):
        raise InvalidInput(
            f"{type(upload.items).__name__} cannot be iterated over here; async iterables are for "
            "AsyncClient"
        )
    source = iter(upload.items)
    parts = iter(lambda: list(itertools.islice(source, upload.batch)), [])
    return (upload.request(part, number) for number, part in enumerate(parts))


def answers(
    open_stream: Callable[[Iterator[Sent]], Any],
    requests: Iterable[Sent],
    read: Callable[[Sent, Any], Answer],
    patience: float,
    read_error: ReadError,
    pause: Pause,
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
    attempts = Attempts(pause, patience)
    done = False
    while True:
        outbox: queue.SimpleQueue[Sent | None] = queue.SimpleQueue()
        for request in unanswered:
            outbox.put(request)
        stream = Watched(open_stream(iter(outbox.get, None)), patience)
        try:
            while True:
                # Outside the `try` below: what the source raises is none of the stream's errors.
                while not done and len(unanswered) < window:
                    following = next(source, None)
                    if following is None:
                        done = True
                        break
                    if not unanswered:
                        attempts.restart()
                    unanswered.append(following)
                    outbox.put(following)
                if not unanswered:
                    # All is answered: however the call ends, an orderly end is not a cancelled one.
                    outbox.put(None)
                    with contextlib.suppress(grpc.RpcError):
                        stream.receive()
                    return
                try:
                    found = read(unanswered[0], replied(stream.receive()))
                except grpc.RpcError as failure:
                    error: TwinserveError = (
                        stalled(patience) if stream.late else read_error(failure)
                    )
                    error.__cause__ = failure
                    break
                except (Unavailable, Exhausted) as refused:
                    # One message was refused: it and those after it are sent again.
                    error = refused
                    break
                unanswered.popleft()
                yield found
                attempts.restart()
        finally:
            stream.close()
            outbox.put(None)
        seconds = attempts.pause_after(error)
        if seconds is None:
            raise error
        time.sleep(seconds)


def replied(reply: Any) -> Any:
    """Return a reply.

    Raises:
        Unavailable: it is None, since the stream ended too early.
    """
    if reply is None:
        raise Unavailable("the server ended the stream before it had answered; try again")
    return reply
