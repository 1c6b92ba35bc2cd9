"""What do raw indexes give on the same data: recall and speed, building, memory, loading?"""

from __future__ import annotations

import contextlib
import os
from functools import partial

from benchmarks.gallery import workers
from benchmarks.gallery.engines import ENGINES
from benchmarks.gallery.stage import RAW, Stage, builder_threads, median, recall_of
from benchmarks.gallery.workers import Failed, Worker

TABLE, BUILDS = "Raw indexes, by breadth of the search", "Raw indexes, building and loading"
BREADTHS = (16, 32, 64, 128)
# name -> (engine, folder of its environment)
OTHERS = {
    "faiss": ("faiss", "limits"),
    "usearch": ("usearch", "limits"),
    "hnswlib, built for this processor": ("hnswlib", "native"),
}


def measure(stage: Stage) -> None:
    """Build each index with all threads, and ask all of them in turns."""
    threads = stage.setting.threads
    with contextlib.ExitStack() as stack:
        all_of = {RAW: stage.raw}
        for name, (engine, environment) in OTHERS.items():
            assert engine in ENGINES
            folder = stage.setting.environments.get(environment)
            if folder is None:
                continue
            worker = Worker(
                name, "benchmarks.gallery.engines", engine, python=folder / "bin/python"
            )
            stack.callback(worker.close)
            try:
                worker.ask("open", folder=str(stage.data.folder))
                with worker.turn():
                    before = workers.anonymous(worker.pid)
                    seconds = worker.ask("build", threads=threads)["seconds"]
                    memory = (workers.anonymous(worker.pid) - before) / stage.data.count
            except Failed as error:
                stage.report.notes.append(f"{name} on {stage.data}: {error}")
                continue
            all_of[name] = worker
            _built(stage, name, worker, seconds, memory)
        if threads == builder_threads():
            seconds = stage.data.count / stage.raw_build[threads]
        else:
            with stage.raw.turn():
                seconds = stage.raw.ask("build", threads=threads)["seconds"]
                stage.raw_build[threads] = stage.data.count / seconds
            stage.found.pop("raw recalls", None)  # another graph
        _built(stage, RAW, stage.raw, seconds, stage.raw_memory)
        for ef in BREADTHS:
            _searched(stage, all_of, ef)


def _built(stage: Stage, name: str, worker: Worker, seconds: float, memory: float) -> None:
    path = stage.folder / "index"
    with worker.turn():
        saved = worker.ask("save", path=str(path))["seconds"]
        size = path.stat().st_size
        loads = [worker.ask("load", path=str(path))["seconds"] for _ in range(stage.setting.turns)]
        os.unlink(path)
    stage.line(
        BUILDS,
        f"{stage.setting.threads} threads",
        name,
        {
            "rows per second": f"{stage.data.count / seconds:,.0f}",
            "bytes a vector": f"{memory:,.0f}",
            "file, bytes a vector": f"{size / stage.data.count:,.0f}",
            "save s": f"{saved:.2f}",
            "load s": f"{min(loads):.2f}",
        },
        loads=loads,
    )


def _searched(stage: Stage, all_of: dict[str, Worker], ef: int) -> None:
    threads, seconds = stage.setting.threads, stage.setting.seconds / 2

    def rate(worker: Worker, rows: int, inside: int) -> dict[str, float]:
        with worker.turn():
            return worker.ask("rate", ef=ef, rows=rows, threads=inside, seconds=seconds)

    many = stage.in_turns(
        {name: partial(rate, worker, 0, threads) for name, worker in all_of.items()}
    )
    single = stage.in_turns({name: partial(rate, worker, 1, 1) for name, worker in all_of.items()})
    for name, worker in all_of.items():
        stage.line(
            TABLE,
            f"ef {ef}",
            name,
            {
                "recall": f"{recall_of(worker, ef):.4f}",
                f"probes per second, {threads} threads": f"{median(many[name], 'per_second'):,.0f}",
                "us one by one": f"{median(single[name], 'p50', 1e6):.0f}",
            },
            many=many[name],
            single=single[name],
        )
