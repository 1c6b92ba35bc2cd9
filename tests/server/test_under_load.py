"""Stopping under load, and clients that give up at random: nothing accepted is lost, nothing leaks.

Calls go over `benchmarks.serving.wire`, which tells a call that was refused from one that was lost,
as grpc's own clients do not: they retry what was refused, and call all else UNAVAILABLE.
"""

from __future__ import annotations

import random
import re
import signal
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.serving import forms, machine, wire
from tests import twins
from tests.conftest import RunningServer
from tests.server import wire as messages
from twinserve.v1 import embedding_service_pb2 as pb

STOPS, MOST_SECONDS = 50, 60.0
PIXELS = twins.classes_of_pixels(16, 1)[0]
Start = Callable[..., RunningServer]


def body(items: int) -> bytes:
    inputs = [messages.tensor(PIXELS[i % len(PIXELS)]) for i in range(items)]
    return wire.prefixed(pb.EmbedRequest(inputs=inputs).SerializeToString())


BODIES = [body(items) for items in (1, 1, 1, 2, 5, 32)]


def stop_under_load(server: RunningServer, after: float) -> Counter[int]:
    """Send SIGTERM amid calls, and return how many ended with which status.

    A connection that was told UNAVAILABLE begins no more, as a client that backs off would not.
    """
    chance = random.Random(7)
    told: set[wire.Connection] = set()

    def answered(connection: wire.Connection, call: wire.Call) -> None:
        if call.status != wire.OK or connection.closing:
            told.add(connection)
        if connection not in told:
            connection.begin(wire.Call(chance.choice(BODIES), time.perf_counter()))

    timer = threading.Timer(after, server.process.send_signal, [signal.SIGTERM])
    with wire.connected(server.grpc_port, forms.EMBED, 4) as connections:
        load = wire.Load(connections, answered)
        now = time.perf_counter()
        timer.start()
        load.run([(now, connections[i % 4], BODIES[0]) for i in range(32)], last=now + after)
    timer.join()
    return Counter(call.status for call in load.ended)


def check_stop(start_server: Start, twin_file: Path, folder: Path, after: float) -> None:
    server = start_server("--model", twin_file, "--data-dir", folder)
    statuses = stop_under_load(server, after)
    assert server.process.wait(60) == 0
    assert statuses[wire.OK] > 0
    # Refused whole, before any work: UNAVAILABLE. Whatever else would be an accepted call lost.
    assert set(statuses) <= {wire.OK, wire.UNAVAILABLE}, statuses


def test_sigterm_amid_many_calls_loses_none_that_was_accepted(
    start_server: Start, twin_file: Path, tmp_path: Path
) -> None:
    check_stop(start_server, twin_file, tmp_path, 0.3)


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_fifty_sigterms_lose_no_accepted_call(
    start_server: Start, twin_file: Path, tmp_path: Path
) -> None:
    chance = random.Random(41)
    for stop in range(STOPS):
        check_stop(start_server, twin_file, tmp_path / str(stop), 0.1 + chance.random())


def gauge(text: str, name: str) -> float:
    """Add up a metric over its labels."""
    found = re.findall(rf"^{name}(?:{{[^}}]*}})? (\S+)$", text, re.MULTILINE)
    assert found, f"there is no metric {name}"
    return sum(float(value) for value in found)


def metrics(server: RunningServer) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{server.http_port}/metrics") as reply:
        text: str = reply.read().decode()
    return text


def cancel_at_random(server: RunningServer, seconds: float, seed: int) -> Counter[int]:
    """Keep 32 calls in flight on four connections, and cancel three in ten somewhere on their way.

    One connection in two hundred calls is cut, and another made.
    """
    with wire.connected(server.grpc_port, forms.EMBED, 4) as connections:
        return _cancel(server, connections, seconds, random.Random(seed))


def _cancel(
    server: RunningServer,
    connections: list[wire.Connection],
    seconds: float,
    chance: random.Random,
) -> Counter[int]:
    statuses: Counter[int] = Counter()
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        for place, connection in enumerate(connections):
            try:
                while len(connection.calls) < 8:
                    connection.begin(wire.Call(chance.choice(BODIES), time.perf_counter()))
                connection.flush()
                if chance.random() < 0.005:
                    raise ConnectionAbortedError
                for call in connection.read():
                    statuses[call.status] += 1
                for call in list(connection.calls.values()):
                    if chance.random() < 0.05:
                        connection.cancel(call)
                        statuses[wire.CANCELLED] += 1
                connection.flush()
            except OSError:
                connection.lose()
                connections[place] = wire.Connection(server.grpc_port, forms.EMBED)
        time.sleep(0.001)
    return statuses


def check_cancelling(server: RunningServer, seconds: float) -> tuple[machine.Usage, machine.Usage]:
    """Cancel for a time, and return what the server held after a first round and at the end."""
    cancel_at_random(server, min(seconds / 4, 5.0), 1)
    before = machine.usage(server.process.pid)
    statuses = cancel_at_random(server, seconds, 2)
    # Few on a slow machine, where most are cancelled before their turn.
    assert statuses[wire.OK] > 0, statuses
    assert statuses[wire.CANCELLED] > 50, statuses
    assert set(statuses) <= {wire.OK, wire.CANCELLED}, statuses
    until = time.monotonic() + 20
    while True:
        text = metrics(server)
        held = [gauge(text, f"twinserve_{name}") for name in ("admitted_rows", "queue_rows")]
        if held == [0, 0]:
            break
        assert time.monotonic() < until, f"rows of cancelled calls are still counted: {held}"
        time.sleep(0.05)
    with wire.connected(server.grpc_port, forms.EMBED) as connections:
        (call,) = wire.paced(connections, BODIES[:1], [0])
    assert call.status == wire.OK
    return before, machine.usage(server.process.pid)


def test_clients_that_cancel_and_vanish_at_random_leave_a_server_that_serves(
    start_server: Start, twin_file: Path, tmp_path: Path
) -> None:
    server = start_server("--model", twin_file, "--data-dir", tmp_path)
    check_cancelling(server, 2)
    assert server.stop() == 0


@pytest.mark.long
def test_a_minute_of_cancelling_leaks_neither_threads_nor_memory(
    start_server: Start, twin_file: Path, tmp_path: Path
) -> None:
    server = start_server("--model", twin_file, "--data-dir", tmp_path)
    before, after = check_cancelling(server, MOST_SECONDS)
    # grpcio's core makes threads of its own as load comes and goes, a handful at most.
    assert after.threads <= before.threads + 4
    assert after.resident <= before.resident * 1.1
    assert server.stop() == 0
