"""What the Python clients cost beside bare stubs: calls a second, and their processor time a call.

    python benchmarks/client.py [--rounds 6] [--calls 600] [--flight 32] [--against FOLDER]

One server answers Embed with a fixed vector of 128 values, so that its own work counts little. Each
way to call it is a process of its own; all live throughout, and rounds go from one to the next, so
that what else the machine does falls on all alike. A call sends one ready vector. Ways by `lone`
make one call after the other; of the others, `--flight` are under way at once, from as many threads
or tasks. The least of the rounds is the one that other work disturbed least.

    stub, aio-stub        the generated stubs over grpc and grpc.aio, with the message ready
    array, aio-array      the stubs, from a numpy array to a numpy array, as the clients do
    client, async-client  Client and AsyncClient
    before                Client of the checkout in FOLDER
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np

from twinserve import messages
from twinserve.v1 import embedding_service_pb2, embedding_service_pb2_grpc, shared_pb2

DIMENSION = 128
WAYS = ("stub", "array", "client", "aio-stub", "aio-array", "async-client")


def _serve() -> None:
    """Be the server; print the port."""
    from twinserve.server.front import Front, Refusals, driven

    values = np.linspace(-1, 1, DIMENSION).tolist()
    result = embedding_service_pb2.EmbedResult(embedding=shared_pb2.Embedding(values=values))
    reply = embedding_service_pb2.EmbedResponse(results=[result]).SerializeToString()

    @driven
    async def embed(request: bytes, context: Any) -> bytes:
        return reply

    async def serve() -> None:
        refusals = Refusals(grpc.Status, lambda seconds: grpc.Status(), grpc.Status)
        front = Front([], ThreadPoolExecutor(1), 4096, refusals)
        front.add_registered_method_handlers(
            "twinserve.v1.EmbeddingService",
            {"Embed": grpc.unary_unary_rpc_method_handler(embed)},
        )
        print(front.add_insecure_port("127.0.0.1:0"), flush=True)
        await front.start()
        await front.wait_for_termination()

    asyncio.run(serve())


def _timed(act: Callable[[], object]) -> tuple[float, float]:
    """Return the seconds that something takes, and the processor time of this process."""
    wall, cpu = time.perf_counter(), time.process_time()
    act()
    return time.perf_counter() - wall, time.process_time() - cpu


def _threads(call: Callable[[], object]) -> Callable[[int, int], tuple[float, float]]:
    """Return what makes so many calls, so many of them at once, from threads."""

    def measure(calls: int, flight: int) -> tuple[float, float]:
        if flight == 1:
            return _timed(lambda: [call() for _ in range(calls)])

        def each() -> None:
            for _ in range(calls // flight):
                call()

        def act() -> None:
            for future in [threads.submit(each) for _ in range(flight)]:
                future.result()

        with ThreadPoolExecutor(flight) as threads:
            return _timed(act)

    return measure


def _tasks(call: Callable[[], Coroutine[Any, Any, object]]) -> Callable[[int, int], Any]:
    """Return what makes so many calls, so many of them at once, from tasks."""

    async def measure(calls: int, flight: int) -> tuple[float, float]:
        async def each() -> None:
            for _ in range(calls // flight):
                await call()

        wall, cpu = time.perf_counter(), time.process_time()
        await asyncio.gather(*(each() for _ in range(flight)))
        return time.perf_counter() - wall, time.process_time() - cpu

    return measure


def _call(way: str, target: str) -> None:
    """Be one way to call: measure as often as a line on standard input tells how."""
    from twinserve import client

    vector = messages.Vector(np.linspace(-1, 1, DIMENSION, dtype=np.float32), "space")

    def made() -> embedding_service_pb2.EmbedRequest:
        return embedding_service_pb2.EmbedRequest(inputs=[messages.to_input(vector)])

    request = made()
    if way.startswith(("aio", "async")):

        async def answer() -> None:
            channel = grpc.aio.insecure_channel(target)
            stub: Any = embedding_service_pb2_grpc.EmbeddingServiceStub(channel)
            caller = client.AsyncClient(target)

            async def bare() -> object:
                return await stub.Embed(request, timeout=30.0)

            async def array() -> object:
                return messages.from_embed_response(await stub.Embed(made(), timeout=30.0))

            calls = {"aio-stub": bare, "aio-array": array}
            measure = _tasks(calls.get(way, lambda: caller.embed([vector])))
            while line := await asyncio.to_thread(sys.stdin.readline):
                print(json.dumps(await measure(*json.loads(line))), flush=True)

        asyncio.run(answer())
        return
    stub = embedding_service_pb2_grpc.EmbeddingServiceStub(grpc.insecure_channel(target))
    blocking = client.Client(target)
    calls: dict[str, Callable[[], object]] = {
        "stub": lambda: stub.Embed(request, timeout=30.0),
        "array": lambda: messages.from_embed_response(stub.Embed(made(), timeout=30.0)),
    }
    measure = _threads(calls.get(way, lambda: blocking.embed([vector])))
    for line in sys.stdin:
        print(json.dumps(measure(*json.loads(line))), flush=True)


def _ask(process: subprocess.Popen[str], calls: int, flight: int) -> tuple[float, float]:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(json.dumps([calls, flight]) + "\n")
    process.stdin.flush()
    wall, cpu = json.loads(process.stdout.readline())
    return calls / wall, cpu / calls * 1e6


def measure(ways: dict[str, Path | None], rounds: int, calls: int, flight: int) -> dict[str, Any]:
    """Measure all ways in turns, alone and many at a time; processor time in microseconds."""
    pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    server = subprocess.Popen([sys.executable, __file__, "--be", "server", ""], **pipes)
    processes = {}
    try:
        target = f"127.0.0.1:{server.stdout.readline().strip()}"
        for way, folder in ways.items():
            environment = dict(os.environ)
            if folder is not None:
                environment["PYTHONPATH"] = str(folder)
            command = [sys.executable, __file__, "--be", way, target]
            processes[way] = subprocess.Popen(command, env=environment, **pipes)
        rows: dict[str, dict[str, list[float]]] = {}
        for turn in range(rounds + 1):
            for way, process in processes.items():
                for name, count in ((f"{way}, lone", 1), (f"{way}, {flight} at once", flight)):
                    rate, cpu = _ask(process, calls if turn else flight * 4, count)
                    if turn:  # the first warms up
                        row = rows.setdefault(name, {"calls_per_second": [], "cpu_us": []})
                        row["calls_per_second"].append(round(rate))
                        row["cpu_us"].append(round(cpu, 1))
        return rows
    finally:
        for one in (server, *processes.values()):
            one.kill()
            one.communicate()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--be", nargs=2, metavar=("WAY", "TARGET"), help=argparse.SUPPRESS)
    parser.add_argument("--ways", default=",".join(WAYS), help="which to measure (%(default)s)")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--calls", type=int, default=600, help="a round (%(default)s)")
    parser.add_argument("--flight", type=int, default=32, help="calls at a time (%(default)s)")
    parser.add_argument("--against", type=Path, metavar="FOLDER", help="another checkout")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all rounds")
    arguments = parser.parse_args()
    if arguments.be:
        way, target = arguments.be
        if way == "server":
            _serve()
        else:
            _call(way, target)
        return
    ways: dict[str, Path | None] = dict.fromkeys(arguments.ways.split(","))
    if arguments.against:
        ways["before"] = arguments.against.resolve()
    began = os.getloadavg()[0]
    calls = arguments.calls // arguments.flight * arguments.flight
    found = measure(ways, arguments.rounds, calls, arguments.flight)
    print(f"{'way':26} {'CPU least':>9} {'median':>8} {'calls/s most':>12} {'median':>7}")
    for name, row in found.items():
        cpu, rate = row["cpu_us"], row["calls_per_second"]
        print(
            f"{name:26} {min(cpu):7.0f}us {statistics.median(cpu):6.0f}us "
            f"{max(rate):12.0f} {statistics.median(rate):7.0f}"
        )
    if arguments.json:
        settings = {
            "rounds": arguments.rounds,
            "calls": calls,
            "flight": arguments.flight,
            "load_average_before": round(began, 1),
            "grpcio": grpc.__version__,
            "processors": os.cpu_count(),
        }
        report = {"settings": settings, "ways": found}
        arguments.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
