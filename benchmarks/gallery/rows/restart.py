"""How long does a start take beside hnswlib's loading of the same graph, and how much memory?"""

from __future__ import annotations

from benchmarks.gallery.stage import GALLERY, RAW, Stage
from benchmarks.gallery.workers import Worker
from benchmarks.serving.figures import ratios, spread
from benchmarks.serving.report import Aim

TABLE, MEMORY = "Starting again", "Anonymous memory of a vector"
MOST_OF_LOAD, MOST_OF_MEMORY = 3.0, 1.25
LEAST_LOAD = 0.2  # seconds: a shorter one says nothing beside the start of a process


def measure(stage: Stage) -> None:
    """Stop or kill the server, start it, and load a saved graph into bare hnswlib, in turns."""
    ours = stage.ours
    path = stage.folder / "index"
    with stage.raw.turn():
        stage.raw.ask("save", path=str(path))
    loads: list[float] = []
    stops: list[float] = []
    starts: dict[str, list[float]] = {"stopped": [], "killed": []}
    whole: dict[str, list[float]] = {"stopped": [], "killed": []}
    left = 0
    with ours.turn():
        pass  # it is held still otherwise, and could not be asked to stop
    try:
        for turn in range(stage.setting.turns):
            loads.append(_load(stage, str(path)))
            for how in ("stopped", "killed") if turn % 2 == 0 else ("killed", "stopped"):
                if how == "stopped":
                    stops.append(ours.stop())
                else:
                    ours.kill()
                seconds = ours.start()
                starts[how].append(seconds)
                worked = ours.work_off(GALLERY)
                left = worked.left
                whole[how].append(seconds + worked.seconds)
                ours.settle()
                if how == "stopped":
                    stage.found["memory after a start"] = ours.anonymous()
    finally:
        path.unlink()
    stage.line(TABLE, "load_index", RAW, {"seconds": f"{spread(loads):.2f}"}, loads=loads)
    for how, took in starts.items():
        times = ratios(took, loads)
        aims = []
        if spread(loads).median >= LEAST_LOAD:
            told = f"within 3 times the bare load ({times:.2f})"
            aims.append(Aim(told, times.median <= MOST_OF_LOAD))
        figures = {
            "seconds": f"{spread(took):.2f}",
            "of load_index": f"{times:.2f}",
            "without items, s": f"{stage.start_empty:.2f}",
            "until every graph is there, s": f"{spread(whole[how]):.2f}",
            "debt that stays": f"{left:,}",
        }
        if how == "stopped":
            figures["stopping, s"] = f"{spread(stops):.2f}"
        stage.line(TABLE, f"{how}, to SERVING", "ours", figures, aims, starts=took)


def memory(stage: Stage) -> None:
    """Say what a vector takes, as it was after enrolling and, where known, after a start."""
    stage.line(MEMORY, "built", RAW, {"bytes": f"{stage.raw_memory:,.0f}"})
    for name, load in (("memory", "after enrolling"), ("memory after a start", "after a start")):
        held = stage.found.get(name)
        if held is None:
            continue
        each = (held - stage.memory_empty) / stage.data.count
        of_raw = each / stage.raw_memory
        stage.line(
            MEMORY,
            load,
            "ours",
            {
                "bytes": f"{each:,.0f}",
                "of hnswlib": f"{of_raw:.2f}",
                "server without items, MiB": f"{stage.memory_empty / 2**20:.0f}",
            },
            [Aim(f"within 1.25 of hnswlib's own ({of_raw:.2f})", of_raw <= MOST_OF_MEMORY)],
        )


def _load(stage: Stage, path: str) -> float:
    worker = Worker("bare load", "benchmarks.gallery.engines", RAW)
    try:
        worker.ask("open", folder=str(stage.data.folder))
        return float(worker.ask("load", path=path)["seconds"])
    finally:
        worker.close()
