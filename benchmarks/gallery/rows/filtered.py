"""What does a filter cost, at the same recall, when it is new and when it was asked before?"""

from __future__ import annotations

import numpy as np

from benchmarks.gallery import data as exact
from benchmarks.gallery import messages
from benchmarks.gallery.data import Ids
from benchmarks.gallery.matching import Match, Recalls
from benchmarks.gallery.served import ENROL, SEARCH
from benchmarks.gallery.stage import Stage
from benchmarks.serving import wire
from benchmarks.serving.figures import Spread, ratios, spread
from benchmarks.serving.report import Aim
from twinserve.v1 import shared_pb2

TABLE = "Filtered search, one call at a time"
NAME = "filtered"
# Share kept, in hundredths -> how many times as long as unfiltered it may take; None: exact.
SHARES: dict[int, float | None] = {50: 2.0, 10: 10.0, 1: None}
NEW_FILTERS, AGAIN, PROBES = 12, 200, 200
SEED = 17


def measure(stage: Stage) -> None:
    """Fill a gallery with metadata, and ask with filters that keep 50, 10 and 1 of a hundred."""
    ours, setting = stage.ours, stage.setting
    count = min(stage.data.count, setting.most_filtered)
    items = stage.data.items[:count]
    buckets = np.random.default_rng(SEED).integers(0, messages.BUCKETS, count)
    with ours.turn():
        space = ours.create(NAME, filtered=True)
        bodies = ours.enrol_bodies(stage.folder / "filtered", NAME, space, items, buckets=buckets)
        try:
            found = stage.load.ask(
                "all_of", port=ours.port, path=ENROL, bodies=str(bodies), in_flight=4
            )
            if found["failed"]:
                raise RuntimeError(f"enrolments failed, by status: {found['failed']}")
            ours.work_off(NAME)
            ours.settle()
            _compare(stage, space, items, buckets)
        finally:
            bodies.unlink()
            ours.delete(NAME)
            ours.settle()


def _compare(stage: Stage, space: str, items: exact.Vectors, buckets: Ids) -> None:
    probes = stage.data.probes[:PROBES]
    matches: dict[int, Match] = {}
    for share in (100, *SHARES):
        kept = np.flatnonzero(buckets < share)
        truth = kept[exact.nearest(items[kept], probes)]
        wanted = messages.kept(0, share) if share < 100 else None

        def recall(
            ef: int,
            wanted: shared_pb2.Filter | None = wanted,
            truth: Ids = truth,
        ) -> float:
            return stage.ours.recall(
                NAME, space, stage.data, ef, 1, kept=wanted, truth=truth, probes=probes
            )

        matches[share] = Recalls(recall).match(stage.target)
    warm: dict[int, list[float]] = {share: [] for share in matches}
    cold: dict[int, list[float]] = {share: [] for share in SHARES}
    for turn in range(stage.setting.turns):
        for share, match in matches.items():
            wanted = messages.kept(0, share) if share < 100 else None
            again = [
                messages.search(NAME, probe[None], space, match.ef, kept=wanted) for probe in probes
            ]
            warm[share].append(_median_wait(stage, again, AGAIN))
            if share == 100:
                continue
            # Each keeps another stretch of the buckets, and none was asked before.
            starts = np.arange(NEW_FILTERS) + 1 + turn * NEW_FILTERS
            new = [
                messages.search(
                    NAME, probe[None], space, match.ef, kept=_stretch(int(start), share)
                )
                for start, probe in zip(starts, probes, strict=False)
            ]
            cold[share].append(_median_wait(stage, new, NEW_FILTERS))
    for share, match in matches.items():
        if share == 100:
            _line(stage, "unfiltered", "", match, spread(warm[100]), None, None)
            continue
        most = SHARES[share]
        for name, waits in (("warm", warm[share]), ("first asked", cold[share])):
            times = ratios(waits, warm[100])
            _line(stage, f"{share} % kept", name, match, spread(waits), times, most)


def _stretch(start: int, share: int) -> shared_pb2.Filter:
    """Keep as many buckets from elsewhere; what runs over the end of the hundred begins anew."""
    first, last = start % 100, start % 100 + share
    if last <= 100:
        return messages.kept(first, share)
    parts = [messages.kept(first, 100 - first), messages.kept(0, last - 100)]
    return shared_pb2.Filter(any=shared_pb2.FilterList(filters=parts))


def _median_wait(stage: Stage, bodies: list[bytes], count: int) -> float:
    with wire.connected(stage.ours.port, SEARCH) as opened:
        ended = wire.closed(opened, bodies, 1, 120.0, most=count)
    if len(ended) != count or any(call.status != wire.OK for call in ended):
        raise RuntimeError("filtered searches failed")
    return float(np.median([call.seconds for call in ended]))


def _line(
    stage: Stage,
    load: str,
    when: str,
    match: Match,
    waits: Spread,
    times: Spread | None,
    most: float | None,
) -> None:
    figures = {
        "asked": when,
        "recall": str(match),
        "ef": str(match.ef),
        "p50 ms": f"{Spread(waits.median * 1e3, waits.low * 1e3, waits.high * 1e3):.2f}",
        "of unfiltered": f"{times:.2f}" if times else "",
    }
    aims = []
    if times is not None:
        aims.append(Aim(f"recall >= 0.99 ({match.recall:.4f})", match.recall >= 0.99))
        if most is not None:
            told = f"{when}: at most {most:g} times the unfiltered ({times:.2f})"
            aims.append(Aim(told, times.median <= most))
        else:
            aims.append(Aim(f"exact ({match.recall:.4f})", match.recall >= 0.9999))
    stage.line(TABLE, load, "ours", figures, aims)
