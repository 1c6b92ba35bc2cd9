"""What calls by HTTP pass through: door, bounds, gate and deadline, with a servicer that waits."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from tests.server import wire
from tests.server.gateway.served import COMPARE, EMBED, Keys, Served, run, settled
from twinserve.server.config import Limits
from twinserve.server.gateway import body
from twinserve.server.security.access import OPEN, Access


def test_the_door_is_asked_before_anything_is_read_and_its_word_is_told() -> None:
    door = Keys()

    async def test(served: Served) -> None:
        none = await served.ask(EMBED, b"no JSON")
        assert (none.status, none.headers["www-authenticate"]) == (401, "Bearer")
        assert wire.reason(none.error()) == "UNAUTHENTICATED"
        low = await served.ask(EMBED, Authorization="Bearer low")
        assert (low.status, wire.reason(low.error())) == (403, "PERMISSION_DENIED")
        broken = await served.ask(EMBED, Authorization="Bearer broken")
        assert (broken.status, served.servicer.callers) == (500, [])
        busy = await served.ask(EMBED, Authorization="Bearer busy")
        assert (busy.status, busy.headers["retry-after"]) == (429, "1")
        assert busy.headers["retry-after-ms"] == "300"
        assert (await served.ask(EMBED, Authorization="Bearer good")).status == 200
        assert served.servicer.callers == [("tenant", Access(client="tenant"))]
        # Whatever stands for Embed asks as Embed does; OpenAI's errors are in OpenAI's form.
        other = await served.ask("/v1/embeddings", b"no JSON")
        assert (other.status, other.tree["error"]["type"]) == (401, "authentication_error")
        assert door.asked == [(EMBED, "ipv4:127.0.0.1")] * 6

    run(test, door=door)


def test_without_keys_it_is_the_clients_address_that_shares() -> None:
    async def test(served: Served) -> None:
        await served.ask(EMBED)
        assert served.servicer.callers == [("ipv4:127.0.0.1", OPEN)]

    run(test)


def test_a_method_learns_by_what_way_its_call_came() -> None:
    async def test(served: Served) -> None:
        await served.ask(EMBED, b'{"model": "m"}')
        await served.ask("/v1/embeddings", b'{"model": "m", "input": "a"}')
        assert served.servicer.ways == [(EMBED, "connect_rpc", 14), (EMBED, "http", 28)]

    run(test)


def test_calls_by_http_and_by_grpc_share_one_bound() -> None:
    async def test(served: Served) -> None:
        served.front.calls = 1
        waiting = asyncio.create_task(served.ask(COMPARE))
        await served.servicer.begun.wait()
        assert served.front.beside == 1
        full = await served.ask(EMBED, b"no JSON")
        assert (full.status, wire.reason(full.error())) == (429, "QUEUE_FULL")
        assert full.headers["retry-after-ms"] == "250"
        other = await served.ask("/v1/embeddings")
        assert other.tree["error"]["code"] == "queue_full"
        served.servicer.release.set_result(None)
        assert (await waiting).status == 200
        assert (await served.ask(EMBED)).status == 200

    run(test)


def test_a_driven_method_goes_on_in_a_thread_where_it_has_much_to_do() -> None:
    async def test(served: Served) -> None:
        served.servicer.release.set_result(None)
        assert (await served.ask(COMPARE)).tree["modelVersion"] == "twin@1"
        (thread,) = served.servicer.threads
        assert thread.startswith("read")

    run(test)


def test_a_client_that_goes_leaves_no_work_behind() -> None:
    async def test(served: Served) -> None:
        waiting = asyncio.create_task(served.ask(COMPARE))
        await served.servicer.begun.wait()
        waiting.cancel()
        await settled(served.servicer.given_up.is_set)
        await settled(lambda: served.servicer.gate.inside == 0)

    run(test)


def test_what_is_late_is_given_up_and_told() -> None:
    async def test(served: Served) -> None:
        late = await served.ask(COMPARE, **{"Connect-Timeout-Ms": "50"})
        assert (late.status, wire.reason(late.error())) == (504, "DEADLINE_EXCEEDED")
        assert served.servicer.given_up.is_set()

    run(test)


def test_while_it_drains_calls_inside_end_and_new_ones_go_elsewhere() -> None:
    async def test(served: Served) -> None:
        waiting = asyncio.create_task(served.ask(COMPARE))
        await served.servicer.begun.wait()
        closing = asyncio.create_task(served.servicer.gate.close(10.0))
        await asyncio.sleep(0.01)
        gone = await served.ask(EMBED)
        assert (gone.status, wire.reason(gone.error())) == (503, "NOT_SERVING")
        assert (gone.headers["connection"], gone.headers["retry-after"]) == ("close", "1")
        served.servicer.release.set_result(None)
        assert (await waiting).status == 200
        assert await closing == 0

    run(test)


def test_a_fault_of_ours_is_told_without_what_it_was() -> None:
    async def test(served: Served) -> None:
        fault = await served.ask(EMBED, b'{"model": "fault"}')
        assert (fault.status, wire.reason(fault.error())) == (500, "INTERNAL")
        assert "ZeroDivision" not in fault.body.decode()
        lacking = await served.ask("/twinserve.v1.ModelService/ListModels")
        assert lacking.status == 500  # a bare servicer misuses its context
        other = await served.ask("/v1/embeddings", b'{"input": "a", "model": "fault"}')
        assert (other.status, other.tree["error"]["type"]) == (500, "server_error")

    run(test)


def test_bytes_of_large_bodies_are_counted_from_being_read_until_the_call_ends() -> None:
    large = b'{"pairs": []' + b" " * 900_000 + b"}"

    async def test(served: Served) -> None:
        waiting = asyncio.create_task(served.ask(COMPARE, large))
        await served.servicer.begun.wait()
        assert served.budget.bytes > 600_000
        second = asyncio.create_task(served.ask(COMPARE, large))
        await settled(lambda: served.budget.bytes > 1_200_000)
        third = await served.ask(EMBED, large)
        assert (third.status, wire.reason(third.error())) == (429, "QUEUE_FULL")
        assert "retry-after" in third.headers
        served.servicer.release.set_result(None)
        assert (await waiting).status == (await second).status == 200

    run(test, limits=Limits(max_calls=9, max_message_bytes=1 << 20))


def test_a_body_that_does_not_come_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(body, "READ_SECONDS", 0.1)

    async def test(served: Served) -> None:
        async def slow() -> AsyncIterator[bytes]:
            yield b"{"
            await asyncio.sleep(5)
            yield b"}"

        answer = await served.ask(EMBED, slow())
        assert (answer.status, wire.reason(answer.error())) == (408, "DEADLINE_EXCEEDED")

    run(test)


def test_a_reply_that_nobody_takes_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(body, "SEND_SECONDS", 0.1)

    async def test(served: Served) -> None:
        host, port = served.url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port), limit=1024)
        times = 12  # more than the sockets' buffers hold
        asked = b'{"requestId": "' + b"x" * 900_000 + b'"}'
        for _ in range(times):
            writer.write(
                f"POST {EMBED} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
                f"Content-Length: {len(asked)}\r\n\r\n".encode()
            )
            writer.write(asked)
        await settled(lambda: served.front.beside == 1)
        seen = -1
        while seen != len(served.servicer.callers) or served.front.beside:
            seen = len(served.servicer.callers)
            await asyncio.sleep(0.3)
        with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
            await reader.readexactly(times * len(asked))
        writer.transport.abort()

    run(test)
