"""Long streams from the server: watched for a stall, and gone on with where they broke.

In: a function that opens the stream. Out: its messages. A stream has no deadline as a whole, since
nobody knows how long a gallery takes; each single message has one.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Generator, Iterator
from typing import Any, TypeVar

import grpc

from twinserve.client.calls import Download
from twinserve.client.retries import Attempts, Pause
from twinserve.errors import DeadlineExceeded, TwinserveError

T = TypeVar("T")
ReadError = Callable[[grpc.RpcError], TwinserveError]


def answers(
    download: Download[T],
    open_stream: Callable[[Any], Any],
    patience: float,
    read_error: ReadError,
    pause: Pause,
) -> Iterator[T]:
    """Give what a download reads; a broken stream goes on after its last message, where it can.

    Args:
        download: its request is changed as messages come.
        open_stream: begins the call with a request.
        patience: seconds that one message may be waited for.
        read_error: makes our error of gRPC's.
        pause: seconds to wait before going on after an error, the attempts and seconds since the
            last message; None where it is not to be.

    Raises:
        TwinserveError: what no retry helps against.
    """
    attempts = Attempts(pause, patience)
    while True:
        try:
            with contextlib.closing(
                read(lambda: open_stream(download.request), patience, read_error)
            ) as stream:
                for message in stream:
                    answer = download.read(message)
                    if answer is not None:
                        yield answer
                    if download.go_on_after is not None:
                        download.go_on_after(download.request, message)
                    attempts.restart()
            return
        except TwinserveError as error:
            seconds = None if download.go_on_after is None else attempts.pause_after(error)
            if seconds is None:
                raise
        time.sleep(seconds)


def read(
    open_stream: Callable[[], Any], patience: float, read_error: ReadError
) -> Generator[Any, None, None]:
    """Give a stream's messages; leaving it early cancels the call.

    Args:
        open_stream: begins the call.
        patience: seconds that one message may be waited for.
        read_error: makes our error of gRPC's.

    Raises:
        DeadlineExceeded: no message came for `patience` seconds.
        TwinserveError: what the server ended the stream with.
    """
    watched = Watched(open_stream(), patience)
    try:
        while (message := watched.receive()) is not None:
            yield message
    except grpc.RpcError as failure:
        raise (stalled(patience) if watched.late else read_error(failure)) from failure
    finally:
        watched.close()


def stalled(patience: float) -> DeadlineExceeded:
    """Return the error of a stream on which nothing came for so many seconds."""
    return DeadlineExceeded(
        f"no reply came on the stream for {patience:g} s; give it a longer timeout, or look at "
        "what keeps the server busy"
    )


class Watched:
    """A stream of replies, and the watch over how long the next one takes."""

    def __init__(self, stream: Any, patience: float) -> None:
        self.late = False
        self._stream = stream
        self._patience = patience
        self._waits_since: float | None = None
        self._closed = threading.Event()
        threading.Thread(target=self._watch, daemon=True).start()

    def receive(self) -> Any:
        """Return the next reply, or None where the stream has ended."""
        self._waits_since = time.monotonic()
        try:
            return next(self._stream, None)
        finally:
            self._waits_since = None

    def close(self) -> None:
        self._closed.set()
        with contextlib.suppress(Exception):
            self._stream.cancel()

    def _watch(self) -> None:
        while not self._closed.wait(min(1.0, self._patience / 4)):
            since = self._waits_since
            if since is not None and time.monotonic() - since > self._patience:
                self.late = True
                self._stream.cancel()
                return
