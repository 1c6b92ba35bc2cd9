"""What being watched costs: CPU per Embed call, for each setting of access log and traces.

    python benchmarks/watching.py [--rounds 5] [--calls 2000] [--flight 32] [--json FILE]

Each way is a server of its own with one small image twin; all run throughout, and rounds go from
one to the next, so that what else the machine does falls on all alike. A round is `h2load`
(Debian's nghttp2-client) with one connection and one picture a call; the figure is the CPU time
that the server's process took meanwhile, by call: the least and the median of the rounds. The log
goes to a file, the traces to a collector in this process, which counts the spans and drops them.
Needs twinserve[tracing].
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc

from tests import twins
from tests.server import wire
from twinserve.v1 import embedding_service_pb2 as pb

PATH = "/twinserve.v1.EmbeddingService/Embed"
_QUIET = ("--access-log", "off", "--slow-call-seconds", "0")
# Each: what is measured, the server's flags, and its environment.
WAYS: dict[str, tuple[tuple[str, ...], dict[str, str]]] = {
    "off": (_QUIET, {}),
    "errors (default)": ((), {}),
    "access log 1 %": (("--access-log", "0.01"), {}),
    "access log all": (("--access-log", "1"), {}),
    "traces 1 %": (
        (*_QUIET, "--tracing"),
        {"OTEL_TRACES_SAMPLER": "parentbased_traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0.01"},
    ),
    "traces all": ((*_QUIET, "--tracing"), {}),
}


class _Collector(trace_service_pb2_grpc.TraceServiceServicer):
    def __init__(self) -> None:
        self.spans = 0

    def Export(self, request: Any, context: Any) -> Any:
        for resource in request.resource_spans:
            self.spans += sum(len(scope.spans) for scope in resource.scope_spans)
        return trace_service_pb2.ExportTraceServiceResponse()


def _start(
    twin: Path, folder: Path, flags: tuple[str, ...], environment: dict[str, str]
) -> tuple[subprocess.Popen[str], int]:
    """Start a server; returns it with its port."""
    folder.mkdir()
    command = [sys.executable, "-m", "twinserve.server", "--model", str(twin)]
    command += ["--data-dir", str(folder / "data"), "--grpc-port", "0", "--http-port", "0"]
    command += ["--runners", "1", "--threads", "1", *flags]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env={**os.environ, **environment},
        )
    assert process.stdout is not None
    said = process.stdout.readline()
    found = re.search(r"grpc=\S+:(\d+)", said)
    if found is None:
        raise RuntimeError(f"the server said {said!r}: {(folder / 'log').read_text()[-2000:]}")
    return process, int(found[1])


def _cpu(process: subprocess.Popen[str]) -> float:
    """Return the CPU seconds that a process has taken, all threads together."""
    tasks = Path(f"/proc/{process.pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9


def _load(port: int, calls: int, flight: int, body: Path) -> None:
    command = ["h2load", "-n", str(calls), "-c", "1", "-m", str(flight), "-d", str(body)]
    command += ["-H", "content-type: application/grpc", "-H", "te: trailers"]
    command.append(f"http://127.0.0.1:{port}{PATH}")
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    if f"{calls} succeeded" not in done:
        raise RuntimeError(f"h2load on port {port} said: {done[-500:]}")


def measure(rounds: int, calls: int, flight: int) -> dict[str, dict[str, Any]]:
    """Measure all ways in turns; CPU in microseconds per call."""
    collector = _Collector()
    sink = grpc.server(ThreadPoolExecutor(1))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(collector, sink)
    address = f"http://127.0.0.1:{sink.add_insecure_port('127.0.0.1:0')}"
    sink.start()
    servers: dict[str, tuple[subprocess.Popen[str], int]] = {}
    cpu: dict[str, list[float]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        twin, body = folder / "twin.onnx", folder / "body"
        twin.write_bytes(twins.small_image_twin())
        pixels = np.zeros((28, 28, 1), np.uint8)
        message = pb.EmbedRequest(inputs=[wire.tensor(pixels)]).SerializeToString()
        body.write_bytes(b"\0" + len(message).to_bytes(4, "big") + message)
        try:
            for number, (way, (flags, environment)) in enumerate(WAYS.items()):
                sent = {"OTEL_EXPORTER_OTLP_ENDPOINT": address, **environment}
                servers[way] = _start(twin, folder / str(number), flags, sent)
                _load(servers[way][1], calls // 4, flight, body)
            for _ in range(rounds):
                for way, (process, port) in servers.items():
                    before = _cpu(process)
                    _load(port, calls, flight, body)
                    time.sleep(0.1)  # what writes and sends afterwards is part of it
                    cpu[way].append((_cpu(process) - before) / calls * 1e6)
        finally:
            for process, _ in servers.values():
                process.terminate()
            for process, _ in servers.values():
                process.wait()
            sink.stop(None)
    print(f"{collector.spans} spans came to the collector")
    return {
        way: {"least_us": min(cpu[way]), "median_us": statistics.median(cpu[way]), "us": cpu[way]}
        for way in WAYS
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--calls", type=int, default=2000, help="a round (%(default)s)")
    parser.add_argument("--flight", type=int, default=32, help="calls at a time (%(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all rounds")
    arguments = parser.parse_args()
    found = measure(arguments.rounds, arguments.calls, arguments.flight)
    base = found["off"]
    print(f"{'way':18} {'CPU least':>10} {'median':>9} {'least, to off':>14} {'median':>7}")
    for way, row in found.items():
        print(
            f"{way:18} {row['least_us']:8.0f}us {row['median_us']:7.0f}us "
            f"{row['least_us'] / base['least_us']:14.2f} "
            f"{row['median_us'] / base['median_us']:7.2f}"
        )
    if arguments.json:
        settings = {
            "rounds": arguments.rounds,
            "calls": arguments.calls,
            "flight": arguments.flight,
            "grpcio": grpc.__version__,
            "processors": os.cpu_count(),
        }
        arguments.json.write_text(
            json.dumps({"settings": settings, "ways": found}, indent=2) + "\n"
        )


if __name__ == "__main__":
    main()
