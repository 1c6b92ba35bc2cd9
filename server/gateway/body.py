"""A request's body, read within bounds, and a reply, sent no faster than it is taken.

A byte counts as inside from when it was read until the call has ended, in steps of `LARGE`, as
those of gRPC's messages do. A body that says its size is refused before it is read. Bodies come as
they are: what would unpack them could make gigabytes of kilobytes.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass, field
from types import TracebackType

from aiohttp import web
from aiohttp.web_exceptions import HTTPRequestEntityTooLarge

from twinserve.errors import DeadlineExceeded, InvalidInput, LimitExceeded, NotBuilt
from twinserve.server.front.budget import LARGE, Budget
from twinserve.server.gateway.refused import Refused, refused, status_in

# The longest that a body may take to come, and a reply to be taken: a megabyte a second for the
# largest message.
READ_SECONDS = SEND_SECONDS = 60.0


class Bytes:
    """The bytes of one call that are inside; leaving the block gives them back.

    Args:
        budget: of all calls.
        client: whose they are.
    """

    def __init__(self, budget: Budget, client: str) -> None:
        self._budget = budget
        self._client = client
        self._counted = 0

    def __enter__(self) -> Bytes:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._counted:
            self._budget.give_back(self._counted, self._client)

    def grow(self, size: int) -> None:
        """Count what was read so far.

        Raises:
            Refused: there is no room for it.
        """
        more = size - self._counted
        if more < LARGE:
            return
        refusal = self._budget.take(more, self._client)
        if refusal is not None:
            raise Refused(status_in(refusal))
        self._counted = size


async def read(request: web.Request, limit: int, inside: Bytes) -> bytes:
    """Read a body.

    Args:
        request: whose it is.
        limit: bytes, at most.
        inside: counts them.

    Raises:
        Refused: it is too large (413), packed, broken, or too slow to come (408), or the server has
            no room for it (429).
    """
    encoding = request.headers.get("Content-Encoding", "identity").lower()
    if encoding != "identity":
        raise refused(
            NotBuilt(
                f"the body is encoded by {encoding!r:.40}; send it as it is (identity), which is "
                "the only encoding that this server takes"
            ),
            415,
        )
    if (request.content_length or 0) > limit:
        raise _too_large(limit)
    chunks: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(READ_SECONDS):
            async for chunk in request.content.iter_any():
                size += len(chunk)
                if size > limit:
                    raise _too_large(limit)
                inside.grow(size)
                chunks.append(chunk)
    except TimeoutError:
        raise refused(
            DeadlineExceeded(
                f"the body did not come within {READ_SECONDS:.0f} s, {size} bytes of it; send "
                "smaller bodies, or on a faster line"
            ),
            408,
        ) from None
    except (web.RequestPayloadError, HTTPRequestEntityTooLarge) as error:
        raise refused(
            InvalidInput(f"the body cannot be read as HTTP: {error!s:.200}; send it again, whole")
        ) from None
    return b"".join(chunks)


def _too_large(limit: int) -> Refused:
    return refused(
        LimitExceeded(
            f"the body is over {limit} bytes, the limit of one message; send several, or start the "
            "server with a larger --max-message-bytes",
            metadata={"limit": str(limit)},
        ),
        413,
    )


@dataclass(frozen=True)
class Reply:
    """What goes back: HTTP status, body, its type, and further headers."""

    status: int
    body: bytes
    kind: str = "application/json"
    headers: dict[str, str] = field(default_factory=dict)


async def send(request: web.Request, reply: Reply) -> web.StreamResponse:
    """Send a reply; a large one goes in parts, so that it counts until its client has taken it."""
    headers = {"Content-Type": reply.kind, **reply.headers}
    if len(reply.body) < LARGE:
        return web.Response(status=reply.status, body=reply.body, headers=headers)
    response = web.StreamResponse(status=reply.status, headers=headers)
    response.content_length = len(reply.body)
    parts = memoryview(reply.body)
    try:
        # A client that has gone wants nothing more.
        with contextlib.suppress(ConnectionError):
            async with asyncio.timeout(SEND_SECONDS):
                await response.prepare(request)
                for start in range(0, len(parts), LARGE):
                    await response.write(parts[start : start + LARGE])
                await response.write_eof()
    except TimeoutError:
        if request.transport is not None:
            request.transport.abort()
    return response
