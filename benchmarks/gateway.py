"""What a call costs by HTTP, beside the same call by gRPC: calls a second, and the server's CPU.

    python -m benchmarks.gateway [--model text-twin.onnx] [--rounds 5] [--json FILE]

One server, one client (h2load) that keeps one call in flight, then sixteen: on one connection by
gRPC, on as many connections by HTTP/1.1, as either's clients do. Each call embeds one text. The
forms take turns, so that what else the machine does falls on all alike, and ratios are of the same
turn. Without --model it is a net that is nearly free, of 16 dimensions: what is measured then is
the way.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

from benchmarks.serving import figures, h2load
from tests import twins
from twinserve.cli.server_process import ServerProcess
from twinserve.v1 import embedding_service_pb2 as pb
from twinserve.v1 import shared_pb2 as shared

TEXT = "word1 word2 word3 word4 word5"
EMBED = "/twinserve.v1.EmbeddingService/Embed"
FLIGHTS = (1, 16)


@dataclass(frozen=True)
class Form:
    """One way to ask for the same embedding."""

    name: str
    path: str
    body: bytes
    kind: str = "application/json"
    grpc: bool = False


def forms() -> list[Form]:
    """Return the ways, gRPC first."""
    message = pb.EmbedRequest(inputs=[shared.Input(text=TEXT)]).SerializeToString()
    asked = {"model": "", "input": TEXT}
    return [
        Form("gRPC Embed", EMBED, b"\0" + len(message).to_bytes(4, "big") + message, grpc=True),
        Form(
            "/v1/embeddings, base64", "/v1/embeddings", _json(asked | {"encoding_format": "base64"})
        ),
        Form("/v1/embeddings, float", "/v1/embeddings", _json(asked)),
        Form("Embed as JSON", EMBED, _json({"inputs": [{"text": TEXT}]})),
        Form("Embed as protobuf by HTTP", EMBED, message, "application/proto"),
    ]


def _json(tree: object) -> bytes:
    return json.dumps(tree).encode()


def _cpu(process: int) -> float:
    """Return the CPU seconds that a process has taken, all threads together."""
    tasks = Path(f"/proc/{process}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9


def measure(model: Path, rounds: int, seconds: float) -> dict[str, dict[str, list[float]]]:
    """Return calls a second and CPU microseconds a call of each turn, by form and flight."""
    found: dict[str, dict[str, list[float]]] = {}
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        flags = ["--model", str(model), "--data-dir", str(folder / "data")]
        server = stack.enter_context(ServerProcess(flags, folder / "log"))
        pid = server.pid
        for turn in range(rounds):
            for flight in FLIGHTS:
                for form in forms():
                    body = folder / "body"
                    body.write_bytes(form.body)
                    window = h2load.run(
                        f"http://{server.target if form.grpc else server.http}{form.path}",
                        body,
                        grpc=form.grpc,
                        in_flight=flight,
                        seconds=seconds,
                        reply_bytes=60,
                        headers=() if form.grpc else (f"content-type: {form.kind}",),
                        cpu=lambda: _cpu(pid),
                    )
                    row = found.setdefault(f"{form.name}, {flight} in flight", {})
                    row.setdefault("calls_per_second", []).append(window.rate)
                    row.setdefault("cpu_us", []).append(window.server_cpu * 1e6)
            print(f"round {turn + 1} of {rounds}", flush=True)
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", type=Path, metavar="twin.onnx", help="a twin of texts")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="of a window (%(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all rounds")
    arguments = parser.parse_args()
    before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        model = arguments.model
        if model is None:
            model = Path(folder) / "twin.onnx"
            model.write_bytes(twins.small_text_twin())
        found = measure(model, arguments.rounds, arguments.seconds)
    print(f"{'':42} {'calls/s':>8} {'of gRPC (low to high)':>24} {'CPU us':>8}")
    for flight in FLIGHTS:
        base = found[f"{forms()[0].name}, {flight} in flight"]["calls_per_second"]
        for form in forms():
            row = found[f"{form.name}, {flight} in flight"]
            rates = row["calls_per_second"]
            ratio = figures.ratios(rates, base)
            middle, cpu = figures.percentile(rates, 0.5), figures.percentile(row["cpu_us"], 0.5)
            name = f"{form.name}, {flight} in flight"
            print(f"{name:42} {middle:8.0f} {f'{ratio:.2f}':>24} {cpu:8.0f}")
    if arguments.json:
        settings = {
            "model": arguments.model.name if arguments.model else "a net that is nearly free",
            "rounds": arguments.rounds,
            "seconds": arguments.seconds,
            "load_average_before": before,
        }
        arguments.json.write_text(json.dumps({"settings": settings, "forms": found}, indent=1))


if __name__ == "__main__":
    main()
