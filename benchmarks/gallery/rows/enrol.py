"""How fast are ready embeddings enrolled and acknowledged, and the debt of the index worked off?"""

from __future__ import annotations

from benchmarks.gallery.rows import stalls
from benchmarks.gallery.served import BATCH, ENROL
from benchmarks.gallery.stage import GALLERY, Stage, builder_threads
from benchmarks.serving.report import Aim

TABLE = "Enrolling ready embeddings in batches of 1,000"
IN_FLIGHT = 4
ALL = "from first row to the end of the debt, rows per second"
LEAST_ROWS, LEAST_OF_RAW = 30_000, 0.5


def measure(stage: Stage, *, watched: bool) -> None:
    """Fill the gallery, once; see to it that it is held still afterwards.

    Args:
        stage: whose server is up and empty.
        watched: whether stalls are looked for while the debt is worked off.
    """
    data, ours = stage.data, stage.ours
    bodies = ours.enrol_bodies(stage.folder / "enrol", GALLERY, stage.space, data.items)
    found = stage.load.ask(
        "all_of", port=ours.port, path=ENROL, bodies=str(bodies), in_flight=IN_FLIGHT
    )
    bodies.unlink()
    if found["failed"]:
        raise RuntimeError(f"enrolments failed, by status: {found['failed']}")
    owed = ours.gallery(GALLERY).index_debt
    with stalls.watching(stage, "while a graph is built, after enrolling", wanted=watched):
        worked = ours.work_off(GALLERY)
    ours.settle()
    stage.found["memory"] = ours.anonymous()
    seconds, calls = found["until_refused"]
    acknowledged = min(data.count, calls * BATCH) / seconds if calls else 0.0
    threads = builder_threads()
    raw = stage.raw_build[threads]
    done = owed - worked.left
    # Where most of it was done while items came in, what is left says little of the pace.
    telling = done >= data.count / 5
    drain = done / worked.seconds if telling else 0.0
    indexed = data.count - worked.left if data.count > stage.exact_below else 0
    overall = indexed / (found["seconds"] + worked.seconds)
    shown = {
        "rows per second, acknowledged": f"{acknowledged:,.0f}",
        "refused for now": f"{found['refused']}",
        "debt then": f"{owed:,}",
        "worked off, rows per second": f"{drain:,.0f}" if telling else "",
        "of raw": f"{drain / raw:.2f}" if telling else "",
        ALL: f"{overall:,.0f}" if indexed else "",
        "of raw, all": f"{overall / raw:.2f}" if indexed else "",
        "debt that stays": f"{worked.left:,}",
    }
    aims = [
        Aim(f">= {LEAST_ROWS:,} rows a second ({acknowledged:,.0f})", acknowledged >= LEAST_ROWS)
    ]
    if telling:
        aims.append(Aim(f"debt at >= 0.5 of raw ({drain / raw:.2f})", drain / raw >= LEAST_OF_RAW))
    stage.line(
        TABLE,
        f"{IN_FLIGHT} in flight",
        "ours",
        shown,
        aims,
        found=found,
        worked=[worked.seconds, worked.left],
    )
    stage.line(
        TABLE,
        f"{threads} threads",
        "hnswlib",
        {ALL: f"{raw:,.0f}"},
    )
