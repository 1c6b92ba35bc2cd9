"""How long do small calls wait while a gallery is filled and its graphs are built and kept?"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

from benchmarks.gallery import messages
from benchmarks.gallery.served import ENROL, GET, SEARCH
from benchmarks.gallery.stage import Stage
from benchmarks.gallery.workers import Worker
from benchmarks.serving import wire
from benchmarks.serving.figures import percentile
from benchmarks.serving.report import Aim
from twinserve.v1 import gallery_service_pb2 as pb

TABLE = "The longest waits of small calls"
WATCHED, BESIDE = "watched", "stalls"  # galleries
WATCHED_ITEMS = 100
IN_FLIGHT = 4
LONGEST = 0.020  # seconds
MOST = 7200.0


def measure(stage: Stage) -> None:
    """Watch the server idle, while a second gallery is filled, and while its debt is worked off."""
    ours, setting = stage.ours, stage.setting
    count = min(stage.data.count, setting.most_filtered)
    with watching(stage, "idle"):
        time.sleep(setting.rests)
    space = ours.create(BESIDE)
    bodies = ours.enrol_bodies(stage.folder / "stalls", BESIDE, space, stage.data.items[:count])
    try:
        with watching(stage, f"while {count:,} items are enrolled"):
            stage.load.ask(
                "all_of", port=ours.port, path=ENROL, bodies=str(bodies), in_flight=IN_FLIGHT
            )
        with watching(stage, "while a graph is built, kept and merged"):
            ours.work_off(BESIDE)
            ours.settle(asked=True)
    finally:
        bodies.unlink()
        ours.delete(BESIDE)
        ours.settle()


@contextlib.contextmanager
def watching(stage: Stage, load: str, *, wanted: bool = True) -> Iterator[None]:
    """Ping the server from a process of its own all the while, and add a line of what that found.

    GetGallery, and Search of one probe in a gallery of a hundred items, in turn. The aim is counted
    where nothing but the server's own work is under way, or nothing at all.
    """
    if not wanted:
        yield
        return
    ours, setting = stage.ours, stage.setting
    space = ours.create(WATCHED)
    some = stage.data.items[:WATCHED_ITEMS]
    first = messages.enrol(WATCHED, [str(i) for i in range(len(some))], some, space)
    with wire.connected(ours.port, ENROL) as opened:
        wire.closed(opened, [first], 1, 30.0, most=1)
    request = pb.GetGalleryRequest(name=WATCHED).SerializeToString()
    gets = messages.keep(stage.folder / "gets", [wire.prefixed(request)])
    searches = messages.keep(
        stage.folder / "searches",
        [messages.search(WATCHED, probe[None], space, 16) for probe in stage.data.probes[:50]],
    )
    end = stage.folder / "ended"
    end.unlink(missing_ok=True)
    pings = Worker("the pings", "benchmarks.gallery.load")
    try:
        pings.begin(
            "tick",
            port=ours.port,
            calls=[(GET, str(gets)), (SEARCH, str(searches))],
            every=setting.pings,
            until=str(end),
            most=MOST,
        )
        yield
        end.touch()
        found = pings.result()["calls"]
    finally:
        end.touch()
        pings.close()
    waits = [seconds for seconds, _, status in found if status == wire.OK]
    if not waits:
        return
    worst = sorted(waits, reverse=True)[:3]
    aims = []
    if "enrolled" not in load:
        told = f"no call waits longer than 20 ms ({worst[0] * 1e3:.1f})"
        aims = [Aim(told, worst[0] <= LONGEST)] if load != "idle" else []
    stage.line(
        TABLE,
        load,
        "ours",
        {
            "calls": f"{len(found):,}",
            "failed": f"{len(found) - len(waits)}",
            "p50 ms": f"{percentile(waits, 0.5) * 1e3:.2f}",
            "p99 ms": f"{percentile(waits, 0.99) * 1e3:.1f}",
            "longest ms": ", ".join(f"{wait * 1e3:.1f}" for wait in worst),
            "sent late, longest ms": f"{max(late for _, late, _ in found) * 1e3:.1f}",
            "longer than 20 ms": f"{sum(wait > LONGEST for wait in waits)}",
        },
        aims,
        worst=sorted(waits, reverse=True)[:100],
    )
