"""Pages of some origins may call from browsers (CORS); by default those of none may.

Without it a page of any site may send what a form can, of which nothing here takes any: bodies are
JSON or protobuf and say so, which browsers ask leave for first.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from aiohttp import web

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

_TOLD = "Retry-After, Retry-After-Ms, X-Request-Id"
_SECONDS = "7200"  # the longest that browsers remember an answer for


def allow(app: web.Application, origins: Sequence[str]) -> None:
    """Let pages of some origins read the replies of an application.

    Args:
        app: before it starts.
        origins: such as `https://app.example.com`; `*` is any.
    """

    def origin_of(request: web.Request) -> str | None:
        origin = request.headers.get("Origin")
        return origin if origin in origins or (origin and "*" in origins) else None

    async def told(request: web.Request, response: web.StreamResponse) -> None:
        response.headers["Vary"] = "Origin"
        origin = origin_of(request)
        if origin is not None:
            response.headers["Access-Control-Allow-Origin"] = origin
            response.headers["Access-Control-Expose-Headers"] = _TOLD

    @web.middleware
    async def preflight(request: web.Request, handler: Handler) -> web.StreamResponse:
        wanted = request.headers.get("Access-Control-Request-Method")
        if request.method != "OPTIONS" or wanted is None or origin_of(request) is None:
            return await handler(request)
        # Whatever headers it wants to send: those that matter are checked when they come.
        headers = {
            "Access-Control-Allow-Methods": "GET, POST",
            "Access-Control-Allow-Headers": request.headers.get(
                "Access-Control-Request-Headers", ""
            ),
            "Access-Control-Max-Age": _SECONDS,
        }
        return web.Response(status=204, headers=headers)

    app.middlewares.append(preflight)
    app.on_response_prepare.append(told)
