"""Short ways to ask by HTTP, and to read what Connect answers."""

from __future__ import annotations

import base64
import http.client
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from google.protobuf import any_pb2, json_format
from google.protobuf.message import Message
from google.rpc import code_pb2, status_pb2

from tests.conftest import RunningServer

Kind = TypeVar("Kind", bound=Message)
SERVICE = "/twinserve.v1."


@dataclass(frozen=True)
class Answer:
    """What came back."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def tree(self) -> Any:
        return json.loads(self.body)

    def message(self, kind: type[Kind]) -> Kind:
        assert self.status == 200, self.body
        assert self.headers["content-type"] == "application/json"
        return json_format.Parse(self.body, kind())

    def error(self) -> status_pb2.Status:
        """Read an error as a client of Connect does."""
        assert self.status != 200
        assert self.headers["content-type"] == "application/json"
        tree = self.tree
        status = status_pb2.Status(
            code=code_pb2.Code.Value(tree["code"].upper()), message=tree["message"]
        )
        for detail in tree.get("details", ()):
            value = base64.b64decode(detail["value"] + "=" * (-len(detail["value"]) % 4))
            url = f"type.googleapis.com/{detail['type']}"
            status.details.append(any_pb2.Any(type_url=url, value=value))
        return status


def ask(
    server: RunningServer,
    path: str,
    body: bytes | str | Mapping[str, Any] | None = None,
    method: str = "POST",
    kind: str | None = "application/json",
    **headers: str,
) -> Answer:
    """Ask once, over a connection of its own; `_` in a header's name stands for `-`."""
    if isinstance(body, Mapping):
        body = json.dumps(body)
    sent = {} if body is None or kind is None else {"Content-Type": kind}
    sent |= {name.replace("_", "-"): value for name, value in headers.items()}
    connection = http.client.HTTPConnection("127.0.0.1", server.http_port, timeout=30)
    try:
        connection.request(method, path, body, sent)
        reply = connection.getresponse()
        found = {name.lower(): value for name, value in reply.getheaders()}
        return Answer(reply.status, found, reply.read())
    finally:
        connection.close()


def call(server: RunningServer, name: str, message: Message, **headers: str) -> Answer:
    """Call an RPC, such as `EmbeddingService/Compare`, with a message as JSON."""
    return ask(server, SERVICE + name, json_format.MessageToJson(message), **headers)
