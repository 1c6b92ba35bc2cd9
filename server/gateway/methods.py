"""The RPCs of the contract by their paths, found in its descriptors: nothing is written per method.

In: servicers by the full names of their services. Out: for each unary RPC its messages and what
runs it; of the streams only their names, which are for gRPC.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from google.protobuf import descriptor_pool, message_factory
from google.protobuf.message import Message


@dataclass(frozen=True)
class Method:
    """One unary RPC.

    Args:
        path: as gRPC names it, such as `/twinserve.v1.EmbeddingService/Embed`.
        request: the message that it takes.
        reply: the message that it returns.
        run: the servicer's method, of (request, context); returns the reply, or its bytes.
        is_driven: whether it awaits nothing but `Completion`s; see `front.driven`.
    """

    path: str
    request: type[Message]
    reply: type[Message]
    run: Callable[[Any, Any], Awaitable[Any]]
    is_driven: bool


class Methods:
    """All RPCs of some services.

    Args:
        servicers: by the full names of their services, whose descriptors are loaded.
    """

    def __init__(self, servicers: Mapping[str, object]) -> None:
        self.unary: dict[str, Method] = {}
        self.streams: set[str] = set()
        for name, servicer in servicers.items():
            for one in descriptor_pool.Default().FindServiceByName(name).methods:
                path = f"/{name}/{one.name}"
                if one.client_streaming or one.server_streaming:
                    self.streams.add(path)
                    continue
                run = getattr(servicer, one.name)
                self.unary[path] = Method(
                    path,
                    message_factory.GetMessageClass(one.input_type),
                    message_factory.GetMessageClass(one.output_type),
                    run,
                    getattr(run, "__driven__", False),
                )
