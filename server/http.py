"""The HTTP port, on the same loop: /metrics for Prometheus, /healthz and /readyz for probes.

What is called by HTTP with JSON is the gateway's, whose routes are served beside them. What
/metrics says is gathered in a thread: it asks the galleries' stores, and a few hundred series take
milliseconds to write, which the loop has better uses for.
"""

from __future__ import annotations

import asyncio
import gzip
import logging
from collections.abc import Callable, Collection, Iterable, Sequence

from aiohttp import web, web_response
from aiohttp.http_exceptions import HttpProcessingError
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder, gzip_accepted

from twinserve.errors import ConfigError, TwinserveError
from twinserve.server.gateway import cors
from twinserve.server.gateway.request_id import HEADER, request_id
from twinserve.server.security import http_port
from twinserve.server.security.access import Door
from twinserve.server.security.connections import HTTP_SECONDS
from twinserve.server.security.methods import METRICS
from twinserve.server.security.tls import Tls

log = logging.getLogger(__name__)

# Versions are nobody's business. aiohttp has no setting for it, and what it answers to what is no
# HTTP passes nothing of ours.
web_response.SERVER_SOFTWARE = "twinserve"  # type: ignore[attr-defined]
# For whoever opens the address that a server says it serves at.
_HERE = """\
twinserve. Here are, with JSON:
  POST /twinserve.v1.SERVICE/METHOD   every unary call
  POST /v1/embeddings                 as OpenAI's, and GET /v1/models
and for who watches:
  GET /healthz /readyz /metrics
docs/http.md has examples of each.
"""
_LAST_BYTES = 2.0  # seconds that the last replies have when the server stops
# Seconds in which what was refused unread may still come, so that its sender sees why; what comes
# is dropped.
_LINGERING = 1.0


async def start(
    host: str,
    port: int,
    registry: CollectorRegistry,
    is_ready: Callable[[], bool],
    *,
    routes: Iterable[web.RouteDef] = (),
    origins: Sequence[str] = (),
    names: Collection[str] | None = None,
    door: Door | None = None,
    tls: Tls | None = None,
    connections: int = 1024,
) -> tuple[web.AppRunner, int]:
    """Listen, and return what to clean up with the port that was bound.

    Args:
        host: to listen on.
        port: to listen on; 0 is any free one.
        registry: what /metrics tells of.
        is_ready: what /readyz tells.
        routes: served beside these four.
        origins: whose pages may call from browsers; see `gateway.cors`.
        names: of hosts that requests may be for, see `http_port.only_for`; None takes any.
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
                http_port.admit(door, METRICS, request)
            except TwinserveError as error:
                return http_port.refused(error)
        accept = ",".join(request.headers.getall("Accept", []))
        packed = gzip_accepted(",".join(request.headers.getall("Accept-Encoding", [])))
        async with scraping:
            body, kind = await asyncio.to_thread(exposition, registry, accept, packed)
        headers = {"Content-Type": kind, "Vary": "Accept, Accept-Encoding"}
        if packed:
            headers["Content-Encoding"] = "gzip"
        return web.Response(body=body, headers=headers)

    async def here(request: web.Request) -> web.Response:
        return web.Response(text=_HERE)

    async def alive(request: web.Request) -> web.Response:
        return web.Response(text="alive\n")

    async def ready(request: web.Request) -> web.Response:
        if is_ready():
            return web.Response(text="ready\n")
        return web.Response(text="not serving: warming up or draining\n", status=503)

    async def signed(request: web.Request, response: web.StreamResponse) -> None:
        response.headers[HEADER] = request_id(request)

    app = web.Application()
    if names is not None:
        app.middlewares.append(http_port.only_for(names))
    if tls is not None and tls.asks_clients:
        app.middlewares.append(http_port.with_certificate)
    app.on_response_prepare.append(signed)
    app.add_routes(
        [
            web.get("/", here),
            web.get("/metrics", metrics),
            web.get("/healthz", alive),
            web.get("/readyz", ready),
        ]
    )
    app.add_routes(routes)
    if origins:
        cors.allow(app, origins)
    runner = web.AppRunner(
        app,
        access_log=None,
        logger=log,
        keepalive_timeout=HTTP_SECONDS,
        shutdown_timeout=_LAST_BYTES,
        lingering_time=_LINGERING,
        handler_cancellation=True,  # a call whose client has gone is dropped
        auto_decompress=False,  # a few bytes could become gigabytes
    )
    await runner.setup()
    site = http_port.BoundedSite(runner, host, port, tls, connections)
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


def _is_ours(record: logging.LogRecord) -> bool:
    """Say whether a line of the log is not about what is no HTTP: anyone may send that for ever."""
    error = record.exc_info[1] if record.exc_info else None
    return not isinstance(error, HttpProcessingError)


log.addFilter(_is_ours)


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
