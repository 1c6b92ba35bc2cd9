"""The id of an HTTP request: what came as `X-Request-Id`, or one that is made; replies carry it."""

from __future__ import annotations

from aiohttp import web

from twinserve.server.request_ids import KEY, request_id_in

HEADER = "X-Request-Id"
_FOUND = web.RequestKey("request_id", str)


def request_id(request: web.Request) -> str:
    """Return a request's id, the same however often it is asked for."""
    found: str | None = request.get(_FOUND)
    if found is None:
        found = request_id_in((KEY, value) for value in request.headers.getall(HEADER, ()))
        request[_FOUND] = found
    return found
