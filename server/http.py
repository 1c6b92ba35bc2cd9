"""The HTTP port, on the same loop: /metrics for Prometheus, /healthz and /readyz for probes.

What /metrics says is gathered in a thread: it asks the galleries' stores, and a few hundred series
take milliseconds to write, which the loop has better uses for.
"""

from __future__ import annotations

import asyncio
import gzip
import math
import ssl
from collections.abc import Awaitable, Callable

from aiohttp import web
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder, gzip_accepted

from twinserve.errors import Code, ConfigError, TwinserveError, Unauthenticated
from twinserve.server.security.access import Access, Door
from twinserve.server.security.connections import HANDSHAKE_SECONDS, HTTP_SECONDS
from twinserve.server.security.methods import METRICS
from twinserve.server.security.tls import Tls

HEALTH_PATHS = ("/healthz", "/readyz")

_STATUSES = {Code.UNAUTHENTICATED: 401, Code.PERMISSION_DENIED: 403, Code.RESOURCE_EXHAUSTED: 429}


async def start(
    host: str,
    port: int,
    registry: CollectorRegistry,
    is_ready: Callable[[], bool],
    *,
    door: Door | None = None,
    tls: Tls | None = None,
    connections: int = 1024,
) -> tuple[web.AppRunner, int]:
    """Listen, and return what to clean up with the port that was bound.

    Args:
        host: to listen on.
        port: to listen on.
        registry: of the metrics.
        is_ready: whether calls are answered.
        door: asked before /metrics is answered; None lets everybody see it.
        tls: of the port; None is plain text.
        connections: taken at a time; more are closed at once.

    Raises:
        ConfigError: the port is taken, or not allowed.
    """
    # One scrape at a time: more would only compete for the same stores.
    scraping = asyncio.Lock()

    async def metrics(request: web.Request) -> web.Response:
        if door is not None:
            try:
                admit(door, METRICS, request)
            except TwinserveError as error:
                return refused(error)
        accept = ",".join(request.headers.getall("Accept", []))
        packed = gzip_accepted(",".join(request.headers.getall("Accept-Encoding", [])))
        async with scraping:
            body, kind = await asyncio.to_thread(exposition, registry, accept, packed)
        headers = {"Content-Type": kind, "Vary": "Accept, Accept-Encoding"}
        if packed:
            headers["Content-Encoding"] = "gzip"
        return web.Response(body=body, headers=headers)

    async def alive(request: web.Request) -> web.Response:
        return web.Response(text="alive\n")

    async def ready(request: web.Request) -> web.Response:
        if is_ready():
            return web.Response(text="ready\n")
        return web.Response(text="not serving: warming up or draining\n", status=503)

    app = web.Application()
    if tls is not None and tls.asks_clients:
        app.middlewares.append(_with_certificate)
    app.add_routes(
        [web.get("/metrics", metrics), web.get("/healthz", alive), web.get("/readyz", ready)]
    )
    runner = web.AppRunner(app, access_log=None, keepalive_timeout=HTTP_SECONDS)
    await runner.setup()
    site = _BoundedSite(runner, host, port, None if tls is None else tls.http, connections)
    try:
        await site.start()
    except OSError as error:
        await runner.cleanup()
        raise ConfigError(
            f"port {port} of {host} cannot be bound: it is taken or not allowed; give another with "
            "--http-port, or 0 for any free one"
        ) from error
    bound: int = runner.addresses[0][1]
    return runner, bound


class _BoundedSite(web.TCPSite):
    """A port that takes so many connections at a time."""

    __slots__ = ("_most",)

    def __init__(
        self,
        runner: web.AppRunner,
        host: str,
        port: int,
        context: ssl.SSLContext | None,
        most: int,
    ) -> None:
        super().__init__(runner, host, port, ssl_context=context)
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
            ssl=self._ssl_context,
            ssl_handshake_timeout=None if self._ssl_context is None else HANDSHAKE_SECONDS,
        )


class _TooMany(asyncio.Protocol):
    """A connection above the bound."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Close it."""
        transport.close()


@web.middleware
async def _with_certificate(
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


def exposition(registry: CollectorRegistry, accept: str, packed: bool) -> tuple[bytes, str]:
    """Write what the registry holds.

    Args:
        registry: of the server.
        accept: the scraper's Accept header: OpenMetrics or Prometheus' text format.
        packed: whether to compress with gzip.

    Returns:
        The body, and its content type.
    """
    encode, kind = choose_encoder(accept)
    body = encode(registry)
    return (gzip.compress(body, compresslevel=1) if packed else body), kind
