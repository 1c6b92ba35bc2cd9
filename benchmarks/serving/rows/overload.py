"""What becomes of the server when more comes than it can do, and goes on coming?

Goodput is what was answered within its deadline, against the most that the server answers in a
closed loop with 32 calls in flight. Refusals should cost a caller no more than the wire does. Every
call that was due is counted once: answered, refused, expired, or lost; see `sort`.
"""

from __future__ import annotations

import contextlib
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.serving import figures, forms, h2load, servers, wire
from benchmarks.serving.report import Aim, Line, Report
from benchmarks.serving.servers import Server
from benchmarks.serving.stage import Setting
from benchmarks.serving.subjects import Subject

TABLE = "Overload, open loop"
LEAST = {1.5: 0.9, 3.0: 0.85, 10.0: 0.8}  # times the capacity -> goodput, of the best
MOST_WAIT = 0.010  # seconds that a refusal's p99 may lie above an echo's
MOST_GROWTH = 0.02  # of memory, between the middle and the end
LEAST_AFTER = 0.95  # of the capacity, when it is over
DEADLINE = 1.0
CONNECTIONS = 8
# More calls a second than the generator can send beside a server on two cores are not sent.
MOST_CALLS = 12_000.0
REFUSED = {wire.RESOURCE_EXHAUSTED, wire.UNAVAILABLE}
EXPIRED = {wire.DEADLINE_EXCEEDED, wire.CANCELLED, wire.LOST}


def measure(
    subject: Subject, setting: Setting, report: Report, seconds: float, factors: tuple[float, ...]
) -> None:
    """Overload a fresh server on one twin, each factor for so many seconds."""
    body = forms.CONTRACT.body(subject, [forms.given(subject)])
    with servers.ours(subject.path, still=False) as ours, servers.echo("poll", 8) as echo:
        best = _capacity(ours, body, setting.seconds)
        for factor in factors:
            rate = min(factor * best, MOST_CALLS)
            with _watched(ours) as resident:
                calls = _offered(ours, body, rate, seconds)
            memory = grown(resident)
            with echo.turn():
                echoed = _offered(echo, body, rate, min(seconds, setting.seconds))
            found = sort(calls, round(rate * seconds), seconds)
            idle = figures.percentile([call.seconds for call in echoed], 0.99)
            again = _capacity(ours, body, setting.seconds)
            report.lines.append(
                Line(
                    TABLE,
                    str(subject),
                    f"{factor:g} x: {rate:.0f} a second"
                    + (" (all we can send)" if rate < factor * best else ""),
                    "ours",
                    {
                        "goodput, of best": f"{found.goodput / best:.2f}",
                        "refused": f"{len(found.refusals) / found.due:.1%}",
                        "expired": f"{found.expired / found.due:.1%}",
                        "lost": str(found.lost),
                        "refusals' p99 ms": _milliseconds(found.refusals),
                        "echo's p99 ms": f"{1e3 * idle:.1f}",
                        "sent late, p99 ms": f"{1e3 * found.late:.1f}",
                        "memory": f"{memory:+.1%}",
                        "afterwards, of best": f"{again / best:.2f}",
                    },
                    aims=(
                        *_aims(factor, found, best, idle),
                        Aim(f"memory flat ({memory:+.1%})", memory < MOST_GROWTH),
                        Aim(
                            f"afterwards as before ({again / best:.2f})", again > LEAST_AFTER * best
                        ),
                    ),
                    windows={
                        "best": best,
                        "goodput": found.goodput,
                        "statuses": dict(Counter(str(call.status) for call in calls)),
                        "refusals": _sketch(found.refusals),
                        "resident": resident,
                    },
                )
            )


@dataclass(frozen=True)
class Found:
    """What became of the calls of one overload."""

    due: int  # all of them
    goodput: float  # calls a second answered within their deadline
    refusals: tuple[float, ...]  # seconds until each was refused
    expired: int  # calls that had nothing by their deadline
    lost: int  # calls that ended in any other way
    late: float  # p99 of what the generator was late by


def sort(calls: Sequence[wire.Call], due: int, seconds: float) -> Found:
    """Sort calls by what became of them.

    - Good: answered within the deadline.
    - Refused: told RESOURCE_EXHAUSTED or UNAVAILABLE, at whatever age, or DEADLINE_EXCEEDED before
      the deadline. However late it was, its wait is among the refusals'.
    - Expired: at its deadline or after it, it was answered, told that the deadline is over, or
      ended without a status, as grpcio ends it. A client's own clock would have ended it by then.
    - Lost: everything else, those included that no connection was left for.

    Args:
        calls: those that were begun, all ended.
        due: how many were to be begun.
        seconds: for so long.
    """
    good, expired, refusals = 0, 0, []
    for call in calls:
        # A client's clock runs from when it sends; its caller waits from when the call was due.
        over = call.ended - call.sent >= DEADLINE
        if call.status == wire.OK and call.seconds <= DEADLINE:
            good += 1
        elif call.status in REFUSED or (call.status == wire.DEADLINE_EXCEEDED and not over):
            refusals.append(call.seconds)
        elif call.status == wire.OK or (over and call.status in EXPIRED):
            expired += 1
    lost = due - good - len(refusals) - expired
    late = figures.percentile([call.sent - call.due for call in calls], 0.99)
    return Found(due, good / seconds, tuple(refusals), expired, lost, late)


def _aims(factor: float, found: Found, best: float, idle: float) -> tuple[Aim, ...]:
    least, share = LEAST[factor], found.goodput / best
    aims = [
        Aim(f"goodput >= {least} of the best ({share:.2f})", share >= least),
        Aim(f"no call lost ({found.lost})", found.lost == 0),
    ]
    if found.refusals:
        more = figures.percentile(found.refusals, 0.99) - idle
        text = f"refusals' p99 at most 10 ms above an echo's ({1e3 * more:+.1f} ms)"
        aims.append(Aim(text, more <= MOST_WAIT))
    return tuple(aims)


def _sketch(seconds: Sequence[float]) -> dict[str, float]:
    shares = (0.5, 0.9, 0.99, 1.0) if seconds else ()
    return {str(share): figures.percentile(seconds, share) for share in shares}


def _milliseconds(seconds: Sequence[float]) -> str:
    return f"{1e3 * figures.percentile(seconds, 0.99):.1f}" if seconds else "none"


@contextlib.contextmanager
def _watched(server: Server) -> Iterator[list[int]]:
    """Note the resident memory of a server every half second."""
    resident: list[int] = []
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.5):
            resident.append(server.usage().resident)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield resident
    finally:
        over.set()
        thread.join()


def grown(resident: Sequence[int]) -> float:
    """Return by which share the most of the last third exceeds the most of the middle third.

    The first third is when the queue fills, and buffers with it.
    """
    third = len(resident) // 3
    if not third:
        raise RuntimeError(f"memory was read {len(resident)} times; overload for longer")
    return figures.growth(max(resident[third : 2 * third]), max(resident[-third:]))


def _capacity(server: Server, body: bytes, seconds: float) -> float:
    """Return calls a second in a closed loop."""
    with server.connected(CONNECTIONS) as connections:
        wire.closed(connections, [body], 32, 0.5)
        calls = wire.closed(connections, [body], 32, seconds)
    good = [call.ended for call in calls if call.status == wire.OK]
    return h2load.steady_rate(np.array(good))


def _offered(server: Server, body: bytes, rate: float, seconds: float) -> list[wire.Call]:
    times: list[float] = (np.arange(round(rate * seconds)) / rate).tolist()
    with server.connected(CONNECTIONS, timeout=DEADLINE) as connections:
        return wire.paced(connections, [body], times)
