"""How do calls of one probe through our server compare with other stores', at the same recall?"""

from __future__ import annotations

import contextlib
from functools import partial
from typing import Any

from benchmarks.gallery.matching import Match, Recalls
from benchmarks.gallery.stage import Stage, median, share
from benchmarks.gallery.workers import Failed, Worker, await_idle
from benchmarks.serving.report import Aim

TABLE = "Calls of one probe, beside other stores"
NAMES = ("postgres", "chroma", "milvus")


def measure(stage: Stage) -> None:
    """Start and fill each store, bring each to the recall asked for, and ask all in turns."""
    setting, clients = stage.setting, stage.setting.in_flight
    with contextlib.ExitStack() as stack:
        stores: dict[str, Worker] = {}
        versions: dict[str, str] = {}
        for name in NAMES:
            environment = setting.environments.get(name)
            if environment is None:
                continue
            module = f"benchmarks.gallery.peers.{name}"
            worker = Worker(name, module, python=environment / "bin/python")
            stack.callback(worker.close)
            try:
                with worker.turn():
                    versions[name] = _filled(stage, worker)
                stores[name] = worker
            except Failed as error:
                stage.report.notes.append(f"{name} on {stage.data}: {error}")
        for target in setting.targets:
            _compare(stage, stores, versions, target, clients)


def _filled(stage: Stage, worker: Worker) -> str:
    folder = stage.folder / worker.name
    version = worker.ask("start", folder=str(folder), data=str(stage.data.folder))["version"]
    seconds = worker.ask("fill", threads=stage.setting.threads)["seconds"]
    await_idle(worker.pid)
    stage.found[f"filled {worker.name}"] = seconds
    return str(version)


def _compare(
    stage: Stage,
    stores: dict[str, Worker],
    versions: dict[str, str],
    target: float,
    clients: int,
) -> None:
    matches: dict[str, Match] = {"ours": stage.served_match(target, 1)}
    ef = matches["ours"].ef
    measures: dict[str, Any] = {
        "ours": lambda: stage.served_rate(ef, 1, clients),
        "ours, 1": lambda: stage.served_rate(ef, 1, 1),
        "ours, through grpcio": lambda: stage.served_rate(ef, 1, clients, client="through_grpcio"),
    }
    for name, worker in stores.items():
        try:
            recalls = stage.found.setdefault(
                f"recalls {name}", Recalls(partial(recall_of_store, worker))
            )
            match = matches[name] = recalls.match(target)
        except Failed as error:
            stage.report.notes.append(f"{name} on {stage.data}: {error}")
            continue
        measures[name] = partial(_rate, stage, worker, match, clients)
        measures[f"{name}, 1"] = partial(_rate, stage, worker, match, 1)
        if name == "postgres":
            measures["pgbench"] = partial(_bench, stage, worker, match, clients)
    found = stage.in_turns(measures)
    whose = {
        "ours, through grpcio": "ours",
        "pgbench": "postgres",
        **{f"{name}, 1": name for name in matches},
    }
    for name, windows in found.items():
        owner = whose.get(name, name)
        match, alone = matches[owner], name.endswith(", 1")
        figures = {
            "recall": str(match),
            "ef": str(match.ef),
            "per second": f"{median(windows, 'per_second'):,.0f}",
        }
        if "p50" in windows[0]:
            figures["p50 ms"] = f"{median(windows, 'p50', 1e3):.2f}"
            figures["p99 ms"] = f"{median(windows, 'p99', 1e3):.2f}"
        aims = []
        if owner != "ours":
            against = share(found["ours, 1" if alone else "ours"], windows)
            figures["ours, of it"] = f"{against:.2f}"
            figures["what"] = versions[owner]
            if not alone:
                told = f"ours ahead of {name} ({against:.2f} of it)"
                aims.append(Aim(told, against.median >= 1))
        load = "1 client" if alone else f"{clients} clients"
        who = name.removesuffix(", 1")
        stage.line(TABLE, f"recall >= {target:g}, {load}", who, figures, aims, windows=windows)


def recall_of_store(worker: Worker, ef: int) -> float:
    """Count the recall of a store in its turn."""
    with worker.turn():
        return float(worker.ask("recall", ef=ef)["recall"])


def _rate(stage: Stage, worker: Worker, match: Match, clients: int) -> dict[str, float]:
    with worker.turn():
        return worker.ask(
            "rate",
            ef=match.ef,
            clients=clients,
            seconds=stage.setting.seconds,
            warm=stage.setting.warm,
        )


def _bench(stage: Stage, worker: Worker, match: Match, clients: int) -> dict[str, float]:
    with worker.turn():
        return worker.ask(
            "bench",
            ef=match.ef,
            clients=clients,
            seconds=stage.setting.seconds + stage.setting.warm,
            data=str(stage.data.folder),
        )
