"""What the HTTP port asks of its connections and requests, before anything answers them."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable

from aiohttp import web

from twinserve.errors import Code, TwinserveError, Unauthenticated
from twinserve.server.security.access import Access, Door
from twinserve.server.security.connections import HANDSHAKE_SECONDS
from twinserve.server.security.tls import Tls

# Connections that may wait to be taken. asyncio's own 100 made the clients of a burst try again
# after a second and more: 10,000 took a minute and a half to connect, now some seconds.
BACKLOG = 4096
HEALTH_PATHS = ("/healthz", "/readyz")

_STATUSES = {Code.UNAUTHENTICATED: 401, Code.PERMISSION_DENIED: 403, Code.RESOURCE_EXHAUSTED: 429}


class BoundedSite(web.TCPSite):
    """A port that takes so many connections at a time."""

    __slots__ = ("_most",)

    def __init__(
        self,
        runner: web.AppRunner,
        host: str,
        port: int,
        tls: Tls | None,
        most: int,
    ) -> None:
        super().__init__(runner, host, port, ssl_context=None if tls is None else tls.http)
        self._most = most

    async def start(self) -> None:
        """Listen."""
        await web.BaseSite.start(self)
        server = self._runner.server
        assert server is not None

        def connection() -> asyncio.Protocol:
            return server() if len(server.connections) < self._most else _TooMany()

        self._server = await asyncio.get_running_loop().create_server(
            connection,
            self._host,
            self._port,
            backlog=BACKLOG,
            ssl=self._ssl_context,
            ssl_handshake_timeout=None if self._ssl_context is None else HANDSHAKE_SECONDS,
        )


class _TooMany(asyncio.Protocol):
    """A connection above the bound."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Close it."""
        transport.close()


@web.middleware
async def with_certificate(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    """Refuse who shows no certificate, except probes of health, which have none to show.

    A certificate that the CA did not sign has ended the connection already.
    """
    transport = request.transport
    if request.path not in HEALTH_PATHS and not (
        transport is not None and transport.get_extra_info("peercert")
    ):
        return web.Response(
            text="this server asks for a client certificate, and none came; connect with one that "
            "its CA signed\n",
            status=403,
        )
    return await handler(request)


def admit(door: Door, method: str, request: web.Request) -> Access:
    """Say what the caller of a method may do, as gRPC names it; raises as `Door.admit`."""
    metadata = [("authorization", value) for value in request.headers.getall("Authorization", [])]
    return door.admit(method, metadata, request.remote or "")


def refused(error: TwinserveError) -> web.Response:
    """Answer a request that the door refused."""
    headers = {}
    if isinstance(error, Unauthenticated):
        headers["WWW-Authenticate"] = "Bearer"
    if error.retry_after is not None:
        headers["Retry-After"] = str(math.ceil(error.retry_after))
    status = _STATUSES.get(error.code, 500)
    return web.Response(text=f"{error.message}\n", status=status, headers=headers)
