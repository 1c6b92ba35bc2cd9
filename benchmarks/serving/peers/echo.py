"""Servers that answer every call with the same bytes: the price of the wire alone.

`aio` is grpc.aio on uvloop, what anyone can build; `poll` is one thread on grpcio's own completion
queue, without an event loop, the cheapest way that grpcio has. Both read the request whole.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import grpc
from grpc._cython import cygrpc  # type: ignore[attr-defined]


class _Anything(grpc.GenericRpcHandler):
    def __init__(self, reply: bytes) -> None:
        async def answer(request: bytes, context: object) -> bytes:
            return reply

        self._handler: Any = grpc.unary_unary_rpc_method_handler(answer)

    def service(self, handler_call_details: object) -> Any:
        return self._handler


async def aio(port: int, reply: bytes) -> None:
    """Serve on an event loop until killed."""
    server = grpc.aio.server(options=[("grpc.max_receive_message_length", -1)])
    server.add_generic_rpc_handlers((_Anything(reply),))
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    await server.wait_for_termination()


def poll(port: int, reply: bytes) -> None:
    """Serve from one polling thread until killed."""
    queue = cygrpc.CompletionQueue()
    server = cygrpc.Server(((b"grpc.max_receive_message_length", -1),), False)
    server.register_completion_queue(queue)
    server.add_http2_port(f"127.0.0.1:{port}".encode())
    server.start()

    def done(event: Any) -> None: ...

    def called(event: Any) -> None:
        server.request_call(queue, queue, called)
        call = event.call

        def received(event: Any) -> None:
            operations = (
                cygrpc.SendInitialMetadataOperation((), 0),
                cygrpc.SendMessageOperation(reply, 0),
                cygrpc.SendStatusFromServerOperation((), 0, b"", 0),
            )
            call.start_server_batch(operations, done)

        call.start_server_batch((cygrpc.ReceiveMessageOperation(0),), received)
        call.start_server_batch((cygrpc.ReceiveCloseOnServerOperation(0),), done)

    server.request_call(queue, queue, called)
    while True:
        event = queue.poll()
        tag: Callable[[Any], None] = event.tag
        tag(event)


if __name__ == "__main__":
    given = int(os.environ["PORT"]), bytes(int(os.environ["REPLY"]))
    if os.environ["ECHO"] == "poll":
        poll(*given)
    else:
        import uvloop

        uvloop.run(aio(*given))
