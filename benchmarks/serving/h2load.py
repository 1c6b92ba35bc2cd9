"""Closed-loop load by h2load (Debian: nghttp2-client), which is far lighter than any Python.

It sends one body over and over, as gRPC on one connection with many streams, or as HTTP/1.1 on as
many connections. Figures are taken from its log of single requests, since replies come in batches,
and a count between two instants would be off by up to a batch at either end. It does not read
gRPC's status: a refusal looks like an empty reply, so that the bytes received are checked.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

GRPC_HEADERS = ("content-type: application/grpc", "te: trailers")
Times = NDArray[np.float64]

_CONNECT = 0.05  # seconds that h2load takes before its first request


@dataclass(frozen=True)
class Window:
    """What one window of load gave."""

    rate: float  # replies per second
    latencies: tuple[float, ...]  # seconds, of the replies in the window
    own_cpu: float  # CPU seconds of the generator, per reply
    server_cpu: float  # CPU seconds of the server, per reply; 0 where it was not asked for


@dataclass(frozen=True)
class Summary:
    """The lines that h2load prints at its end."""

    succeeded: int
    failed: int  # other than by the end of the window
    data: int  # bytes of replies' bodies


def available() -> bool:
    """Tell whether h2load is installed."""
    return shutil.which("h2load") is not None


def run(
    url: str,
    body: Path,
    *,
    grpc: bool,
    in_flight: int,
    seconds: float,
    warm: float = 0.5,
    reply_bytes: int = 0,
    headers: tuple[str, ...] = (),
    cpu: Callable[[], float] | None = None,
) -> Window:
    """Keep so many requests in flight for a time.

    Args:
        url: of the call.
        body: a file; for gRPC with its prefix of five bytes.
        grpc: over HTTP/2 on one connection, else HTTP/1.1 on `in_flight` ones.
        in_flight: requests at a time.
        seconds: of the window.
        warm: seconds before it, which count nowhere.
        reply_bytes: least size of a reply's body.
        headers: "name: value" each; gRPC's own are added.
        cpu: tells the CPU seconds that the server has used so far.

    Raises:
        RuntimeError: h2load failed, or replies did.
    """
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder, "log")
        command = [
            "h2load",
            "-t",
            "1",
            "-D",
            f"{round(1e3 * (seconds + warm))}ms",
            f"--log-file={log}",
        ]
        command += ["-d", str(body)]
        if grpc:
            command += ["-c", "1", "-m", str(in_flight)]
            headers = (*GRPC_HEADERS, *headers)
        else:
            command += ["--h1", "-c", str(in_flight), "-m", "1"]
        for header in headers:
            command += ["-H", header]
        began = time.time()
        process = subprocess.Popen(
            [*command, url], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        assert process.stdout is not None
        time.sleep(_CONNECT + warm)
        before, before_at = cpu() if cpu else 0.0, time.time()
        printed = process.stdout.read()
        after, after_at = cpu() if cpu else 0.0, time.time()
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        process.stdout.close()
        if process.returncode:
            raise RuntimeError(f"h2load ended with {process.returncode}: {printed[-300:]}")
        check(parse(printed), reply_bytes, url)
        started, latencies = read_log(log.read_text())
    ended = started + latencies
    inside = ended > began + _CONNECT + warm
    rate = steady_rate(ended[inside], seconds / 3)
    whole = len(ended) or 1
    return Window(
        rate,
        tuple(latencies[inside].tolist()),
        (used.ru_utime + used.ru_stime) / whole,
        (after - before) / (rate * (after_at - before_at)) if cpu else 0.0,
    )


def steady_rate(times: Times, least: float = 0.0) -> float:
    """Return events per second where they come in bursts: from the end of one to that of another.

    A burst ends where nothing follows for long: at the widest gap of the first quarter of the
    time, and at that of the last.

    Args:
        times: of the events, in seconds.
        least: seconds that must lie between the two.

    Raises:
        RuntimeError: too few events for it, or too close together.
    """
    times = np.sort(times)
    if len(times) >= 4:
        gaps = np.diff(times)
        quarter = (times[-1] - times[0]) / 4
        early = np.flatnonzero(times[:-1] <= times[0] + quarter)
        late = np.flatnonzero(times[:-1] >= times[-1] - quarter)
        first = early[np.argmax(gaps[early])]
        last = late[np.argmax(gaps[late])] if len(late) else len(times) - 1
        if last > first and times[last] - times[first] >= least:
            return float((last - first) / (times[last] - times[first]))
    raise RuntimeError(f"{len(times)} replies in the window, all at once; make it longer")


def parse(printed: str) -> Summary:
    """Read what h2load prints at its end.

    Raises:
        RuntimeError: it printed no summary.
    """
    codes = re.search(r"^status codes: (\d+) 2xx, (\d+) 3xx, (\d+) 4xx, (\d+) 5xx$", printed, re.M)
    data = re.search(r"^traffic: .* \((\d+)\) data$", printed, re.M)
    if codes is None or data is None:
        raise RuntimeError(f"h2load printed no summary: {printed[-300:]!r}")
    good, *bad = (int(count) for count in codes.groups())
    return Summary(good, sum(bad), int(data[1]))


def check(summary: Summary, reply_bytes: int, url: str) -> None:
    """Refuse a window whose replies were not all whole.

    Raises:
        RuntimeError: statuses other than 2xx, no replies, or bodies smaller than they must be.
    """
    if summary.failed or not summary.succeeded:
        raise RuntimeError(f"{url}: {summary.succeeded} replies, {summary.failed} failures")
    if summary.data < 0.98 * summary.succeeded * reply_bytes:
        raise RuntimeError(
            f"{url}: {summary.data} bytes in {summary.succeeded} replies of {reply_bytes} or more: "
            "some were refused"
        )


def read_log(
    text: str,
) -> tuple[Times, Times]:
    """Read h2load's log: (start, seconds taken) of each answered request, in seconds."""
    rows = [line.split("\t") for line in text.splitlines()]
    good = [(int(row[0]), int(row[2])) for row in rows if len(row) >= 3 and row[1].startswith("2")]
    values = np.array(good, dtype=np.float64).reshape(-1, 2) / 1e6
    return values[:, 0], values[:, 1]
