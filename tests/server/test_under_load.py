"""Stopping under load, and clients that give up at random: nothing accepted is lost, nothing leaks.

Calls are of pixels, photographs and texts, over `benchmarks.serving.wire`: it tells a call that was
refused from one that was lost, as grpc's own clients do not, who retry what was refused, and call
all else UNAVAILABLE.
"""

from __future__ import annotations

import functools
import os
import random
import re
import signal
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.serving import forms, machine, wire
from benchmarks.serving.rows import pictures
from tests import twins
from tests.conftest import RunningServer
from tests.server import wire as messages
from twinserve.v1 import embedding_service_pb2 as pb
from twinserve.v1 import shared_pb2

STOPS, MOST_SECONDS = 50, 60.0
# A real text encoder beside the small ones, for the long tests: all-MiniLM-L6-v2 as a twin.
MINILM = os.environ.get("TWINSERVE_MINILM")
PIXELS = twins.classes_of_pixels(16, 1)[0]
TEXTS = twins.classes_of_texts(16, 1)[0]
photograph = functools.cache(pictures.photograph)
Start = Callable[..., RunningServer]


def body(model: str, inputs: Sequence[shared_pb2.Input]) -> bytes:
    return wire.prefixed(pb.EmbedRequest(model=model, inputs=inputs).SerializeToString())


@dataclass(frozen=True)
class Twins:
    """What is served, and calls of every kind for it: pixels, photographs and texts."""

    flags: list[str]
    bodies: list[bytes]
    photographs: list[bytes]

    @classmethod
    def small(cls, image_twin: Path, folder: Path) -> Twins:
        folder.mkdir(exist_ok=True)
        text_twin = folder / "texts.onnx"
        text_twin.write_bytes(twins.small_text_twin(calibrated=False))
        pixels = [messages.tensor(one) for one in PIXELS] * 2
        pictured = [shared_pb2.Input(image=photograph(seed)) for seed in range(3)]
        photographs = [body("small", pictured[:items]) for items in (1, 3)]
        texts = [shared_pb2.Input(text=text) for text in TEXTS]
        bodies = [
            *(body("small", pixels[:items]) for items in (1, 1, 2, 5, 32)),
            *photographs,
            *(body("texts", texts[:items]) for items in (1, 2, 16)),
        ]
        flags = ["--model", str(image_twin), "--model", str(text_twin)]
        return cls(flags, bodies, photographs)

    def with_minilm(self) -> Twins:
        """Return them with MiniLM too, where there is one."""
        if MINILM is None:
            return self
        texts = [shared_pb2.Input(text=f"a question about {text}") for text in TEXTS]
        bodies = [*self.bodies, *(body("minilm", texts[:items]) for items in (1, 3))]
        return replace(self, flags=[*self.flags, "--model", f"minilm={MINILM}"], bodies=bodies)


def stop_under_load(server: RunningServer, bodies: Sequence[bytes], after: float) -> Counter[int]:
    """Send SIGTERM amid calls, and return how many ended with which status.

    A connection that was told UNAVAILABLE begins no more, as a client that backs off would not.
    """
    chance = random.Random(7)
    told: set[wire.Connection] = set()

    def answered(connection: wire.Connection, call: wire.Call) -> None:
        if call.status != wire.OK or connection.closing:
            told.add(connection)
        if connection not in told:
            connection.begin(wire.Call(chance.choice(bodies), time.perf_counter()))

    timer = threading.Timer(after, server.process.send_signal, [signal.SIGTERM])
    with wire.connected(server.grpc_port, forms.EMBED, 4) as connections:
        load = wire.Load(connections, answered)
        now = time.perf_counter()
        timer.start()
        first = [(now, connections[i % 4], bodies[i % len(bodies)]) for i in range(32)]
        load.run(first, last=now + after)
    timer.join()
    return Counter(call.status for call in load.ended)


def check_stop(start_server: Start, twin_file: Path, folder: Path, after: float) -> None:
    served = Twins.small(twin_file, folder)
    server = start_server(*served.flags, "--data-dir", folder / "data")
    statuses = stop_under_load(server, served.bodies, after)
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


def cancel_at_random(
    server: RunningServer, bodies: Sequence[bytes], seconds: float, seed: int
) -> Counter[int]:
    """Keep 32 calls in flight on four connections, and cancel three in ten somewhere on their way.

    One connection in two hundred calls is cut, and another made.
    """
    with wire.connected(server.grpc_port, forms.EMBED, 4) as connections:
        return _cancel(server, connections, bodies, seconds, random.Random(seed))


def _cancel(
    server: RunningServer,
    connections: list[wire.Connection],
    bodies: Sequence[bytes],
    seconds: float,
    chance: random.Random,
) -> Counter[int]:
    statuses: Counter[int] = Counter()
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        for place, connection in enumerate(connections):
            try:
                while len(connection.calls) < 8:
                    connection.begin(wire.Call(chance.choice(bodies), time.perf_counter()))
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


def embeddings(server: RunningServer, bodies: Sequence[bytes]) -> dict[bytes, forms.Embedding]:
    """What each call is answered with while nobody else calls."""
    with wire.connected(server.grpc_port, forms.EMBED) as connections:
        calls = wire.paced(connections, bodies, [0.0] * len(bodies))
    assert {call.status for call in calls} == {wire.OK}
    return {call.body: forms.CONTRACT.decode(call.reply[5:]) for call in calls}


def check_cancelling(
    server: RunningServer, bodies: Sequence[bytes], seconds: float
) -> tuple[machine.Usage, machine.Usage]:
    """Cancel for a time, and return what the server held after a first round and at the end."""
    answered = embeddings(server, bodies)
    cancel_at_random(server, bodies, min(seconds / 4, 5.0), 1)
    before = machine.usage(server.process.pid)
    statuses = cancel_at_random(server, bodies, seconds, 2)
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
    again = embeddings(server, bodies)
    assert all(np.allclose(again[body], answered[body], atol=1e-4) for body in bodies)
    return before, machine.usage(server.process.pid)


@pytest.mark.parametrize("kind", ["any", "photographs"])
def test_clients_that_cancel_and_vanish_at_random_leave_a_server_that_serves(
    start_server: Start, twin_file: Path, tmp_path: Path, kind: str
) -> None:
    served = Twins.small(twin_file, tmp_path)
    server = start_server(*served.flags, "--data-dir", tmp_path / "data")
    # Photographs alone take long to prepare: whatever is done for who has gone leaves no time for
    # the others.
    bodies = served.bodies if kind == "any" else served.photographs
    check_cancelling(server, bodies, 2)
    assert server.stop() == 0


@pytest.mark.long
def test_a_minute_of_cancelling_leaks_neither_threads_nor_memory(
    start_server: Start, twin_file: Path, tmp_path: Path
) -> None:
    served = Twins.small(twin_file, tmp_path).with_minilm()
    server = start_server(*served.flags, "--data-dir", tmp_path / "data")
    before, after = check_cancelling(server, served.bodies, MOST_SECONDS)
    print(f"MB before: {before.resident / 1e6:.1f}, after: {after.resident / 1e6:.1f}")
    # grpcio's core makes threads of its own as load comes and goes, a handful at most.
    assert after.threads <= before.threads + 4
    assert after.resident <= before.resident * 1.1
    assert server.stop() == 0
