"""How near do calls of 1 and of 32 probes come to raw hnswlib, served and in process?"""

from __future__ import annotations

from functools import partial

from benchmarks.gallery.matching import Match, Recalls
from benchmarks.gallery.stage import GALLERY, RAW, Stage, median, recall_of, share
from benchmarks.gallery.workers import Worker, await_idle
from benchmarks.serving.report import Aim

TABLE = "Searching for the 10 nearest"
ROWS = 32
IN_FLIGHT_OF_MANY = 4
LEAST_OF_RAW = 0.8
DEBT_PATIENCE = 7200


def measure(stage: Stage) -> None:
    """Compare our server with raw hnswlib, at each recall asked for."""
    for target in stage.setting.targets:
        raw = stage.raw_recalls().match(target)
        one, many = stage.served_match(target, 1), stage.served_match(target, ROWS)
        single, wide = stage.setting.in_flight, IN_FLIGHT_OF_MANY
        found = stage.in_turns(
            {
                "raw": partial(stage.raw_rate, raw.ef, 0),
                "raw 32": partial(stage.raw_rate, raw.ef, ROWS),
                "raw 1": partial(stage.raw_rate, raw.ef, 1, threads=1),
                "1": partial(stage.served_rate, one.ef, 1, 1),
                "16": partial(stage.served_rate, one.ef, 1, single),
                "16 by subject": partial(stage.served_rate, one.ef, 1, single, by_subject=True),
                "32": partial(stage.served_rate, many.ef, ROWS, wide),
            }
        )
        stage.found[f"p50 {target}"] = (raw, one, found["raw 1"], found["1"])
        label = f"recall >= {target:g}"
        for name, load, match, who in (
            ("raw", "one call of all, 2 threads", raw, RAW),
            ("raw 32", "calls of 32", raw, RAW),
            ("raw 1", "one by one, 1 thread", raw, RAW),
            ("1", "1 in flight", one, "ours, served"),
            ("16", f"{single} in flight", one, "ours, served"),
            ("16 by subject", f"{single} in flight, subjects", one, "ours, served"),
            ("32", f"calls of 32, {wide} in flight", many, "ours, served"),
        ):
            load = load.replace("2 threads", f"{stage.setting.threads} threads")
            windows = found[name]
            figures = {
                "recall": str(match),
                "ef": str(match.ef),
                "probes per second": f"{median(windows, 'per_second'):,.0f}",
            }
            if name != "raw":
                figures["p50 ms"] = f"{median(windows, 'p50', 1e3):.3f}"
                figures["p99 ms"] = f"{median(windows, 'p99', 1e3):.2f}"
            aims = []
            if who != RAW:
                of_raw = share(windows, found["raw"])
                figures["of raw"] = f"{of_raw:.2f}"
                figures["CPU us a call"] = f"{median(windows, 'cpu', 1e6).median:.0f}"
                aims.append(
                    Aim(f"recall >= {target:g} ({match.recall:.4f})", match.recall >= target)
                )
                if name == "32":
                    told = f">= {LEAST_OF_RAW} of raw hnswlib on as many threads ({of_raw:.2f})"
                    aims.append(Aim(told, of_raw.median >= LEAST_OF_RAW))
            stage.line(TABLE, f"{label}, {load}", who, figures, aims, windows=windows)


def in_process(stage: Stage) -> None:
    """Compare `Gallery.search`, without gRPC, with raw hnswlib; our server has to be stopped."""
    assert not stage.ours.running, "its data folder is held by the server"
    ours = Worker("ours in process", "benchmarks.gallery.engines", "ours")
    try:
        ours.ask("open", folder=str(stage.data.folder))
        ours.ask("load", path=f"{stage.ours.folder}:{GALLERY}")
        await_idle(ours.pid, 2.0, DEBT_PATIENCE)
        recalls = Recalls(lambda ef: recall_of(ours, ef, ROWS))
        for target in stage.setting.targets:
            raw = stage.raw_recalls().match(target)
            match = recalls.match(target)
            _compare(stage, ours, target, raw, match)
    finally:
        ours.close()


def _compare(stage: Stage, ours: Worker, target: float, raw: Match, match: Match) -> None:
    threads = stage.setting.threads

    def rate(rows: int, callers: int) -> dict[str, float]:
        with ours.turn():
            return ours.ask(
                "rate",
                ef=match.ef,
                rows=rows,
                threads=callers,
                seconds=stage.setting.seconds,
                apart=True,
            )

    found = stage.in_turns(
        {
            "raw": lambda: stage.raw_rate(raw.ef, 0),
            "raw 1": lambda: stage.raw_rate(raw.ef, 1, threads=1),
            "1": lambda: rate(1, 1),
            "1 apart": lambda: rate(1, threads),
            "32": lambda: rate(ROWS, threads),
        }
    )
    for name, load in (
        ("1", "one by one, 1 thread"),
        ("1 apart", f"one by one, {threads} threads"),
        ("32", f"calls of 32, {threads} threads"),
    ):
        windows = found[name]
        against = found["raw 1"] if name == "1" else found["raw"]
        stage.line(
            TABLE,
            f"recall >= {target:g}, {load}",
            "ours, in process",
            {
                "recall": str(match),
                "ef": str(match.ef),
                "probes per second": f"{median(windows, 'per_second'):,.0f}",
                "p50 ms": f"{median(windows, 'p50', 1e3):.3f}",
                "p99 ms": f"{median(windows, 'p99', 1e3):.2f}",
                "of raw": f"{share(windows, against):.2f}",
            },
            windows=windows,
        )
