"""Streams under asyncio: the same promises as `uploads` and `downloads`, waited for in tasks.

A slow source holds back no answers here: the next batch is waited for while replies come. What
waits for the source outlives a lost connection, since an async iterator that is interrupted is
over.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable
from contextlib import AbstractContextManager, aclosing, suppress
from typing import Any, TypeVar

from twinserve.client.calls import Download, Source, Upload
from twinserve.client.downloads import stalled
from twinserve.client.retries import Attempts
from twinserve.client.uploads import replied
from twinserve.errors import TwinserveError

T = TypeVar("T")
# Inside it, gRPC's errors become ours.
Reading = Callable[[], AbstractContextManager[None]]


async def upload_answers(
    upload: Upload[T],
    open_stream: Callable[[AsyncIterator[Any]], Any],
    attempts: Attempts,
    reading: Reading,
) -> AsyncGenerator[T, None]:
    """Give the answers of an upload, in order, while its items are taken.

    Raises:
        TwinserveError: what no retry helps against.
        DeadlineExceeded: no reply came for the seconds of `attempts`.
    """
    unanswered: deque[Any] = deque()
    ended = False
    pull: asyncio.Task[Any] | None = None
    reply: asyncio.Task[Any] | None = None
    async with aclosing(_requests(upload)) as requests:
        try:
            while True:
                outbox: asyncio.Queue[Any] = asyncio.Queue()
                for request in unanswered:
                    outbox.put_nowait(request)
                stream = open_stream(_sent(outbox))
                replies = aiter(stream)
                try:
                    while True:
                        if pull is None and not ended and len(unanswered) < upload.window:
                            pull = asyncio.create_task(_next(requests))
                        if reply is None and unanswered:
                            reply = asyncio.create_task(_reply(replies, attempts.seconds, reading))
                        waited = [task for task in (pull, reply) if task is not None]
                        if not waited:
                            # All is answered: however the call ends, an orderly end is not a
                            # cancelled one.
                            outbox.put_nowait(None)
                            with suppress(TwinserveError):
                                await _reply(replies, attempts.seconds, reading)
                            return
                        await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
                        if reply is not None and reply.done():
                            came, reply = reply, None
                            try:
                                found = upload.read(unanswered[0], replied(came.result()))
                            except TwinserveError as failure:
                                # This message and those after it are sent again, if that helps.
                                error = failure
                                break
                            unanswered.popleft()
                            yield found
                            attempts.restart()
                        if pull is not None and pull.done():
                            request, pull = pull.result(), None
                            ended = request is None
                            if not ended:
                                if not unanswered:
                                    attempts.restart()
                                unanswered.append(request)
                                outbox.put_nowait(request)
                finally:
                    stream.cancel()
                pause = attempts.pause_after(error)
                if pause is None:
                    raise error
                await asyncio.sleep(pause)
        finally:
            left = [task for task in (pull, reply) if task is not None]
            for task in left:
                task.cancel()
            await asyncio.gather(*left, return_exceptions=True)


async def download_answers(
    download: Download[T],
    open_stream: Callable[[Any], Any],
    attempts: Attempts,
    reading: Reading,
) -> AsyncGenerator[T, None]:
    """Give what a download reads; a broken stream goes on after its last message, where it can.

    Raises:
        TwinserveError: what no retry helps against.
        DeadlineExceeded: no message came for the seconds of `attempts`.
    """
    while True:
        stream = open_stream(download.request)
        replies = aiter(stream)
        try:
            while (message := await _reply(replies, attempts.seconds, reading)) is not None:
                answer = download.read(message)
                if answer is not None:
                    yield answer
                if download.go_on_after is not None:
                    download.go_on_after(download.request, message)
                attempts.restart()
            return
        except TwinserveError as error:
            pause = None if download.go_on_after is None else attempts.pause_after(error)
            if pause is None:
                raise
        finally:
            stream.cancel()
        await asyncio.sleep(pause)


async def _reply(replies: AsyncIterator[Any], patience: float, reading: Reading) -> Any:
    """Return the next reply, or None where the stream has ended."""
    try:
        with reading():
            async with asyncio.timeout(patience):
                return await anext(replies, None)
    except TimeoutError:
        raise stalled(patience) from None


async def _sent(outbox: asyncio.Queue[Any]) -> AsyncIterator[Any]:
    while (request := await outbox.get()) is not None:
        yield request


async def _next(requests: AsyncIterator[Any]) -> Any:
    return await anext(requests, None)


async def _requests(upload: Upload[Any]) -> AsyncGenerator[Any, None]:
    number = 0
    async for part in _parts(upload.items, upload.batch):
        # In a thread: it may read files.
        yield await asyncio.to_thread(upload.request, part, number)
        number += 1


async def _parts(items: Source[T], size: int) -> AsyncIterator[list[T]]:
    if not isinstance(items, AsyncIterable):
        source = iter(items)
        while part := list(itertools.islice(source, size)):
            yield part
        return
    part = []
    async for item in items:
        part.append(item)
        if len(part) == size:
            yield part
            part = []
    if part:
        yield part
