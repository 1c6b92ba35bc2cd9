"""Load on our server from a process of its own, over plain sockets or through grpcio.

    python -m benchmarks.gallery.load

Asked by lines of JSON (see `workers`). Requests are bytes made before, and replies are not read
beyond their status: what answers say is checked in another pass.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.gallery.messages import Bodies
from benchmarks.gallery.workers import answer
from benchmarks.serving import wire
from benchmarks.serving.figures import percentile

AGAIN_SECONDS = 0.2  # until refused enrolments are tried again
PATIENCE = 7200.0


def closed(
    port: int,
    path: str,
    bodies: str,
    in_flight: int,
    seconds: float,
    warm: float,
    connections: int = 4,
) -> dict[str, Any]:
    """Keep so many calls in flight: calls per second, and waits in seconds."""
    given = Bodies(Path(bodies))
    with wire.connected(port, path, min(connections, in_flight)) as opened:
        began = time.perf_counter()
        ended = wire.closed(opened, given, in_flight, warm + seconds)
    return _told(ended, began + warm, seconds)


def through_grpcio(
    port: int, path: str, bodies: str, in_flight: int, seconds: float, warm: float
) -> dict[str, Any]:
    """The same through grpcio's synchronous client: a thread for each call in flight."""
    import grpc

    given = [body[5:] for body in Bodies(Path(bodies))]
    ended: list[wire.Call] = []
    began = time.perf_counter()

    def go(number: int) -> None:
        options = [("grpc.use_local_subchannel_pool", 1)]
        with grpc.insecure_channel(f"127.0.0.1:{port}", options=options) as channel:
            call: Any = channel.unary_unary(path)
            turn = number
            while time.perf_counter() < began + warm + seconds:
                sent = time.perf_counter()
                call(given[turn % len(given)])
                turn += in_flight
                ended.append(wire.Call(b"", sent, sent, time.perf_counter(), wire.OK))

    threads = [threading.Thread(target=go, args=(number,)) for number in range(in_flight)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    return _told(ended, began + warm, seconds)


def paced(
    port: int, path: str, bodies: str, per_second: float, seconds: float, connections: int = 4
) -> dict[str, Any]:
    """Begin calls at a steady pace, whatever became of those before; waits count from due."""
    given = Bodies(Path(bodies))
    times = [number / per_second for number in range(int(per_second * seconds))]
    with wire.connected(port, path, connections) as opened:
        began = time.perf_counter()
        ended = wire.paced(opened, given, times)
    return _told(ended, began, seconds)


def all_of(port: int, path: str, bodies: str, in_flight: int) -> dict[str, Any]:
    """Have every request answered once; those that are refused for now are sent again.

    Returns:
        Seconds of all, how many calls were refused, the seconds and calls until the first was, and
        what failed for good.
    """
    given = Bodies(Path(bodies))
    waiting = list(range(len(given) - 1, -1, -1))
    place = {}  # of a call, by its identity
    refused = 0
    until_refused = (0.0, 0)
    failed: list[int] = []
    done = 0

    def begin(connection: wire.Connection) -> None:
        number = waiting.pop()
        call = wire.Call(given[number], time.perf_counter())
        place[id(call)] = number
        connection.begin(call)

    def answered(connection: wire.Connection, call: wire.Call) -> None:
        nonlocal refused, done, until_refused
        number = place.pop(id(call))
        if call.status == wire.OK:
            done += 1
            if waiting:
                begin(connection)
        elif call.status in (wire.RESOURCE_EXHAUSTED, wire.UNAVAILABLE):
            if not refused:
                until_refused = (time.perf_counter() - began, done)
            refused += 1
            waiting.append(number)
        else:
            failed.append(call.status)
        load.ended.clear()  # or all bodies would stay in memory

    with wire.connected(port, path, in_flight) as opened:
        began = time.perf_counter()
        while waiting and not failed:
            load = wire.Load(opened, answered)
            for connection in opened[: len(waiting)]:
                begin(connection)
            load.run((), last=time.perf_counter(), patience=PATIENCE)
            if waiting:
                time.sleep(AGAIN_SECONDS)
        seconds = time.perf_counter() - began
    return {
        "seconds": seconds,
        "calls": done,
        "refused": refused,
        "until_refused": until_refused if refused else (seconds, done),
        "failed": failed,
    }


def tick(
    port: int, calls: Sequence[tuple[str, str]], every: float, until: str, most: float
) -> dict[str, Any]:
    """Send one small call every so many seconds, until a file is there.

    Args:
        port: of the server.
        calls: (method's path, file of bodies), in turn.
        every: seconds from one to the next.
        until: the file.
        most: seconds after which it ends anyhow.

    Returns:
        Of each call how long it waited once sent, how late it was sent, and its status.
    """
    moments: list[tuple[float, float, int]] = []
    end = Path(until)
    with contextlib.ExitStack() as stack:
        opened = [stack.enter_context(wire.connected(port, path)) for path, _ in calls]
        bodies = [Bodies(Path(file)) for _, file in calls]
        began = time.perf_counter()

        def due() -> Any:
            number = 0
            while not end.exists() and number * every < most:
                which = number % len(calls)
                body = bodies[which][number // len(calls) % len(bodies[which])]
                yield began + number * every, opened[which][0], body
                number += 1

        load = wire.Load([one for some in opened for one in some], lambda connection, call: None)
        load.run(due(), last=began, patience=most)
        for call in load.ended:
            moments.append((call.ended - call.sent, call.sent - call.due, call.status))
    return {"calls": moments}


def _told(ended: Sequence[wire.Call], since: float, seconds: float) -> dict[str, Any]:
    """Say what ended within the window, and what failed at any time."""
    inside = [call for call in ended if since <= call.ended < since + seconds]
    waits = [call.seconds for call in inside if call.status == wire.OK]
    failed: dict[str, int] = {}
    for call in ended:
        if call.status != wire.OK:
            failed[str(call.status)] = failed.get(str(call.status), 0) + 1
    if not waits:
        raise RuntimeError(f"no call was answered within {seconds} s; failed: {failed}")
    return {
        "per_second": len(waits) / seconds,
        "p50": percentile(waits, 0.5),
        "p99": percentile(waits, 0.99),
        "longest": max(waits),
        "failed": failed,
        "all": len(ended),
    }


def main() -> None:
    """Answer until standard input ends."""
    answer({one.__name__: one for one in (closed, through_grpcio, paced, all_of, tick)})


if __name__ == "__main__":
    main()
