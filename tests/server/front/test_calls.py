"""Calls over the wire: what a method is given, what the client gets, and that nothing stays."""

from __future__ import annotations

import asyncio
import gc
import logging
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import grpc
import pytest

from benchmarks.serving import wire
from tests.server.front.conftest import Late, Refusal, Running, Stopping
from twinserve.server.completion import Completion
from twinserve.server.front import Call, Refusals, driven

Start = Callable[..., Running]
CODE = grpc.StatusCode


async def echo(request: bytes, context: Call) -> bytes:
    return request


@driven
async def echo_driven(request: bytes, context: Call) -> bytes:
    return request


WAYS = pytest.mark.parametrize("way", [driven, lambda method: method], ids=["driven", "task"])


@WAYS
def test_a_call_is_answered_with_what_its_method_returns(run_front: Start, way: Any) -> None:
    running = run_front({"Echo": ("uu", way(lambda request, context: echo(request, context)))})
    call = running.channel().unary_unary("/s/Echo")
    assert [call(bytes([i]) * i) for i in range(20)] == [bytes([i]) * i for i in range(20)]
    running.settle()


@WAYS
def test_a_large_message_is_answered_too(run_front: Start, way: Any) -> None:
    running = run_front({"Echo": ("uu", way(lambda request, context: echo(request, context)))})
    data = bytes(range(256)) * 8000
    assert running.channel().unary_unary("/s/Echo")(data) == data


def test_a_driven_method_goes_on_in_the_thread_that_has_its_news(run_front: Start) -> None:
    news: Completion[bytes] = Completion()
    threads: list[str] = []

    @driven
    async def wait(request: bytes, context: Call) -> bytes:
        threads.append(threading.current_thread().name)
        found = await news
        threads.append(threading.current_thread().name)
        return found

    running = run_front({"Wait": ("uu", wait)})
    future = running.channel().unary_unary("/s/Wait").future(b"")
    running.settle(1)
    while not threads:
        pass
    teller = threading.Thread(target=news.set_result, args=(b"told",), name="teller")
    teller.start()
    assert future.result(10) == b"told"
    assert threads == ["front", "teller"]


def test_a_driven_method_with_much_to_do_goes_on_elsewhere(run_front: Start) -> None:
    @driven
    async def work(request: bytes, context: Call) -> bytes:
        before = threading.current_thread().name
        await context.elsewhere()
        return f"{before} {threading.current_thread().name}".encode()

    running = run_front({"Work": ("uu", work)})
    before, after = running.channel().unary_unary("/s/Work")(b"").decode().split()
    assert before == "front"
    assert after.startswith("ThreadPoolExecutor")


def test_the_method_sees_who_calls_with_what_and_for_how_long(run_front: Start) -> None:
    seen: dict[str, Any] = {}

    async def look(request: bytes, context: Call) -> bytes:
        seen["peer"] = context.peer()
        seen["metadata"] = dict(context.invocation_metadata())
        seen["left"] = context.time_remaining()
        seen["auth"] = (context.peer_identities(), context.peer_identity_key())
        await context.send_initial_metadata((("before", "1"),))
        context.set_trailing_metadata((("after-bin", b"\x00\xff"),))
        return b"seen"

    running = run_front({"Look": ("uu", look)})
    call = running.channel().unary_unary("/s/Look")
    reply, done = call.with_call(b"", metadata=(("key", "value"),), timeout=60)
    assert reply == b"seen"
    assert seen["peer"].startswith("ipv4:127.0.0.1:")
    assert seen["metadata"]["key"] == "value"
    assert 30 < seen["left"] <= 60
    assert seen["auth"] == (None, None)
    assert dict(done.initial_metadata())["before"] == "1"
    assert dict(done.trailing_metadata())["after-bin"] == b"\x00\xff"
    call(b"")
    assert seen["left"] is None


@WAYS
def test_an_abort_is_the_calls_status_with_its_trailers(run_front: Start, way: Any) -> None:
    async def refuse(request: bytes, context: Call) -> bytes:
        await context.abort(CODE.NOT_FOUND, "no such thing, ünd mehr", (("why", "gone"),))

    running = run_front({"Refuse": ("uu", way(refuse))})
    with pytest.raises(grpc.RpcError) as refused:
        running.channel().unary_unary("/s/Refuse")(b"")
    assert refused.value.code() is CODE.NOT_FOUND
    assert refused.value.details() == "no such thing, ünd mehr"
    assert dict(refused.value.trailing_metadata())["why"] == "gone"
    running.settle()


@WAYS
def test_trailers_that_cannot_be_sent_fail_the_call_and_nothing_else(
    run_front: Start, way: Any
) -> None:
    async def trail(request: bytes, context: Call) -> bytes:
        if request == b"bad":
            context.set_trailing_metadata((("key", object()),))
        return request

    running = run_front({"Trail": ("uu", way(trail))})
    call = running.channel().unary_unary("/s/Trail")
    with pytest.raises(grpc.RpcError) as failed:
        call(b"bad", timeout=20)
    assert failed.value.code() is CODE.INTERNAL
    assert call(b"good") == b"good"
    running.settle()


@WAYS
def test_a_reply_that_cannot_be_serialised_is_internal(run_front: Start, way: Any) -> None:
    async def wrong(request: bytes, context: Call) -> object:
        return "no bytes"

    def serialise(message: object) -> bytes:
        raise TypeError("not mine")

    running = run_front({})
    handler = grpc.unary_unary_rpc_method_handler(way(wrong), response_serializer=serialise)
    running.front.add_registered_method_handlers("t", {"Wrong": handler})
    with pytest.raises(grpc.RpcError) as failed:
        running.channel().unary_unary("/t/Wrong")(b"", timeout=20)
    assert failed.value.code() is CODE.INTERNAL
    running.settle()


def test_a_code_that_was_set_is_the_status_without_a_reply(run_front: Start) -> None:
    async def refuse(request: bytes, context: Call) -> bytes:
        context.set_code(CODE.DATA_LOSS)
        context.set_details("torn")
        return b"never sent"

    running = run_front({"Refuse": ("uu", refuse)})
    with pytest.raises(grpc.RpcError) as refused:
        running.channel().unary_unary("/s/Refuse")(b"")
    assert (refused.value.code(), refused.value.details()) == (CODE.DATA_LOSS, "torn")


@WAYS
def test_a_method_that_fails_is_unknown_to_the_client_and_explained_in_the_log(
    run_front: Start, way: Any, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail(request: bytes, context: Call) -> bytes:
        if request == b"fail":
            raise ZeroDivisionError("secret")
        return request

    running = run_front({"Fail": ("uu", way(fail))})
    call = running.channel().unary_unary("/s/Fail")
    with caplog.at_level(logging.ERROR), pytest.raises(grpc.RpcError) as failed:
        call(b"fail")
    assert failed.value.code() is CODE.UNKNOWN
    assert "secret" not in failed.value.details()
    assert "ZeroDivisionError: secret" in caplog.text
    assert call(b"again") == b"again"


def test_a_method_that_nobody_has_is_unimplemented(run_front: Start) -> None:
    running = run_front({"Echo": ("uu", echo)})
    with pytest.raises(grpc.RpcError) as unknown:
        running.channel().unary_unary("/s/Nothing")(b"")
    assert unknown.value.code() is CODE.UNIMPLEMENTED
    running.settle()


def test_generic_handlers_are_asked_for_what_is_not_registered(run_front: Start) -> None:
    class Any_(grpc.GenericRpcHandler):
        def service(self, details: grpc.HandlerCallDetails) -> Any:
            if details.method == "/other/Echo":
                return grpc.unary_unary_rpc_method_handler(echo)
            return None

    running = run_front({})
    running.front.add_generic_rpc_handlers((Any_(),))
    assert running.channel().unary_unary("/other/Echo")(b"x") == b"x"
    with pytest.raises(grpc.RpcError):
        running.channel().unary_unary("/other/Else")(b"x")


def test_a_message_that_cannot_be_read_is_internal_and_harms_nothing(run_front: Start) -> None:
    def parse(data: bytes) -> bytes:
        if data == b"rubbish":
            raise ValueError("not mine")
        return data

    running = run_front({})
    running.front.add_registered_method_handlers(
        "t",
        {
            "Driven": grpc.unary_unary_rpc_method_handler(echo_driven, parse),
            "Task": grpc.unary_unary_rpc_method_handler(echo, parse),
        },
    )
    channel = running.channel()
    for name in ("Driven", "Task"):
        call = channel.unary_unary(f"/t/{name}")
        with pytest.raises(grpc.RpcError) as refused:
            call(b"rubbish")
        assert refused.value.code() is CODE.INTERNAL
        assert call(b"fine") == b"fine"
    running.settle()


def test_a_message_over_the_limit_is_refused_before_it_is_read(run_front: Start) -> None:
    running = run_front(
        {"Echo": ("uu", echo_driven)}, options=[("grpc.max_receive_message_length", 1000)]
    )
    call = running.channel().unary_unary("/s/Echo")
    assert len(call(bytes(1000))) == 1000
    with pytest.raises(grpc.RpcError) as refused:
        call(bytes(1001))
    assert refused.value.code() is CODE.RESOURCE_EXHAUSTED
    running.settle()


def test_a_call_without_a_message_is_refused(run_front: Start) -> None:
    running = run_front({"Echo": ("uu", echo_driven)})
    call = running.channel().stream_unary("/s/Echo")
    with pytest.raises(grpc.RpcError) as refused:
        call(iter(()))
    assert refused.value.code() is CODE.UNIMPLEMENTED
    running.settle()


def test_calls_above_the_limit_are_refused_with_what_to_do_and_health_is_not(
    run_front: Start,
) -> None:
    go_on: Completion[None] = Completion()

    @driven
    async def wait(request: bytes, context: Call) -> bytes:
        await go_on
        return b"done"

    running = run_front({"Wait": ("uu", wait)}, max_calls=3)
    running.front.add_registered_method_handlers(
        "grpc.health.v1.Health", {"Check": grpc.unary_unary_rpc_method_handler(echo)}
    )
    channel = running.channel()
    inside = [channel.unary_unary("/s/Wait").future(b"") for _ in range(3)]
    running.settle(3)
    with pytest.raises(grpc.RpcError) as refused:
        channel.unary_unary("/s/Wait")(b"")
    assert refused.value.code() is CODE.RESOURCE_EXHAUSTED
    assert dict(refused.value.trailing_metadata())["again"] == "soon"
    assert channel.unary_unary("/grpc.health.v1.Health/Check")(b"ok") == b"ok"
    go_on.set_result(None)
    assert [call.result(10) for call in inside] == [b"done"] * 3
    running.settle()
    assert channel.unary_unary("/s/Wait")(b"") == b"done"


def test_calls_inside_by_another_transport_take_their_room(run_front: Start) -> None:
    running = run_front({"Echo": ("uu", driven(echo))}, max_calls=3)
    call = running.channel().unary_unary("/s/Echo")
    running.front.beside = 2
    assert call(b"last") == b"last"
    running.front.beside = 3
    with pytest.raises(grpc.RpcError) as refused:
        call(b"one too many")
    assert refused.value.code() is CODE.RESOURCE_EXHAUSTED
    running.front.beside = 0
    running.settle()


def test_a_call_that_would_have_its_turn_too_late_is_refused_unread(run_front: Start) -> None:
    behind = [0.0]
    begun: list[bytes] = []

    @driven
    async def note(request: bytes, context: Call) -> bytes:
        begun.append(request)
        return request

    running = run_front(
        {"Note": ("uu", note), "Echo": ("uu", echo)},
        behind=lambda coming: behind[0],
        behind_of=lambda client, metadata, coming: behind[0],
    )
    channel = running.channel()
    call = channel.unary_unary("/s/Note")
    assert call(b"1", timeout=100) == b"1"
    behind[0] = 65.0
    with pytest.raises(grpc.RpcError) as refused:
        call(b"2", timeout=70)
    assert refused.value.code() is CODE.DEADLINE_EXCEEDED
    assert refused.value.details() == "late by 65"
    assert call(b"3", timeout=1000) == b"3"  # which has time enough
    assert call(b"4") == b"4"  # and this one waits for ever
    assert channel.unary_unary("/s/Echo")(b"5", timeout=100) == b"5"  # needs no model
    assert begun == [b"1", b"3", b"4"]
    running.settle()


def test_a_call_is_not_refused_for_what_waits_behind_its_turn(run_front: Start) -> None:
    asked: list[tuple[str, dict[str, Any]]] = []

    @driven
    async def note(request: bytes, context: Call) -> bytes:
        return request

    def behind_of(client: str, metadata: Any, coming: int) -> float:
        asked.append((client, dict(metadata)))
        return 0.1

    running = run_front({"Note": ("uu", note)}, behind=lambda coming: 60.0, behind_of=behind_of)
    call = running.channel().unary_unary("/s/Note")
    assert call(b"1", timeout=20, metadata=[("how", "urgent")]) == b"1"
    ((client, metadata),) = asked
    assert client.startswith("ipv4:127.0.0.1:")
    assert metadata["how"] == "urgent"


def test_what_its_client_gives_up_while_it_waits_for_its_turn_is_not_begun(
    run_front: Start,
) -> None:
    holding, go_on = threading.Event(), threading.Event()
    begun: list[bytes] = []

    @driven
    async def note(request: bytes, context: Call) -> bytes:
        begun.append(request)
        if request == b"long":
            holding.set()
            go_on.wait(20)
        else:
            time.sleep(0.003)  # noqa: ASYNC251 - so that the others wait
        return request

    running = run_front({"Note": ("uu", note)})
    call = running.channel().unary_unary("/s/Note")
    long = call.future(b"long")
    assert holding.wait(20)
    waiting = [call.future(b"%d" % number) for number in range(100)]
    time.sleep(0.2)
    for future in waiting:
        future.cancel()
    time.sleep(0.2)
    go_on.set()
    assert long.result(20) == b"long"
    running.settle()
    assert len(begun) < 30


def test_a_lone_call_does_not_wait_behind_all_messages_of_another_client(
    run_front: Start,
) -> None:
    began, go_on = threading.Event(), threading.Event()
    order: list[bytes] = []

    @driven
    async def note(request: bytes, context: Call) -> bytes:
        order.append(request)
        if request == b"first":
            began.set()
            go_on.wait(20)  # the front is held while the others' messages come
        return request

    running = run_front({"Note": ("uu", note)})
    crowd = running.channel().unary_unary("/s/Note")
    one = running.channel().unary_unary("/s/Note")
    assert [crowd(b""), one(b"")] == [b"", b""]
    futures = [crowd.future(b"first")]
    assert began.wait(10)
    futures += [crowd.future(b"crowd") for _ in range(50)]
    threading.Event().wait(0.3)
    futures.append(one.future(b"one"))
    threading.Event().wait(0.3)
    go_on.set()
    for future in futures:
        future.result(20)
    assert order.index(b"one") < 25, order


@WAYS
def test_a_client_that_cancels_ends_the_method_at_what_it_waits_for(
    run_front: Start, way: Any
) -> None:
    began, ended = threading.Event(), threading.Event()

    async def wait(request: bytes, context: Call) -> bytes:
        never: Completion[bytes] = Completion()
        try:
            began.set()
            return await never
        finally:
            ended.set()

    running = run_front({"Wait": ("uu", way(wait))})
    future = running.channel().unary_unary("/s/Wait").future(b"")
    assert began.wait(10)
    future.cancel()
    assert ended.wait(10)
    running.settle()


@WAYS
def test_a_deadline_that_passes_ends_the_method_too(run_front: Start, way: Any) -> None:
    ended = threading.Event()

    async def wait(request: bytes, context: Call) -> bytes:
        never: Completion[bytes] = Completion()
        try:
            return await never
        finally:
            assert context.cancelled() or context.time_remaining() == 0
            ended.set()

    running = run_front({"Wait": ("uu", way(wait))})
    with pytest.raises(grpc.RpcError) as late:
        running.channel().unary_unary("/s/Wait")(b"", timeout=0.2)
    assert late.value.code() is CODE.DEADLINE_EXCEEDED
    assert ended.wait(10)
    running.settle()


@WAYS
@pytest.mark.parametrize("count", [1000, pytest.param(10_000, marks=pytest.mark.long)])
def test_cancelled_calls_leave_nothing_behind(run_front: Start, way: Any, count: int) -> None:
    over: list[None] = []

    async def wait(request: bytes, context: Call) -> bytes:
        context.add_done_callback(lambda _: over.append(None))
        never: Completion[bytes] = Completion()
        return await never

    running = run_front({"Wait": ("uu", way(wait))}, max_calls=1_000_000)
    call = running.channel().unary_unary("/s/Wait")
    gc.collect()
    gc.disable()  # references must go by themselves
    try:
        for _ in range(count // 50):
            futures = [call.future(b"") for _ in range(50)]
            for future in futures:
                future.cancel()
        del futures, future
        running.settle()
        left = [one for one in gc.get_objects() if type(one) is Call]
        assert len(left) <= 1, len(left)  # the last event's
    finally:
        gc.enable()
    assert len(over) <= count


def test_messages_stream_out_by_generator_and_by_write(run_front: Start) -> None:
    async def count(request: bytes, context: Call) -> AsyncIterator[bytes]:
        for i in range(request[0]):
            yield bytes([i])

    async def write(request: bytes, context: Call) -> None:
        for i in range(request[0]):
            await context.write(bytes([i]))

    running = run_front(
        {
            "Count": ("us", count),
            "Write": ("us", write),
            "CountDriven": ("us", driven(lambda request, context: count(request, context))),
        }
    )
    channel = running.channel()
    for name in ("Count", "Write", "CountDriven"):
        call = channel.unary_stream(f"/s/{name}")
        assert list(call(b"\x05")) == [bytes([i]) for i in range(5)], name
        assert list(call(b"\x00")) == []
    running.settle()


def test_messages_stream_in_until_the_client_has_no_more(run_front: Start) -> None:
    async def total(requests: AsyncIterator[bytes], context: Call) -> bytes:
        return b"".join([one async for one in requests])

    async def by_read(requests: AsyncIterator[bytes], context: Call) -> bytes:
        found = b""
        while (one := await context.read()) is not grpc.aio.EOF:
            found += one
        return found

    running = run_front({"Total": ("su", total), "Driven": ("su", driven(by_read))})
    for name in ("Total", "Driven"):
        call = running.channel().stream_unary(f"/s/{name}")
        assert call(iter([b"a", b"", b"bc"])) == b"abc"
        assert call(iter([])) == b""
    running.settle()


@WAYS
def test_streams_in_both_directions_answer_as_they_read(run_front: Start, way: Any) -> None:
    async def twice(requests: AsyncIterator[bytes], context: Call) -> AsyncIterator[bytes]:
        async for one in requests:
            yield one + one

    method = way(lambda requests, context: twice(requests, context))
    running = run_front({"Twice": ("ss", method)})
    call = running.channel().stream_stream("/s/Twice")
    go_on = [threading.Event() for _ in range(3)]

    def messages() -> Iterator[bytes]:
        for i, event in enumerate(go_on):
            assert event.wait(10)
            yield bytes([65 + i])

    replies = call(messages())
    for i, event in enumerate(go_on):
        event.set()
        assert next(replies) == bytes([65 + i]) * 2
    assert list(replies) == []
    running.settle()


def test_a_reader_that_stops_reading_stops_the_writer(run_front: Start) -> None:
    written: list[int] = []

    async def flood(request: bytes, context: Call) -> AsyncIterator[bytes]:
        for i in range(2000):
            written.append(i)
            yield bytes(100_000)

    running = run_front({"Flood": ("us", flood), "Echo": ("uu", echo_driven)})
    replies = running.channel().unary_stream("/s/Flood")(b"")
    next(replies)
    echoes = running.channel().unary_unary("/s/Echo")
    seen = -1
    while seen != len(written):
        seen = len(written)
        for _ in range(200):
            assert echoes(b"others are served") == b"others are served"
    assert seen < 500, "200 MB were not all taken for a client that does not read"
    replies.cancel()
    running.settle()


def test_a_stream_that_its_client_leaves_ends_its_method(run_front: Start) -> None:
    ended = threading.Event()

    async def wait(requests: AsyncIterator[bytes], context: Call) -> AsyncIterator[bytes]:
        try:
            async for one in requests:
                yield one
        finally:
            ended.set()

    running = run_front({"Wait": ("ss", wait)})
    hold = threading.Event()

    def messages() -> Iterator[bytes]:
        yield b"first"
        hold.wait(10)

    replies = running.channel().stream_stream("/s/Wait")(messages())
    assert next(replies) == b"first"
    replies.cancel()
    assert ended.wait(10)
    hold.set()
    running.settle()


def test_stopping_lets_calls_finish_and_refuses_new_ones(run_front: Start) -> None:
    go_on: Completion[None] = Completion()

    @driven
    async def wait(request: bytes, context: Call) -> bytes:
        await go_on
        return b"finished"

    running = run_front({"Wait": ("uu", wait)})
    future = running.channel().unary_unary("/s/Wait").future(b"")
    running.settle(1)
    stopping = asyncio.run_coroutine_threadsafe(running.front.stop(30), running.loop)
    running.on_loop(asyncio.sleep(0))  # it has begun
    assert not stopping.done()
    with pytest.raises(grpc.RpcError) as refused:
        running.channel().unary_unary("/s/Wait")(b"", timeout=5)
    assert refused.value.code() is CODE.UNAVAILABLE
    go_on.set_result(None)
    assert future.result(10) == b"finished"
    stopping.result(10)
    assert running.on_loop(running.front.wait_for_termination(1)) is False


def test_clients_that_go_on_sending_while_it_stops_are_told_so_and_never_cancelled(
    run_front: Start,
) -> None:
    told: list[grpc.Status] = []

    def stopping() -> grpc.Status:
        told.append(Stopping())
        return told[-1]

    running = run_front({"Echo": ("uu", echo_driven)}, refusals=Refusals(Refusal, Late, stopping))
    codes: Counter[Any] = Counter()

    def answered(connection: wire.Connection, call: wire.Call) -> None:
        codes[call.status] += 1
        if not connection.closing and call.status != wire.LOST:
            connection.begin(wire.Call(call.body, time.perf_counter()))

    with wire.connected(running.port, "/s/Echo", 4) as connections:
        load = wire.Load(connections, answered)
        stop = threading.Timer(
            0.5,
            lambda: running.on_loop(running.front.stop(1)),  # amid the calls
        )
        stop.start()
        now = time.perf_counter()
        body = wire.prefixed(b"again")
        load.run([(now, connections[i % 4], body) for i in range(64)], last=now, patience=20)
        stop.join()
    assert codes[wire.OK] > 64
    assert codes[wire.UNAVAILABLE] > 0
    assert set(codes) == {wire.OK, wire.UNAVAILABLE}, codes
    assert len(told) == running.front.refused > 1, "asked for each, so that each is counted"


def test_stopping_without_patience_cancels_what_runs(run_front: Start) -> None:
    async def wait(request: bytes, context: Call) -> bytes:
        await asyncio.sleep(1000)
        return b""

    running = run_front({"Wait": ("uu", wait)})
    future = running.channel().unary_unary("/s/Wait").future(b"")
    running.settle(1)
    running.on_loop(running.front.stop(None))
    with pytest.raises(grpc.RpcError) as ended:
        future.result(10)
    assert ended.value.code() in (CODE.CANCELLED, CODE.UNAVAILABLE)


def test_a_port_that_is_taken_is_refused(run_front: Start) -> None:
    running = run_front({})
    other = run_front({}, options=[("grpc.so_reuseport", 0)])
    with pytest.raises(RuntimeError, match="cannot be bound"):
        other.front.add_insecure_port(f"127.0.0.1:{running.port}")
