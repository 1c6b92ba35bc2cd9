"""The generator of open-loop load, against a server of grpcio's own."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import grpc
import pytest

from benchmarks.serving import wire
from benchmarks.serving.wire import Connection

PATH = "/test.Test/Call"


@dataclass
class Serving:
    """A server that echoes what it gets; a body may ask for something else."""

    port: int
    held: threading.Event = field(default_factory=threading.Event)
    arrived: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    metadata: list[dict[str, str]] = field(default_factory=list)
    left: list[float | None] = field(default_factory=list)

    def answer(self, request: bytes, context: grpc.ServicerContext) -> bytes:
        self.metadata.append(
            {str(name): str(value) for name, value in context.invocation_metadata()}
        )
        self.left.append(context.time_remaining())
        if request == b"refuse":
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "full")
        if request == b"hold":
            self.arrived.release()
            self.held.wait(20)
        return request


@pytest.fixture
def serving() -> Iterator[Serving]:
    serving = Serving(0)

    class Anything(grpc.GenericRpcHandler):
        def service(self, handler_call_details: object) -> Any:
            return grpc.unary_unary_rpc_method_handler(serving.answer)

    with ThreadPoolExecutor(8) as pool:
        server = grpc.server(pool, options=[("grpc.max_receive_message_length", -1)])
        server.add_generic_rpc_handlers((Anything(),))
        serving.port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        yield serving
        serving.held.set()
        server.stop(None).wait()


def test_bodies_small_and_far_beyond_the_servers_window_come_back_whole(serving: Serving) -> None:
    bodies = [wire.prefixed(bytes([i]) * size) for i, size in enumerate((1, 300_000, 70_000))]
    with wire.connected(serving.port, PATH, 2) as connections:
        calls = wire.closed(connections, bodies, 6, 20, most=60)
    assert len(calls) == 60
    assert all(call.status == wire.OK and call.reply == call.body for call in calls)
    assert {len(call.body) for call in calls} == {len(body) for body in bodies}


def test_a_time_that_is_over_begins_nothing_more(serving: Serving) -> None:
    with wire.connected(serving.port, PATH) as connections:
        assert len(wire.closed(connections, [wire.prefixed(b"x")], 3, 0)) == 3


def test_a_refusal_carries_its_status_and_its_words(serving: Serving) -> None:
    connection = Connection(serving.port, PATH)
    calls = wire.paced([connection], [wire.prefixed(b"refuse"), wire.prefixed(b"x")], [0, 0, 0.01])
    connection.lose()
    by_body = {call.body[5:]: call for call in calls}
    assert by_body[b"refuse"].status == wire.RESOURCE_EXHAUSTED
    assert b"full" in by_body[b"refuse"].trailers
    assert by_body[b"x"].status == wire.OK
    assert len(calls) == 3


def test_metadata_and_the_time_a_call_has_reach_the_server(serving: Serving) -> None:
    connection = Connection(serving.port, PATH, [("twinserve-priority", "low")], timeout=300.0)
    wire.paced([connection], [wire.prefixed(b"x")], [0])
    connection.lose()
    assert serving.metadata[0]["twinserve-priority"] == "low"
    assert serving.left[0] is not None
    assert 200 < serving.left[0] <= 301


def test_an_open_loop_sends_on_while_nothing_is_answered_and_counts_from_what_was_due(
    serving: Serving,
) -> None:
    connection = Connection(serving.port, PATH)
    threading.Timer(0.5, serving.held.set).start()
    calls = wire.paced([connection], [wire.prefixed(b"hold")], [i * 0.01 for i in range(5)])
    connection.lose()
    assert [call.status for call in calls] == [wire.OK] * 5
    # All were under way before the first was answered.
    assert max(call.sent for call in calls) < min(call.ended for call in calls)
    assert all(call.seconds >= call.ended - call.sent for call in calls)


def test_calls_of_a_connection_that_breaks_are_lost_and_the_others_go_on(serving: Serving) -> None:
    broken, whole = (Connection(serving.port, PATH) for _ in range(2))
    ended: list[wire.Call] = []

    def cut() -> None:
        serving.arrived.acquire()
        broken.socket.shutdown(2)

    threading.Thread(target=cut).start()
    ended = wire.paced([broken, whole], [wire.prefixed(b"hold"), wire.prefixed(b"x")], [0, 0.2])
    whole.lose()
    assert {call.body[5:]: call.status for call in ended} == {b"hold": wire.LOST, b"x": wire.OK}


def test_a_cancelled_call_ends_at_once_and_the_connection_serves_on(serving: Serving) -> None:
    connection = Connection(serving.port, PATH)
    call = wire.Call(wire.prefixed(b"hold"), 0.0)
    connection.begin(call)
    connection.flush()
    serving.arrived.acquire()
    connection.cancel(call)
    assert call.status == wire.CANCELLED
    assert not connection.calls
    serving.held.set()
    (after,) = wire.paced([connection], [wire.prefixed(b"x")], [0])
    connection.lose()
    assert after.status == wire.OK


@pytest.mark.parametrize(
    ("block", "status"),
    [
        (b"\x00\x0bgrpc-status\x018\x00\x0cgrpc-message\x04full", 8),
        (b"\x00\x0bgrpc-status\x0214", 14),
        (b"\x88", wire.LOST),
        (b"\x00\x0bgrpc-status\x01x", wire.LOST),
    ],
)
def test_the_status_is_found_among_the_trailers(block: bytes, status: int) -> None:
    assert wire.grpc_status(block) == status
