"""What the stores have in common: clients in processes of their own, recall, and the commands.

Clients are spread over as many processes as there are processors, a thread each within: as with our
own load, the store shares the machine with whoever asks it.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from benchmarks.gallery.data import Data, Vectors, recall
from benchmarks.gallery.workers import answer
from benchmarks.serving.figures import percentile
from benchmarks.serving.machine import cores

M, EF_CONSTRUCTION, K = 16, 200, 10
CHECKED = 500  # probes that recall is counted over
START_SECONDS = 60.0

Ask = Callable[[Vectors], Sequence[int]]  # one probe -> the ids found


class Store(Protocol):
    """One store, over its own server."""

    def start(self, folder: Path) -> str:
        """Start the server on a new folder, and return what it is, with its version."""
        ...

    def fill(self, items: Vectors, threads: int) -> None:
        """Insert all items, numbered from 0, and build the index."""
        ...

    def place(self) -> Any:
        """Where clients find it; pickled."""
        ...

    def widen(self, ef: int) -> None:
        """Search with this breadth, where the server has to be told."""
        ...

    def stop(self) -> None:
        """End the server."""
        ...


def serve(store: Store, connect: Callable[[Any, int], Ask]) -> None:
    """Answer the commands about a store.

    Args:
        store: asked for everything but searches.
        connect: (place, ef) -> a client; a function of a module, since processes are started.
    """
    known: dict[str, Any] = {}

    def start(folder: str, data: str) -> dict[str, Any]:
        known["data"] = Data("", Path(data))
        return {"version": store.start(Path(folder))}

    def fill(threads: int) -> dict[str, float]:
        began = time.perf_counter()
        store.fill(known["data"].items, threads)
        return {"seconds": time.perf_counter() - began}

    def count(ef: int) -> dict[str, float]:
        store.widen(ef)
        data = known["data"]
        ask = connect(store.place(), ef)
        found = np.full((min(CHECKED, len(data.probes)), K), -1, np.int64)
        for number, probe in enumerate(data.probes[: len(found)]):
            ids = list(ask(probe))[:K]
            found[number, : len(ids)] = ids
        return {"recall": recall(found, data.truth[: len(found)])}

    def rate(ef: int, clients: int, seconds: float, warm: float) -> dict[str, float]:
        store.widen(ef)
        return together(connect, store.place(), ef, known["data"].probes, clients, seconds, warm)

    handlers: dict[str, Callable[..., dict[str, Any] | None]] = {
        "start": start,
        "fill": fill,
        "recall": count,
        "rate": rate,
    }
    for name in ("bench",):  # what only one of them has
        if hasattr(store, name):
            handlers[name] = getattr(store, name)
    try:
        answer(handlers)
    finally:
        store.stop()


def together(
    connect: Callable[[Any, int], Ask],
    place: Any,
    ef: int,
    probes: Vectors,
    clients: int,
    seconds: float,
    warm: float,
) -> dict[str, float]:
    """Have so many clients search one probe after the other: searches per second, and waits."""
    context = multiprocessing.get_context("spawn")
    processes = min(clients, cores())
    shares = [clients // processes + (i < clients % processes) for i in range(processes)]
    ready, out = context.Barrier(processes), context.Queue()
    started = [
        context.Process(
            target=_some, args=(connect, place, ef, probes, share, seconds, warm, ready, out, i)
        )
        for i, share in enumerate(shares)
    ]
    for one in started:
        one.start()
    waits: list[float] = []
    for _ in started:
        waits += out.get(timeout=warm + seconds + START_SECONDS)
    for one in started:
        one.join()
    if not waits:
        raise RuntimeError(f"no search was answered within {seconds} s")
    return {
        "per_second": len(waits) / seconds,
        "p50": percentile(waits, 0.5),
        "p99": percentile(waits, 0.99),
    }


def _some(
    connect: Callable[[Any, int], Ask],
    place: Any,
    ef: int,
    probes: Vectors,
    clients: int,
    seconds: float,
    warm: float,
    ready: Any,
    out: Any,
    number: int,
) -> None:
    asks = [connect(place, ef) for _ in range(clients)]
    took: list[list[float]] = [[] for _ in asks]
    ready.wait()
    since = time.perf_counter() + warm

    def go(client: int) -> None:
        ask, mine, turn = asks[client], took[client], 7 * (number * clients + client)
        while (began := time.perf_counter()) < since + seconds:
            ask(probes[turn % len(probes)])
            turn += 1
            ended = time.perf_counter()
            if since <= ended < since + seconds:
                mine.append(ended - began)

    threads = [threading.Thread(target=go, args=(client,)) for client in range(clients)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    out.put([wait for mine in took for wait in mine])


def free_port() -> int:
    """Return a port that was free just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def await_port(port: int, process: subprocess.Popen[Any]) -> None:
    """Wait until somebody listens there.

    Raises:
        RuntimeError: nobody did in time, or the process ended.
    """
    until = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < until:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.1)
    raise RuntimeError(f"{process.args!r} did not listen on its port: exit code {process.poll()}")


def end(process: subprocess.Popen[Any] | None) -> None:
    """End a server."""
    if process is None or process.poll() is not None:
        return
    process.terminate()
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def nobody() -> dict[str, Any]:
    """Return the arguments of a process that must not be root's, where this one is."""
    return {"user": "nobody", "group": "nogroup"} if os.getuid() == 0 else {}
