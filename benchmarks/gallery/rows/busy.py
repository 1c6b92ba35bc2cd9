"""How much longer do searches wait while items come in at half the pace of the index?"""

from __future__ import annotations

import numpy as np

from benchmarks.gallery.data import Vectors
from benchmarks.gallery.served import ENROL, SEARCH
from benchmarks.gallery.stage import GALLERY, Stage, builder_threads, median, share
from benchmarks.gallery.workers import Worker
from benchmarks.serving.report import Aim

TABLE = "Searches while items are enrolled"
OF_BUILD, OF_CALLS = 0.5, 0.2  # of raw hnswlib's build rate, and of what one caller in turn gets
BATCH = 100
MOST_TIMES = 3.0
SEED = 43


def measure(stage: Stage) -> None:
    """Search at a steady pace, quiet and beside enrolments in turns; the gallery grows by it."""
    ours, setting = stage.ours, stage.setting
    with ours.turn():
        ours.work_off(GALLERY)
    match = stage.served_match(stage.target, 1)
    pace = OF_CALLS * stage.served_rate(match.ef, 1, 1)["per_second"]
    rows = OF_BUILD * stage.raw_build[builder_threads()]
    seconds = 2 * setting.seconds
    bodies = stage.bodies(match.ef, 1)
    grower = Worker("the enrolments", "benchmarks.gallery.load")
    first = stage.data.count

    def search() -> dict[str, float]:
        return stage.load.ask(
            "paced", port=ours.port, path=SEARCH, bodies=bodies, per_second=pace, seconds=seconds
        )

    def quiet() -> dict[str, float]:
        with ours.turn():
            ours.settle()
            return search()

    def beside() -> dict[str, float]:
        nonlocal first
        with ours.turn():
            count = int(rows * seconds) // BATCH * BATCH
            path = ours.enrol_bodies(
                stage.folder / "more",
                GALLERY,
                stage.space,
                _near(stage.data.items, count, first),
                first=first,
                batch=BATCH,
            )
            first += count
            grower.begin(
                "paced",
                port=ours.port,
                path=ENROL,
                bodies=str(path),
                per_second=rows / BATCH,
                seconds=seconds,
            )
            found = search()
            enrolled = grower.result()
            path.unlink()
            return {
                **found,
                "enrolled": enrolled["per_second"] * BATCH,
                "refused": sum(enrolled["failed"].values()),
            }

    try:
        found = stage.in_turns({"quiet": quiet, "beside": beside})
    finally:
        grower.close()
    for name, load in (("quiet", "quiet"), ("beside", f"beside {rows:,.0f} rows a second")):
        windows = found[name]
        figures = {
            "recall": str(match),
            "searches per second": f"{pace:.0f}",
            "p50 ms": f"{median(windows, 'p50', 1e3):.2f}",
            "p99 ms": f"{median(windows, 'p99', 1e3):.2f}",
            "failed": str(sum(sum(window["failed"].values()) for window in windows)),
        }
        aims = []
        if name == "beside":
            times = share(windows, found["quiet"], "p99")
            figures["p99, of quiet"] = f"{times:.2f}"
            figures["rows enrolled a second"] = f"{median(windows, 'enrolled'):,.0f}"
            figures["enrolments refused"] = f"{sum(window['refused'] for window in windows):.0f}"
            told = f"p99 within 3 times the quiet one ({times:.2f})"
            aims.append(Aim(told, times.median <= MOST_TIMES))
        stage.line(TABLE, load, "ours", figures, aims, windows=windows)


def _near(items: Vectors, count: int, seed: int) -> Vectors:
    """Return new vectors, each near to an item."""
    generator = np.random.default_rng(SEED + seed)
    some = items[np.sort(generator.integers(0, len(items), count))]
    spread = 0.5 / np.sqrt(items.shape[1])
    moved = some + spread * generator.standard_normal(some.shape, dtype=np.float32)
    moved /= np.linalg.norm(moved, axis=1, keepdims=True)
    made: Vectors = moved.astype(np.float32)
    return made
