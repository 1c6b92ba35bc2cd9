"""Long streams from the server: watched for a stall, and gone on with where they broke.

In: a function that opens the stream. Out: its messages. A stream has no deadline as a whole, since
nobody knows how long a gallery takes; each single message has one.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Generator, Iterator
from typing import Any

import grpc

from twinserve import messages
from twinserve.errors import DeadlineExceeded, TwinserveError
from twinserve.messages import Exported
from twinserve.v1 import gallery_service_pb2 as pb

ReadError = Callable[[grpc.RpcError], TwinserveError]
Pause = Callable[[TwinserveError, int, float], float | None]


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
    watched = _Watched(open_stream(), patience)
    try:
        while (message := watched.receive()) is not None:
            yield message
    except grpc.RpcError as failure:
        if watched.late:
            raise DeadlineExceeded(
                f"no message came on the stream for {patience:g} s; give it a longer timeout, or "
                "look at what keeps the server busy"
            ) from failure
        raise read_error(failure) from failure
    finally:
        watched.close()


def export(
    open_stream: Callable[[pb.ExportItemsRequest], Any],
    request: pb.ExportItemsRequest,
    patience: float,
    read_error: ReadError,
    pause: Pause,
) -> Iterator[Exported]:
    """Give a gallery's items from `request.after` on; a broken stream goes on after the last one.

    Args:
        open_stream: begins ExportItems.
        request: is changed as the items come.
        patience: seconds that one message may be waited for.
        read_error: makes our error of gRPC's.
        pause: seconds to wait before going on after an error, the attempts and seconds since the
            last message; None where it is not to be.

    Raises:
        TwinserveError: what no retry helps against.
    """
    attempt, since = 0, time.monotonic()
    while True:
        try:
            with contextlib.closing(
                read(lambda: open_stream(request), patience, read_error)
            ) as stream:
                for message in stream:
                    attempt = 0
                    if message.items:
                        yield messages.from_export_response(message)
                        request.after = message.items[-1].id
                    since = time.monotonic()
            return
        except TwinserveError as error:
            seconds = pause(error, attempt, time.monotonic() - since)
            if seconds is None:
                raise
        time.sleep(seconds)
        attempt += 1


class _Watched:
    """A stream, and the watch over how long its next message takes."""

    def __init__(self, stream: Any, patience: float) -> None:
        self.late = False
        self._stream = stream
        self._patience = patience
        self._waits_since: float | None = None
        self._closed = threading.Event()
        threading.Thread(target=self._watch, daemon=True).start()

    def receive(self) -> Any:
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
