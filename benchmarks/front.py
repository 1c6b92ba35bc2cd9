"""What a gRPC server costs by itself: CPU per echo call of 64 bytes, for each way to serve.

    python benchmarks/front.py [--rounds 6] [--calls 4000] [--flight 32] [--json FILE]

Each way is a server process of its own; all run throughout, and rounds go from one to the next, so
that what else the machine does falls on all alike. A round is `h2load` (Debian's nghttp2-client)
with one connection, or two for the two processes that share a port; the figure is the CPU time that
the server's processes took meanwhile, by call. The least of the rounds is the one that other work
disturbed least; the median tells how much there was.

    aio      grpc.aio on asyncio's loop        sync     grpc's own server, 32 threads
    uvloop   grpc.aio on uvloop                tasks    our front, methods as tasks of uvloop
    driven   our front, methods driven         shared   two processes of `driven` on one port
    keys     `driven`, which asks each call for its key
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc

from twinserve.server.front import Admit, Front, Refusals, driven
from twinserve.server.security.access import Role
from twinserve.server.security.door import KeyDoor
from twinserve.server.security.keys import Key, digest_of
from twinserve.server.services.refusals import admission
from twinserve.server.watching.metrics import Metrics

WAYS = ("aio", "uvloop", "sync", "tasks", "driven", "shared", "keys")
MESSAGE = bytes(64)
KEY = "tws_echo_" + "0" * 43  # no secret: it opens this echo alone
KEYS = 100  # that the door knows


async def _echo(request: bytes, context: Any) -> bytes:
    return request


async def _serve_aio(port: int) -> None:
    server = grpc.aio.server()
    handlers: dict[str, Any] = {"Echo": grpc.unary_unary_rpc_method_handler(_echo)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("e.E", handlers),))
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    await server.wait_for_termination()


def _late(seconds: float) -> grpc.Status:
    return grpc.Status()


def _door() -> Admit:
    names = ["echo", *(f"other-{i}" for i in range(1, KEYS))]
    keys = [Key(name, digest_of(KEY), Role.ADMIN, rate=1e9, burst=1e9) for name in names]
    return admission(KeyDoor(keys), Metrics())


async def _serve_front(port: int, method: Any, admit: Admit | None) -> None:
    refusals = Refusals(grpc.Status, _late, grpc.Status)
    front = Front([], ThreadPoolExecutor(1), 4096, refusals, admit=admit)
    front.add_registered_method_handlers(
        "e.E", {"Echo": grpc.unary_unary_rpc_method_handler(method)}
    )
    front.add_insecure_port(f"127.0.0.1:{port}")
    await front.start()
    await front.wait_for_termination()


def _serve(way: str, port: int) -> None:
    """Be one server, until killed."""
    if way == "aio":
        asyncio.run(_serve_aio(port))
        return
    if way == "sync":
        server = grpc.server(ThreadPoolExecutor(32))
        echo: Any = grpc.unary_unary_rpc_method_handler(lambda request, context: request)
        server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler("e.E", {"Echo": echo}),)
        )
        server.add_insecure_port(f"127.0.0.1:{port}")
        server.start()
        server.wait_for_termination()
        return
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        if way == "uvloop":
            runner.run(_serve_aio(port))
        else:
            method = _echo if way == "tasks" else driven(_echo)
            runner.run(_serve_front(port, method, _door() if way == "keys" else None))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _cpu(processes: list[subprocess.Popen[bytes]]) -> float:
    """Return the CPU seconds that some processes have taken, all threads together."""
    total = 0
    for process in processes:
        for task in Path(f"/proc/{process.pid}/task").iterdir():
            total += int((task / "schedstat").read_text().split()[0])
    return total / 1e9


def _load(port: int, calls: int, flight: int, connections: int, body: Path, key: str = "") -> float:
    """Make the calls; return calls a second."""
    command = ["h2load", "-n", str(calls), "-c", str(connections), "-m", str(flight // connections)]
    command += ["-H", "content-type: application/grpc", "-H", "te: trailers", "-d", str(body)]
    if key:
        command += ["-H", f"authorization: Bearer {key}"]
    command.append(f"http://127.0.0.1:{port}/e.E/Echo")
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    if f"{calls} succeeded" not in done:
        raise RuntimeError(f"h2load on port {port} said: {done[-500:]}")
    found = re.search(r"([\d.]+) req/s", done)
    assert found is not None
    return float(found[1])


def _wait_until_it_listens(port: int) -> None:
    for _ in range(200):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise RuntimeError(f"nothing listens on port {port}")


def measure(ways: tuple[str, ...], rounds: int, calls: int, flight: int) -> dict[str, Any]:
    """Measure all ways in turns; CPU in microseconds per call."""
    servers: dict[str, tuple[int, list[subprocess.Popen[bytes]]]] = {}
    connections = {way: 2 if way == "shared" else 1 for way in ways}
    key = {way: KEY if way == "keys" else "" for way in ways}
    cpu: dict[str, list[float]] = {way: [] for way in ways}
    rate: dict[str, list[float]] = {way: [] for way in ways}
    with tempfile.NamedTemporaryFile() as file:
        file.write(b"\0" + len(MESSAGE).to_bytes(4, "big") + MESSAGE)
        file.flush()
        body = Path(file.name)
        try:
            for way in ways:
                port = _free_port()
                command = [sys.executable, __file__, "--be", way, str(port)]
                count = connections[way]
                servers[way] = (port, [subprocess.Popen(command) for _ in range(count)])
            for way, (port, _) in servers.items():
                _wait_until_it_listens(port)
                time.sleep(0.5)
                _load(port, 1000, flight, connections[way], body, key[way])
            for _ in range(rounds):
                for way, (port, processes) in servers.items():
                    before = _cpu(processes)
                    per_second = _load(port, calls, flight, connections[way], body, key[way])
                    cpu[way].append((_cpu(processes) - before) / calls * 1e6)
                    rate[way].append(per_second)
        finally:
            for _, processes in servers.values():
                for process in processes:
                    process.kill()
                    process.wait()
    return {
        way: {
            "cpu_us_least": min(cpu[way]),
            "cpu_us_median": statistics.median(cpu[way]),
            "calls_per_second_most": max(rate[way]),
            "cpu_us": cpu[way],
            "calls_per_second": rate[way],
        }
        for way in ways
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--be", nargs=2, metavar=("WAY", "PORT"), help=argparse.SUPPRESS)
    parser.add_argument("--ways", default=",".join(WAYS), help="which to measure (%(default)s)")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--calls", type=int, default=4000, help="a round (%(default)s)")
    parser.add_argument("--flight", type=int, default=32, help="calls at a time (%(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all rounds")
    arguments = parser.parse_args()
    if arguments.be:
        _serve(arguments.be[0], int(arguments.be[1]))
        return
    ways = tuple(arguments.ways.split(","))
    began = os.getloadavg()[0]
    found = measure(ways, arguments.rounds, arguments.calls, arguments.flight)
    base = found.get("driven", found[ways[0]])["cpu_us_least"]
    print(f"{'way':8} {'CPU least':>10} {'median':>8} {'ratio':>6} {'calls/s':>8}")
    for way, row in found.items():
        print(
            f"{way:8} {row['cpu_us_least']:8.0f}us {row['cpu_us_median']:6.0f}us "
            f"{row['cpu_us_least'] / base:6.2f} {row['calls_per_second_most']:8.0f}"
        )
    if arguments.json:
        settings = {
            "rounds": arguments.rounds,
            "calls": arguments.calls,
            "flight": arguments.flight,
            "load_average_before": began,
            "grpcio": grpc.__version__,
            "processors": os.cpu_count(),
        }
        report = {"settings": settings, "ways": found}
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
