"""What the HTTP port asks of its connections and requests, before anything answers them."""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import Awaitable, Callable, Collection

from aiohttp import web
from aiohttp.typedefs import Middleware

from twinserve.errors import Code, TwinserveError, Unauthenticated
from twinserve.server.config import is_loopback
from twinserve.server.security.access import Access, Door
from twinserve.server.security.connections import HANDSHAKE_SECONDS
from twinserve.server.security.tls import Tls

# Connections that may wait to be taken. asyncio's own 100 made the clients of a burst try again
# after a second and more: 10,000 took a minute and a half to connect, now some seconds.
BACKLOG = 4096
HEALTH_PATHS = ("/healthz", "/readyz")

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

_NAME = re.compile(r":\d*\Z|\.(?=(:\d*)?\Z)")  # what a host's name has behind it: a port, a dot
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
async def with_certificate(request: web.Request, handler: Handler) -> web.StreamResponse:
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


def only_for(names: Collection[str]) -> Middleware:
    """Return what refuses requests for other hosts than this machine and some names.

    A page may have its own name resolve to 127.0.0.1 (DNS rebinding): its browser then takes the
    server for the page's own, and lets the page send and read all. It sends that name as the host.

    Args:
        names: of hosts, in small letters, beside localhost and loopback addresses.
    """

    @web.middleware
    async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
        # No browser leaves the header out; HTTP/1.0 may.
        host = request.headers.get("Host", "localhost")
        name = _NAME.sub("", host).strip("[]").lower()
        if request.path in HEALTH_PATHS or name in names or is_loopback(name):
            return await handler(request)
        return web.Response(
            text=f"this server does not go by the name {name[:80]!r}; ask it as localhost, or "
            "start it with --http-allowed-host and this name\n",
            status=421,
        )

    return check


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
