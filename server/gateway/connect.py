"""The unary half of the Connect protocol: every unary RPC as a POST of JSON or protobuf's bytes.

    POST /twinserve.v1.EmbeddingService/Compare     Content-Type: application/json
    {"pairs": [{"first": {"text": "one"}, "second": {"text": "two"}}]}

Clients that generated code for Connect work as they are, and so does curl. Two rules are ours: an
unknown field is refused, since it is a typing error more often than a newer client, and a body over
the limit has HTTP status 413. Source: the Connect protocol reference, connectrpc.com/docs/protocol.
"""

from __future__ import annotations

import base64
import functools
import math
from typing import Any

import orjson
from aiohttp import web
from google.protobuf import any_pb2, json_format
from google.protobuf.message import Message
from google.rpc import code_pb2, status_pb2

from twinserve.errors import InvalidInput, NotBuilt
from twinserve.server.gateway import json_form
from twinserve.server.gateway.body import Reply
from twinserve.server.gateway.calls import Call, Calls
from twinserve.server.gateway.methods import Method, Methods
from twinserve.server.gateway.refused import Refused, refused, seconds_to_retry

JSON, PROTO = "application/json", "application/proto"
_VERSION = "Connect-Protocol-Version"
# Of each code of google.rpc: the HTTP status.
HTTP_STATUS = {
    code_pb2.CANCELLED: 499,
    code_pb2.UNKNOWN: 500,
    code_pb2.INVALID_ARGUMENT: 400,
    code_pb2.DEADLINE_EXCEEDED: 504,
    code_pb2.NOT_FOUND: 404,
    code_pb2.ALREADY_EXISTS: 409,
    code_pb2.PERMISSION_DENIED: 403,
    code_pb2.RESOURCE_EXHAUSTED: 429,
    code_pb2.FAILED_PRECONDITION: 400,
    code_pb2.ABORTED: 409,
    code_pb2.OUT_OF_RANGE: 400,
    code_pb2.UNIMPLEMENTED: 501,
    code_pb2.INTERNAL: 500,
    code_pb2.UNAVAILABLE: 503,
    code_pb2.DATA_LOSS: 500,
    code_pb2.UNAUTHENTICATED: 401,
}


class Connect:
    """Answers POST /SERVICE/METHOD.

    Args:
        calls: that each request becomes one of.
        methods: of all services.
    """

    def __init__(self, calls: Calls, methods: Methods) -> None:
        self._calls = calls
        self._methods = methods

    def routes(self) -> list[web.RouteDef]:
        """Return the route: the contract's whole package, so that what it lacks is told."""
        return [web.post(r"/{service:twinserve\.v1\.\w+}/{method}", self._answer)]

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        path = request.path
        method = self._methods.unary.get(path)
        work = self._lacking if method is None else functools.partial(_work, method)
        known = method is not None or path in self._methods.streams
        return await self._calls.take(request, path, work, error_reply, known=known)

    async def _lacking(self, call: Call) -> Reply:
        path = call.request.path
        if path in self._methods.streams:
            raise NotBuilt(
                f"{path} is a stream, and streams are for gRPC; call it there, or send its items "
                "in unary calls here"
            )
        raise refused(
            NotBuilt(f"{path:.200} is no method; the unary ones are in protos/twinserve/v1"), 404
        )


async def _work(method: Method, call: Call) -> Reply:
    kind = call.request.content_type
    version = call.request.headers.get(_VERSION, "1")
    if version != "1":
        raise InvalidInput(f"{_VERSION} is {version!r:.40}; this server speaks version 1")
    if kind not in (JSON, PROTO):
        raise refused(
            NotBuilt(f"the body is {kind!r:.80}; send {JSON}, or {PROTO}, and say which it is"), 415
        )
    if kind == PROTO:
        message = await call.message(functools.partial(_parsed, method))
        return Reply(200, await call.run(method, message), PROTO)
    message = await call.message(functools.partial(json_form.read, kind=method.request))
    found = await call.run(method, message)
    text = await call.away(len(found), lambda: json_form.write(method.reply.FromString(found)))
    return Reply(200, text, JSON)


def _parsed(method: Method, data: bytes) -> Message:
    try:
        return method.request.FromString(data)
    except Exception:
        raise InvalidInput(
            f"the body cannot be read as {method.request.DESCRIPTOR.full_name}; encode it with the "
            "contract's stubs"
        ) from None


def error_reply(refusal: Refused) -> Reply:
    """Write a refusal as Connect does: code, message, and details by their types."""
    status = refusal.status
    error = {
        "code": code_name(status),
        "message": status.message,
        "details": [
            {
                "type": one.TypeName(),
                "value": base64.b64encode(one.value).rstrip(b"=").decode(),
                "debug": _readable(one),
            }
            for one in status.details
        ],
    }
    return Reply(http_status(refusal), orjson.dumps(error), JSON, retry_headers(status))


def _readable(detail: any_pb2.Any) -> dict[str, Any]:
    tree = json_format.MessageToDict(detail)
    tree.pop("@type", None)  # it stands beside
    return tree


def code_name(status: status_pb2.Status) -> str:
    """Return a code's name in Connect."""
    if status.code == code_pb2.CANCELLED:
        return "canceled"
    known = status.code in HTTP_STATUS
    name: str = code_pb2.Code.Name(status.code if known else code_pb2.UNKNOWN)
    return name.lower()


def http_status(refusal: Refused) -> int:
    """Return the HTTP status that a refusal has."""
    return refusal.http or HTTP_STATUS.get(refusal.status.code, 500)


def retry_headers(status: status_pb2.Status) -> dict[str, str]:
    """Return the headers that go with a refusal: when to come again, by what, and whether here."""
    headers = {}
    seconds = seconds_to_retry(status)
    if seconds is not None:
        # HTTP knows whole seconds; clients that know the other one need not wait so long.
        headers["Retry-After"] = str(math.ceil(seconds))
        headers["Retry-After-Ms"] = str(math.ceil(1000 * seconds))
    if status.code == code_pb2.UNAUTHENTICATED:
        headers["WWW-Authenticate"] = "Bearer"
    if status.code == code_pb2.UNAVAILABLE:
        headers["Connection"] = "close"  # the next call finds another server
    return headers
