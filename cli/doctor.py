"""`twinserve doctor`: what this machine offers, what a server would use of it, what to mend."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from twinserve.cli.exit_codes import NO, OK
from twinserve.cli.output import plain, print_fields, print_json, print_table
from twinserve.cli.progress import Working
from twinserve.cli.terminal import painted

if TYPE_CHECKING:
    from twinserve.server.runtime.diagnosis import Diagnosis
    from twinserve.server.runtime.machine import Processors

DESCRIPTION = (
    "Look at this machine as a server would: processors, memory, graphics cards, onnxruntime's "
    "providers, and the disk of --data-dir. With --model, time the twin and its other precisions "
    "beside it, and say how it would be run."
)
EXAMPLES = """
  twinserve doctor
  twinserve doctor --data-dir data --device cuda
  twinserve doctor --model twin.onnx
  twinserve doctor --model twin.onnx --model twin.int8.onnx --json
"""
EXIT_CODES = "0 a server would start; 1 it would not, and the reason is printed; 2 wrong usage"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument(
        "--model",
        action="append",
        default=[],
        type=Path,
        metavar="twin.onnx",
        help="a twin to time, some seconds each; repeat for several",
    )
    parser.add_argument(
        "--data-dir", type=Path, metavar="DIR", help="where galleries would be kept"
    )
    parser.add_argument(
        "--device",
        default="auto",
        help="auto, cpu, cuda[:N] or tensorrt[:N], as of serve (%(default)s)",
    )
    parser.add_argument(
        "--runners", type=int, default=0, metavar="N", help="as of serve (%(default)s)"
    )
    parser.add_argument(
        "--threads", type=int, default=0, metavar="N", help="as of serve (%(default)s)"
    )
    parser.add_argument(
        "--spinning",
        default="auto",
        metavar="auto|off|short|run|on",
        help="as of serve (%(default)s)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document")


def run(arguments: argparse.Namespace) -> int:
    """Examine, and print."""
    from twinserve.server.runtime.examining import examine
    from twinserve.server.runtime.planning import Asked, spinning_asked

    asked = Asked(arguments.runners, arguments.threads, spinning_asked(arguments.spinning))
    with Working("timing the twins" if arguments.model else "looking at this machine"):
        found = examine(arguments.device, arguments.model, arguments.data_dir, asked)
    if arguments.json:
        print_json(_document(found))
    else:
        _print(found)
    return NO if found.faults else OK


def _document(found: Diagnosis) -> dict[str, object]:
    document: dict[str, object] = plain(found)
    document["usable_processors"] = found.processors.usable
    document["bound_by"] = found.processors.bound_by
    return document


def _print(found: Diagnosis) -> None:
    memory = found.memory
    limit = "" if memory.limit is None else f", limited to {_size(memory.limit)}"
    disk = found.data_dir
    print_fields(
        [
            ("processor", f"{found.processor} ({', '.join(found.instructions) or 'no AVX2'})"),
            ("processors", _processors(found.processors)),
            ("memory", f"{_size(memory.available)} of {_size(memory.total)} free{limit}"),
            ("graphics cards", ", ".join(f"{g.index}: {g.name}" for g in found.gpus) or "none"),
            ("open files", found.open_files),
            ("shared memory", _size(found.shared_memory)),
            (
                "data folder",
                disk
                and f"{disk.path}: {_size(disk.free)} free, {disk.syncs_per_second:.0f} syncs/s",
            ),
            ("onnxruntime", f"{found.onnxruntime}, built with {', '.join(found.compiled)}"),
        ]
    )
    for provider in found.providers:
        state = "loads" if provider.missing is None else f"no: {provider.missing}"
        print(f"  {provider.name:<28}{state}")
    if found.device is not None:
        print(f"\na server would use {found.device}")
    for twin in found.twins:
        tokens = "" if twin.tokens is None else f" of {twin.tokens} tokens"
        print(
            f"\n{twin.path} ({twin.precision}): {twin.rows_per_second:.0f} rows/s{tokens}, one "
            f"row in {1000 * twin.latency:.2f} ms, {_size(twin.resident)} of memory"
        )
        print(f"  runners × threads: {twin.plan.setting}")
        rows = [
            (
                str(trial.second),
                str(trial.first),
                *(("-",) * 3 if trial.duel is None else _duel(trial.duel)),
                trial.verdict if trial.duel is None else "better" if trial.second_is_better else "",
            )
            for trial in twin.plan.trials
        ]
        if rows:
            header = ("setting", "tried against", "rows/s", "the other's", "one row, ms", "")
            print_table(header, rows, indent="  ")
    for fault in found.faults:
        print(f"\n{painted('fault:', 'red')} {fault}")
    if found.advice:
        print("\nfor more:")
    for advice in found.advice:
        print(f"  {advice.found}\n    → {advice.do}")


def _duel(duel: object) -> tuple[str, str, str]:
    from twinserve.server.runtime.planning import Duel

    assert isinstance(duel, Duel)
    theirs, ours = duel.rows_per_second
    return f"{ours:.0f}", f"{theirs:.0f}", f"{1000 * duel.latency[1]:.2f}"


def _processors(processors: Processors) -> str:
    quota = "no quota" if processors.quota is None else f"a quota of {processors.quota:g}"
    return (
        f"{processors.usable} to use; {processors.host} in the machine, {processors.affinity} by "
        f"affinity, {quota} ({processors.bound_by} binds)"
    )


def _size(count: int) -> str:
    return f"{count / 2**30:.1f} GB" if count >= 1 << 30 else f"{count / 2**20:.0f} MB"
