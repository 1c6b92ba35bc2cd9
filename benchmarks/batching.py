"""What batching is worth: the same server with batches and with one run per row, in one run.

    .venv/bin/python benchmarks/batching.py --model runs/demo/twin.onnx

Both servers are up at once and are asked in turn, A B A B, so that a machine whose speed drifts
slows both; ratios are taken pair by pair. Clients are coroutines of one process, each with one call
of one input in flight. Prints a row per (clients, input) and writes every figure as JSON lines.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import grpc
import numpy as np
from PIL import Image

from twinserve import manifest
from twinserve.manifest import ImageInput
from twinserve.v1 import embedding_service_pb2 as pb
from twinserve.v1 import embedding_service_pb2_grpc as rpc
from twinserve.v1 import shared_pb2

SERVERS: dict[str, list[str]] = {"batched": [], "row by row": ["--max-batch", "1"]}


@dataclass(frozen=True)
class Figures:
    """One server's answer to one load."""

    server: str
    input: str
    clients: int
    repeat: int
    calls_per_second: float
    p50_ms: float
    p99_ms: float
    mean_batch: float


def requests(contract: ImageInput, kind: str) -> list[pb.EmbedRequest]:
    """Make 64 calls of one random picture each, as PNG or as pixels."""
    generator = np.random.default_rng(0)
    shape = (contract.height, contract.width, contract.channels)
    made = []
    for _ in range(64):
        pixels = generator.integers(0, 256, shape, dtype=np.uint8)
        if kind == "png":
            file = io.BytesIO()
            Image.fromarray(pixels.squeeze()).save(file, "PNG")
            one = shared_pb2.Input(image=file.getvalue())
        else:
            one = shared_pb2.Input(
                tensor=shared_pb2.Tensor(
                    data_type=shared_pb2.DATA_TYPE_UINT8, shape=shape, data=pixels.tobytes()
                )
            )
        made.append(pb.EmbedRequest(inputs=[one]))
    return made


def batches(http: str) -> tuple[float, float]:
    """Read (rows, runs) from the metric."""
    with urllib.request.urlopen(f"http://{http}/metrics") as reply:
        text = reply.read().decode()
    found = {
        kind: re.search(rf"^twinserve_batch_rows_{kind}\{{.*\}} (\S+)$", text, re.MULTILINE)
        for kind in ("sum", "count")
    }
    rows, runs = (float(match[1]) if match else 0.0 for match in found.values())
    return rows, runs


async def load(
    target: str, calls: list[pb.EmbedRequest], clients: int, seconds: float
) -> list[float]:
    """Keep `clients` calls in flight for a time; return each call's seconds."""
    async with grpc.aio.insecure_channel(target) as channel:
        stub = rpc.EmbeddingServiceStub(channel)
        for call in calls:
            await stub.Embed(call)
        taken: list[float] = []
        until = time.perf_counter() + seconds

        async def client(number: int) -> None:
            while (began := time.perf_counter()) < until:
                await stub.Embed(calls[(number + len(taken)) % len(calls)])
                taken.append(time.perf_counter() - began)

        await asyncio.gather(*(client(number) for number in range(clients)))
        return taken


def measure(
    name: str, address: tuple[str, str], kind: str, calls: list[pb.EmbedRequest], clients: int,
    repeat: int, seconds: float,
) -> Figures:  # fmt: skip
    """Put one load on one server."""
    rows, runs = batches(address[1])
    began = time.perf_counter()
    taken = asyncio.run(load(address[0], calls, clients, seconds))
    lasted = time.perf_counter() - began
    rows_after, runs_after = batches(address[1])
    p50, p99 = np.quantile(taken, [0.5, 0.99]) * 1e3
    return Figures(
        name, kind, clients, repeat, len(taken) / lasted, float(p50), float(p99),
        (rows_after - rows) / (runs_after - runs),
    )  # fmt: skip


@contextmanager
def serving(model: Path, flags: list[str], folder: Path) -> Iterator[tuple[str, str]]:
    """Run a server; gives its gRPC and HTTP addresses."""
    command = [sys.executable, "-m", "twinserve.server", "--model", str(model)]
    command += ["--data-dir", str(folder), "--grpc-port", "0", "--http-port", "0", *flags]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as server:
        assert server.stdout is not None
        said = re.search(r"grpc=(\S+) http=(\S+)", server.stdout.readline())
        assert said, "the server did not start"
        try:
            yield said[1], said[2]
        finally:
            server.terminate()


def show(figures: list[Figures]) -> None:
    """Print medians over the repeats, and the ratio of the two servers pair by pair."""
    print("input   clients                calls/s  p50 ms  p99 ms  mean batch")
    for kind, clients in sorted({(one.input, one.clients) for one in figures}):
        speeds = {}
        for name in SERVERS:
            mine = [
                one
                for one in figures
                if (one.server, one.input, one.clients) == (name, kind, clients)
            ]
            speeds[name] = [one.calls_per_second for one in mine]
            rate, p50, p99, mean = (
                statistics.median(getattr(one, key) for one in mine)
                for key in ("calls_per_second", "p50_ms", "p99_ms", "mean_batch")
            )
            print(f"{kind:8}{clients:7}  {name:12}{rate:9.0f}{p50:8.2f}{p99:8.2f}{mean:12.2f}")
        ratios = [a / b for a, b in zip(*speeds.values(), strict=True)]
        middle, low, high = statistics.median(ratios), min(ratios), max(ratios)
        print(f"{'':17}{' over '.join(SERVERS)}: {middle:.2f} ({low:.2f} to {high:.2f})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", type=Path, default=Path("runs/demo/twin.onnx"))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/batching.jsonl"))
    arguments = parser.parse_args()
    contract = manifest.read(arguments.model).input
    if not isinstance(contract, ImageInput):
        parser.error("this benchmark sends pictures; give an image twin")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        addresses = {
            name: stack.enter_context(serving(arguments.model, flags, folder / str(number)))
            for number, (name, flags) in enumerate(SERVERS.items())
        }
        figures = [
            measure(
                name, address, kind, requests(contract, kind), clients, repeat, arguments.seconds
            )
            for kind in ("pixels", "png")
            for clients in (1, 32)
            for repeat in range(arguments.repeats)
            for name, address in addresses.items()
        ]
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text("".join(json.dumps(asdict(one)) + "\n" for one in figures))
    show(figures)


if __name__ == "__main__":
    main()
