"""Runs the serving benchmarks: everything, or the parts named; see the package."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from benchmarks.serving import h2load, machine, making, servers
from benchmarks.serving.report import Report, put_into
from benchmarks.serving.rows import (
    alone,
    arrivals,
    bulk,
    fairness,
    lengths,
    overload,
    pictures,
    singles,
    soak,
    swaps,
)
from benchmarks.serving.stage import Setting, set_up
from benchmarks.serving.subjects import Subject

FULL = Setting()
QUICK = Setting(seconds=2.0, warm=0.5, turns=1, in_flight=(32,), try_layouts=False)
PARTS = ("singles", "bulk", "alone", "arrivals", "lengths", "pictures", "fairness")
FINAL = ("overload", "swaps", "soak")
SWAPS = {"tiny": (1000, 50), "minilm": (20, 3)}  # in full, and with --quick
SOAKS = {"tiny": soak.CALLS, "minilm": soak.CALLS_OF_TEXTS}


def main() -> None:
    """Measure, print each table as it fills, and keep everything."""
    given = _arguments()
    if not h2load.available():
        sys.exit("h2load is not installed (Debian: apt-get install nghttp2-client)")
    chosen = QUICK if given.quick else FULL
    if given.seconds:
        chosen = dataclasses.replace(chosen, seconds=given.seconds)
    if given.turns:
        chosen = dataclasses.replace(chosen, turns=given.turns)
    report = Report(machine.describe(), {})
    environments = {name: given.peers / name for name in servers.PEERS} if given.peers else {}
    peers = {name: path for name, path in environments.items() if path.is_dir()}
    report.notes += [f"{name}: no environment" for name in servers.PEERS if name not in peers]
    began = time.monotonic()
    twins = _subjects(given, report)
    for subject in twins:
        # The slow peers are compared where the issue compares them; int8 is a question of ours.
        setting = dataclasses.replace(
            chosen,
            peers=peers if subject.precision == "fp32" else {},
            in_flight=chosen.in_flight if subject.precision == "fp32" else (32,),
            turns=chosen.turns if subject.precision == "fp32" else min(2, chosen.turns),
        )
        try:
            _measure(subject, setting, report, given)
        except Exception as error:  # one twin must not take the others' results with it
            report.notes.append(f"{subject}: {type(error).__name__}: {error}")
            traceback.print_exception(error)
        _keep(report, given, chosen, began)
    _final(twins, chosen, report, given)
    _keep(report, given, chosen, began)
    print(report.text())
    for line in report.lines:
        for aim in line.aims:
            print(f"{line.table}, {line.subject}, {line.load}: {aim}")
    for note in report.notes:
        print("not measured:", note)


def _measure(subject: Subject, setting: Setting, report: Report, given: argparse.Namespace) -> None:
    with set_up(subject, setting, report) as stage:
        fp32 = subject.precision == "fp32"
        parts: list[tuple[str, bool, Callable[[], None]]] = [
            *(
                ("singles", True, functools.partial(singles.measure, stage, n))
                for n in setting.in_flight
            ),
            ("bulk", True, lambda: bulk.measure(stage)),
            ("alone", fp32, lambda: alone.measure(stage)),
            ("arrivals", fp32, lambda: arrivals.measure(stage)),
            ("lengths", fp32 and subject.name == "minilm", lambda: lengths.measure(stage)),
            (
                "pictures",
                fp32 and subject.name == "resnet18",
                lambda: pictures.measure(stage, given.jpeg),
            ),
            ("fairness", fp32, lambda: fairness.measure(stage)),
        ]
        for name, wanted, measure in parts:
            if wanted and name in given.parts:
                _said(report, f"{name} of {subject}", measure)


def _final(
    twins: list[Subject], setting: Setting, report: Report, given: argparse.Namespace
) -> None:
    for subject in twins:
        if subject.precision != "fp32":
            continue
        if "overload" in given.parts and subject.name in ("resnet18", "tiny"):
            factors: tuple[float, ...] = (1.5, 3.0)
            if subject.name == "resnet18":
                factors = (1.5, 3.0, 10.0)
            seconds = given.overload_seconds if subject.name == "resnet18" else 30.0
            if given.quick:
                factors, seconds = factors[1:2], 6.0
            _said(
                report,
                f"overload of {subject}",
                functools.partial(overload.measure, subject, setting, report, seconds, factors),
            )
        if "swaps" in given.parts and subject.name in SWAPS:
            times = SWAPS[subject.name][given.quick]
            _said(
                report,
                f"swaps of {subject}",
                functools.partial(swaps.measure, subject, report, times, given.work),
            )
        if "soak" in given.parts and subject.name in SOAKS:
            calls = SOAKS[subject.name] // (4 if given.quick else 1)
            _said(
                report,
                f"soak of {subject}",
                functools.partial(soak.measure, subject, report, calls),
            )


def _said(report: Report, what: str, measure: Callable[[], None]) -> None:
    """Measure one part; what goes wrong in it is told, and the others go on."""
    began, known = time.monotonic(), len(report.lines)
    try:
        measure()
    except Exception as error:  # a part must not take the others' results with it
        report.notes.append(f"{what}: {type(error).__name__}: {error}")
        print(f"-- {what} failed: {error}", file=sys.stderr, flush=True)
    print(f"-- {what}: {time.monotonic() - began:.0f} s, load {machine.load():.1f}", flush=True)
    for line in report.lines[known:]:
        print(f"   {line.who:12} {line.load:14} {line.figures}", flush=True)


def _subjects(given: argparse.Namespace, report: Report) -> list[Subject]:
    found = []
    for name in ("tiny", "minilm", "resnet18"):
        if name != "minilm":
            made = making.made(given.work, name)
            found += [made, making.lowered(made, "int8", given.work)]
        elif given.minilm:
            found.append(Subject(name, "fp32", given.minilm))
            if given.minilm_int8:
                found.append(Subject(name, "int8", given.minilm_int8))
        else:
            report.notes.append("minilm: no --minilm was given")
    return [
        one
        for one in found
        if (not given.twins or one.name in given.twins) and one.precision in given.precisions
    ]


def _keep(report: Report, given: argparse.Namespace, setting: Setting, began: float) -> None:
    report.setting = {
        "windows of": f"{setting.seconds:g} s",
        "turns": setting.turns,
        "load average at the end": f"{machine.load():.1f}",
        "minutes": f"{(time.monotonic() - began) / 60:.0f}",
    }
    report.save(given.out)
    if given.markdown:
        given.markdown.write_text(put_into(given.markdown.read_text(), report.markdown()))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serving", description=__doc__)
    parser.add_argument("--minilm", type=Path, help="all-MiniLM-L6-v2 as a twin")
    parser.add_argument("--minilm-int8", type=Path)
    parser.add_argument("--peers", type=Path, help="the folder that peers.install filled")
    parser.add_argument("--jpeg", type=Path, help="a real picture; one is made otherwise")
    parser.add_argument("--quick", action="store_true", help="four minutes; figures to look at")
    parser.add_argument("--seconds", type=float, help="of a window")
    parser.add_argument("--turns", type=int)
    parser.add_argument("--overload-seconds", type=float, default=60.0)
    parser.add_argument("--twins", nargs="+", choices=("tiny", "minilm", "resnet18"))
    parser.add_argument("--precisions", nargs="+", help="fp32 and int8; --quick: fp32")
    parser.add_argument("--parts", nargs="+", choices=PARTS + FINAL, default=PARTS + FINAL)
    parser.add_argument("--work", type=Path, default=Path("runs/serving"), help="for made twins")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/serving.json"))
    parser.add_argument("--markdown", type=Path, help="a page that the tables are put into")
    given = parser.parse_args()
    given.precisions = given.precisions or (["fp32"] if given.quick else ["fp32", "int8"])
    return given


if __name__ == "__main__":
    main()
