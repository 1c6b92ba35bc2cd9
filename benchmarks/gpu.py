"""Shares of raw onnxruntime CUDA that our server reaches, with CUDA graphs and without.

    .venv/bin/python -m benchmarks.gpu --minilm minilm.onnx

For a machine with an NVIDIA card, twinserve[gpu] and h2load. The twins are a ResNet-50 with seeded
weights and all-MiniLM-L6-v2 as `twinserve import` writes it, both brought to fp16 here and kept in
`--work`; with `--make` that is all, and any machine with twinserve[train] can do it. `--twin` names
other files. The limit is a session of onnxruntime on the same file with its inputs and output bound
on the card, one thread, at the best of several batch sizes. Limit and servers take turns in one
run, those that wait are held still, and shares are medians over the turns. Prints one JSON line a
figure. With `--device cpu` it tries itself out on a machine without a card; such figures say
nothing of a card.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.serving import forms, h2load, making, servers
from benchmarks.serving.limit import LONGEST_RUN
from benchmarks.serving.subjects import Subject
from twinserve import manifest
from twinserve.server.runtime import providers
from twinserve.server.runtime.buckets import buckets_of
from twinserve.server.runtime.gpu import GpuRunning, open_on_card
from twinserve.server.runtime.planning import Setting
from twinserve.server.runtime.providers import CPU, Device, Runtime
from twinserve.server.runtime.running import CpuRunning, Running
from twinserve.server.runtime.sessions import Onnxruntime, open_session

SIZES = (1, 8, 16, 32, 64, 128)
IN_FLIGHT = (1, 32, 256)
CALL = 64  # items of the large calls
LARGE_IN_FLIGHT = 4
GRAPHS = {"with graphs": (), "without graphs": ("--provider-option", "enable_cuda_graph=0")}


def raw(subject: Subject, device: Device, *, graphs: bool) -> Running:
    """Open the twin with nothing around it."""
    contract, library = subject.manifest.input, Onnxruntime()
    if device.provider == CPU:
        session = open_session(subject.path, device, Setting(1, 2), library)
        return CpuRunning(session, contract, library)
    options = {**device.options, **({} if graphs else {"enable_cuda_graph": "0"})}
    device = Device(device.provider, options)
    card = open_on_card(subject.path, device, Setting(1, 1), library)
    buckets = buckets_of(contract, SIZES[-1], SIZES[-1] * 64)
    running = GpuRunning(card, contract, subject.manifest.dimension, device, library, buckets)
    running.prepare()
    return running


def rate(running: Running, rows: list[np.ndarray], seconds: float) -> float:
    """Rows a second of one batch over and over."""
    running.run(rows)
    count, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        running.run(rows)
        count += len(rows)
    return count / (time.perf_counter() - began)


def measure(subject: Subject, device: Device, flag: str, seconds: float, turns: int) -> None:
    """Print every figure of one twin."""

    def say(**line: object) -> None:
        shown = {k: round(v, 3) if isinstance(v, float) else v for k, v in line.items()}
        print(json.dumps({"twin": subject.path.name, "device": device.label, **shown}), flush=True)

    row = subject.row()
    both = (True, False) if device.provider != CPU else (False,)
    opened = {graphs: raw(subject, device, graphs=graphs) for graphs in both}
    tried: dict[tuple[bool, int], float] = {}
    for graphs, running in opened.items():
        for size in SIZES:
            reached = tried[graphs, size] = rate(running, [row] * size, seconds / 5)
            say(raw_rows_per_second=reached, batch=size, graphs=graphs)
            if 2 * size / reached > LONGEST_RUN:
                break
    graphs, size = max(tried, key=tried.__getitem__)
    limit = opened.pop(graphs)
    opened.clear()  # or the card holds both
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        ours = {
            name: stack.enter_context(servers.ours(subject.path, ("--device", flag, *flags)))
            for name, flags in (GRAPHS if device.provider != CPU else {"on the CPU": ()}).items()
        }
        bodies = {}
        for items in (1, CALL):
            bodies[items] = folder / f"{items}.bin"
            inputs = [forms.given(subject, number) for number in range(items)]
            bodies[items].write_bytes(forms.CONTRACT.body(subject, inputs))
        rounds = [(1, flight) for flight in IN_FLIGHT] + [(CALL, LARGE_IN_FLIGHT)]
        for items, flight in rounds:
            shares: dict[str, list[tuple[float, float, float]]] = {name: [] for name in ours}
            for _ in range(turns):
                raw_rate = rate(limit, [row] * size, seconds)
                for name, server in ours.items():
                    least = 4 * subject.manifest.dimension * items
                    with server.turn():
                        window = server.load(bodies[items], flight, seconds, least)
                    calls = window.rate
                    wait = statistics.median(window.latencies)
                    shares[name].append((calls * items, calls * items / raw_rate, wait))
            for name, found in shares.items():
                rows, share, wait = (
                    statistics.median(column) for column in zip(*found, strict=True)
                )
                say(
                    server=name, items=items, in_flight=flight, rows_per_second=rows,
                    share_of_raw=share, p50_ms=1000 * wait,
                )  # fmt: skip


def subjects(given: argparse.Namespace) -> list[Subject]:
    """Return the twins named, or else the usual ones, making what is not there."""
    if given.twin:
        return [Subject(path.stem, manifest.read(path).precision, path) for path in given.twin]
    whole = [making.made(given.work, "resnet50")]
    if given.minilm:
        whole.append(Subject("minilm", "fp32", given.minilm))
    return [making.lowered(subject, "fp16", given.work) for subject in whole]


def main() -> None:
    """Measure each twin."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--minilm", type=Path, help="all-MiniLM-L6-v2 as a twin, in fp32")
    parser.add_argument("--twin", type=Path, action="append", help="these files, and no others")
    parser.add_argument("--work", type=Path, default=Path("runs/gpu"), help="for made twins")
    parser.add_argument("--make", action="store_true", help="make the twins, and measure nothing")
    parser.add_argument("--device", default="cuda", help="cuda, cuda:N or cpu (%(default)s)")
    parser.add_argument("--seconds", type=float, default=5.0, help="of one window (%(default)s)")
    parser.add_argument("--turns", type=int, default=3)
    given = parser.parse_args()
    if given.make:
        print(*(subject.path for subject in subjects(given)), sep="\n")
        return
    if not h2load.available():
        parser.error("h2load is missing; install nghttp2-client")
    device = providers.choose(given.device, Runtime.installed())
    for subject in subjects(given):
        measure(subject, device, given.device, given.seconds, given.turns)


if __name__ == "__main__":
    main()
