"""Connections that nobody needs: too many, silent ones, and heads that trickle in."""

from __future__ import annotations

import asyncio
import resource
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import grpc
import pytest
from prometheus_client import CollectorRegistry

from twinserve.server import http
from twinserve.server.front import driven
from twinserve.server.security import connections


@driven
async def echo(request: bytes, context: Any) -> bytes:
    return request


def is_closed(one: socket.socket, seconds: float) -> bool:
    """Say whether the other side closes a connection within so many seconds."""
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        one.settimeout(left)
        try:
            if not one.recv(4096):
                return True
        except TimeoutError:
            return False
        except ConnectionError:
            return True
    return False


def many(port: int, count: int) -> list[socket.socket]:
    return [socket.create_connection(("127.0.0.1", port)) for _ in range(count)]


def is_answered(port: int) -> bool:
    """Say whether a new connection of HTTP is taken."""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as one:
        try:
            one.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
            return one.recv(4096).startswith(b"HTTP/1.1 200")
        except ConnectionError:
            return False


@contextmanager
def http_port(most: int) -> Iterator[int]:
    """Serve the HTTP port on a loop in a thread."""
    import threading

    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    def on_loop(coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, loop).result(30)

    runner, port = on_loop(
        http.start("127.0.0.1", 0, CollectorRegistry(), lambda: True, connections=most)
    )
    try:
        yield port
    finally:
        on_loop(runner.cleanup())
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()


def test_the_grpc_port_takes_so_many_connections_and_closes_silent_ones(
    run_front: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    bounded = run_front({}, options=connections.grpc_options(4))
    silent = many(bounded.port, 10)
    patient_until = time.monotonic() + connections.HANDSHAKE_SECONDS / 2
    while sum(is_closed(one, 0.02) for one in silent) < 6:
        assert time.monotonic() < patient_until, "those above the bound"
    for one in silent:
        one.close()
    monkeypatch.setattr(connections, "HANDSHAKE_SECONDS", 1)
    running = run_front({"Echo": ("uu", echo)}, options=connections.grpc_options(4))
    silent = many(running.port, 4)
    assert all(is_closed(one, 20.0) for one in silent), "those that say nothing"
    for one in silent:
        one.close()
    with grpc.insecure_channel(f"127.0.0.1:{running.port}") as channel:
        assert channel.unary_unary("/s/Echo")(b"x", timeout=10, wait_for_ready=True) == b"x"


def test_the_http_port_takes_so_many_connections() -> None:
    with http_port(4) as port:
        asking = many(port, 4)
        for one in asking:
            one.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
            assert one.recv(4096).startswith(b"HTTP/1.1 200")
        above = many(port, 3)
        assert all(is_closed(one, 20.0) for one in above)
        asking[0].close()
        until = time.monotonic() + 20
        while not is_answered(port):  # until the server has seen that one went
            assert time.monotonic() < until, "the room of one that went is lost"
        for one in (*asking, *above):
            one.close()


def test_an_http_head_that_trickles_in_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "HTTP_SECONDS", 0.3)
    with http_port(4) as port:
        silent, slow = many(port, 2)
        began = time.monotonic()
        slow.sendall(b"GET /healthz HTTP/1.1\r\n")
        while not is_closed(slow, 0.1):
            assert time.monotonic() - began < 20.0, "still open"
            try:
                slow.sendall(b"X-More: x\r\n")
            except ConnectionError:
                break
        assert is_closed(silent, 20.0)
        silent.close()
        slow.close()


@pytest.mark.parametrize(
    ("limits", "wanted"),
    [
        ((1024, 524_288), (65_536, 524_288)),
        ((1024, 4096), (4096, 4096)),
        ((1024, resource.RLIM_INFINITY), (65_536, resource.RLIM_INFINITY)),
        ((100_000, 200_000), None),
        ((resource.RLIM_INFINITY, resource.RLIM_INFINITY), None),
    ],
)
def test_as_many_files_may_be_open_as_the_system_grants(
    monkeypatch: pytest.MonkeyPatch, limits: tuple[int, int], wanted: tuple[int, int] | None
) -> None:
    seen: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "getrlimit", lambda which: limits)
    monkeypatch.setattr(resource, "setrlimit", lambda which, new: seen.append(new))
    connections.allow_files()
    assert seen == ([] if wanted is None else [wanted])


def test_the_bounds_come_from_the_files_that_may_be_open(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda which: (1024, 4096))
    assert connections.most_connections(0) == connections.MostConnections(512, 256)
    assert connections.most_connections(7) == connections.MostConnections(7, 7)
    monkeypatch.setattr(resource, "getrlimit", lambda which: (resource.RLIM_INFINITY,) * 2)
    assert connections.most_connections(0).grpc == 1 << 19
