"""Runs the gallery benchmarks: everything, or the parts named; see the package."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks.gallery import data as data_of
from benchmarks.gallery.data import Data
from benchmarks.gallery.peers.install import PACKAGES
from benchmarks.gallery.report import MARK, SUBJECT
from benchmarks.gallery.rows import (
    busy,
    calls,
    enrol,
    filtered,
    growth,
    limits,
    restart,
    stalls,
    stores,
)
from benchmarks.gallery.stage import Setting, Stage, set_up
from benchmarks.serving import machine
from benchmarks.serving.report import Report, put_into

FULL = Setting()
QUICK = Setting(
    seconds=0.7,
    warm=0.3,
    turns=1,
    targets=(0.99,),
    most_filtered=20_000,
    most_for_peers=10_000,
    rests=3.0,
)
PARTS = (
    *("limits", "calls", "peers", "filter", "busy", "stalls"),
    *("restart", "memory", "inprocess", "growth"),
)
# What needs our server; it is filled, and that is timed, for any of them.
SERVED = set(PARTS) - {"limits"} | {"enrol"}
MOST_NUMBERS = 200_000_000  # of a data set, items times dimension: a million of 512 takes hours


def main() -> None:
    """Measure, print each table as it fills, and keep everything."""
    given = _arguments()
    setting = QUICK if given.quick else FULL
    changed = {
        name: getattr(given, name)
        for name in ("seconds", "turns", "most_filtered", "most_for_peers")
        if getattr(given, name) is not None
    }
    environments = {name: given.peers / name for name in PACKAGES} if given.peers else {}
    setting = dataclasses.replace(
        setting,
        targets=tuple(given.targets) if given.targets else setting.targets,
        flags=tuple(given.server_flags.split()),
        environments={name: path for name, path in environments.items() if path.is_dir()},
        **changed,
    )
    given.work.mkdir(parents=True, exist_ok=True)
    report = Report(machine.describe(), {})
    report.notes += [
        f"{name}: no environment" for name in PACKAGES if name not in setting.environments
    ]
    run(list(_data(given, report)), setting, set(given.parts), report, given)
    print(report.text(SUBJECT))
    for line in report.lines:
        for aim in line.aims:
            print(f"{line.table}, {line.subject}, {line.load}: {aim}")
    for note in report.notes:
        print("not measured:", note)


def run(
    sets: list[Data], setting: Setting, parts: set[str], report: Report, given: argparse.Namespace
) -> None:
    """Measure parts of several sets of data, and keep what there is after each."""
    began, points = time.monotonic(), []
    for data in sets:
        try:
            points += one_set(data, setting, parts, report, given.work)
        except Exception as error:  # one set must not take the others' results with it
            report.notes.append(f"{data}: {type(error).__name__}: {error}")
            traceback.print_exception(error)
        _keep(report, given, setting, began)
    if "growth" in parts:
        growth.measure(points, report)
        _keep(report, given, setting, began)


def one_set(
    data: Data, setting: Setting, parts: set[str], report: Report, work: Path
) -> list[growth.Point]:
    """Measure the parts that are wanted of one set of data, in an order that suits what they leave.

    Returns:
        What `growth` compares with other sizes.
    """
    served = bool(parts & SERVED)
    with set_up(data, setting, report, work, served=served) as stage:
        ours = stage.ours

        def part(name: str, measure: Callable[[], None], *, wanted: bool = True) -> None:
            if wanted and name in parts:
                _said(stage, name, measure)

        print(f"-- {data}: hnswlib is built, {machine.load():.1f} load", flush=True)
        if served:
            parts = parts | {"enrol"}
            with ours.turn():
                _said(stage, "enrol", lambda: enrol.measure(stage, watched="stalls" in parts))
        part("limits", lambda: limits.measure(stage))
        part("calls", lambda: calls.measure(stage))
        few = data.count <= setting.most_for_peers
        part("peers", lambda: stores.measure(stage), wanted=few)
        part("filter", lambda: filtered.measure(stage), wanted=data.kind == "clustered")
        part("stalls", functools.partial(_running, stage, stalls.measure))
        part("restart", lambda: restart.measure(stage))
        part("memory", lambda: restart.memory(stage))
        if served and ours.running:
            ours.stop()
        part("inprocess", lambda: calls.in_process(stage))
        if "busy" in parts:  # last, since its items are none of the exact answers
            ours.start()
        part("busy", lambda: busy.measure(stage))
        return growth.points(stage)


def _running(stage: Stage, measure: Callable[[Stage], None]) -> None:
    with stage.ours.turn():
        measure(stage)


def _said(stage: Stage, name: str, measure: Callable[[], None]) -> None:
    """Measure one part; what goes wrong in it is told, and the others go on."""
    report = stage.report
    began, known = time.monotonic(), len(report.lines)
    try:
        measure()
    except Exception as error:  # a part must not take the others' results with it
        report.notes.append(f"{name} of {stage.data}: {type(error).__name__}: {error}")
        traceback.print_exception(error)
    seconds = time.monotonic() - began
    print(f"-- {name} of {stage.data}: {seconds:.0f} s, load {machine.load():.1f}", flush=True)
    for line in report.lines[known:]:
        told = {name: figure for name, figure in line.figures.items() if figure}
        print(f"   {line.who:20} {line.load:36} {told}", flush=True)


def _data(given: argparse.Namespace, report: Report) -> Iterator[Data]:
    folder = given.work / "data"
    for dimension in given.dimensions if "clustered" in given.data else ():
        for count in given.items:
            if count * dimension > MOST_NUMBERS:
                report.notes.append(f"clustered {data_of.short(count)} x {dimension}: too large")
                continue
            yield data_of.clustered(folder, count, dimension)
    for path in given.real if "real" in given.data else ():
        yield data_of.real(folder, path, max(given.items))


def _keep(report: Report, given: argparse.Namespace, setting: Setting, began: float) -> None:
    report.setting = {
        "windows of": f"{setting.seconds:g} s",
        "turns": setting.turns,
        "load average at the end": f"{machine.load():.1f}",
        "minutes": f"{(time.monotonic() - began) / 60:.0f}",
    }
    report.save(given.out)
    if given.markdown:
        page = put_into(given.markdown.read_text(), report.markdown(SUBJECT), MARK)
        given.markdown.write_text(page)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gallery", description=__doc__)
    parser.add_argument("--items", nargs="+", type=int, help="10000, 100000 and 1000000")
    parser.add_argument("--dimensions", nargs="+", type=int, help="128 and 512")
    parser.add_argument(
        "--real", nargs="*", type=Path, default=[], help=".npy files of embeddings; see embed"
    )
    parser.add_argument("--data", nargs="+", choices=("clustered", "real"))
    parser.add_argument("--peers", type=Path, help="the folder that peers.install filled")
    parser.add_argument(
        "--quick", action="store_true", help="minutes: 10k and 20k items, one turn; to look at"
    )
    parser.add_argument("--parts", nargs="+", choices=(*PARTS, "enrol"), default=PARTS)
    parser.add_argument("--targets", nargs="+", type=float, help="recalls (0.97 and 0.99)")
    parser.add_argument("--seconds", type=float, help="of a window")
    parser.add_argument("--turns", type=int)
    parser.add_argument("--most-filtered", type=int, help="items of filter and stalls (100000)")
    parser.add_argument("--most-for-peers", type=int, help="items that peers are filled with")
    parser.add_argument("--server-flags", default="", help="further flags of our server")
    parser.add_argument("--work", type=Path, default=Path("runs/gallery"), help="for made files")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/gallery.json"))
    parser.add_argument("--markdown", type=Path, help="a page that the tables are put into")
    given = parser.parse_args()
    given.items = given.items or ([10_000, 20_000] if given.quick else [10_000, 100_000, 1_000_000])
    given.dimensions = given.dimensions or ([128] if given.quick else [128, 512])
    given.data = given.data or ["clustered", "real"]
    given.work = given.work.resolve()
    given.peers = given.peers.resolve() if given.peers else None
    if any(count < 200 for count in given.items):
        sys.exit("--items: at least 200, or nothing is left to find")
    return given


if __name__ == "__main__":
    main()
