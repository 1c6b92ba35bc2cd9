"""`twinserve demo`: the whole of twinserve on real handwriting, in a few minutes.

In: Omniglot's small background set, whose Latin alphabet neither trains nor calibrates. Out: a
run, a twin, a gallery, a contact sheet and summary.json in one folder. The server is a process of
its own, and everything from serving on goes through the client, as a user's program would.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

from twinserve.cli import demo_questions
from twinserve.cli.demo_questions import CLIENTS, GALLERY, TRIALS, WAYS, Drawings
from twinserve.cli.exit_codes import FAULT, OK
from twinserve.cli.output import plain, print_json
from twinserve.cli.server_process import ServerProcess
from twinserve.cli.terminal import warn
from twinserve.client import Client
from twinserve.errors import ConfigError, DataError

if TYPE_CHECKING:
    from twinserve.manifest import Manifest
    from twinserve.train.checkpoint import Run

DESCRIPTION = (
    "Train a twin on three alphabets of handwriting, calibrate it on a fourth, export and serve "
    "it, and search among the characters of a fifth that it has never seen. Ends by itself."
)
EXAMPLES = """
  twinserve demo
  twinserve demo --out runs/quick --seconds 30
  twinserve demo --json | jq .one_shot
"""
EXIT_CODES = "0 all stages done; 2 wrong usage, or a stage that failed"

MOST_SECONDS = 180.0
DEFAULT_OUT = Path("runs/demo")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument(
        "--out",
        type=Path,
        default=DEFAULT_OUT,
        metavar="DIR",
        help="folder for all that comes out (%(default)s); an earlier demo's galleries are moved "
        "to DIR/data.before",
    )
    parser.add_argument(
        "--data",
        type=Path,
        default=Path("data/omniglot/images_background_small1.zip"),
        metavar="PATH",
        help="zip or folder of Omniglot's small background set (%(default)s)",
    )
    parser.add_argument(
        "--seconds",
        type=float,
        metavar="S",
        help=f"of training at most, up to {MOST_SECONDS:.0f}; default: the omniglot preset's",
    )
    parser.add_argument("--json", action="store_true", help="print summary.json when all is done")


def run(arguments: argparse.Namespace) -> int:
    """Do all stages; each prints what it found and how long it took."""
    if arguments.json:
        # One document on standard output; what a person reads goes where messages go.
        with redirect_stdout(sys.stderr):
            code, summary = _demo(arguments)
        print_json(summary)
    else:
        code, _ = _demo(arguments)
    return code


def _demo(arguments: argparse.Namespace) -> tuple[int, dict[str, Any]]:
    if arguments.seconds is not None and not 0 < arguments.seconds <= MOST_SECONDS:
        raise ConfigError(
            f"--seconds is {arguments.seconds:g}; give a number above 0 and up to "
            f"{MOST_SECONDS:.0f}"
        )
    if not arguments.data.exists():
        raise ConfigError(
            f"{arguments.data} does not exist; run the demo from the repository's root, or give "
            "--data"
        )
    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    stages = Stages()
    summary: dict[str, Any] = {}

    with stages.stage("train", "on three alphabets, the best twin on a fourth is kept"):
        trained = _train(arguments.data, out, arguments.seconds)
    with stages.stage("export", "one ONNX file, behind the parity gate"):
        manifest = _export(out)
    drawings = Drawings.of(trained.part("report"), arguments.data)
    data_dir = _fresh_data_dir(out)
    flags = ["--model", str(out / "twin.onnx"), "--data-dir", str(data_dir)]
    with ExitStack() as stack:
        with stages.stage("serve", "a process of its own"):
            server = stack.enter_context(ServerProcess(flags, out / "server.log"))
            client = stack.enter_context(Client(server.target, timeout=60.0))
            print(f"  gRPC on {server.target}, HTTP on {server.http}: {client.health().value}")
        with stages.stage("one-shot", f"{WAYS}-way, {TRIALS} trials, {CLIENTS} clients"):
            summary["one_shot"] = demo_questions.one_shot(client, trained, drawings)
        with stages.stage("enroll and search", f"the {len(drawings.classes)} characters"):
            summary["search"] = demo_questions.search(client, drawings, out)
        with stages.stage("compare and verify", "pairs that nobody trained on"):
            summary["comparisons"] = demo_questions.compare(client, drawings)
            summary["verification"] = demo_questions.verify(client, drawings)
        with stages.stage("metrics", f"http://{server.http}/metrics"):
            summary["metrics"] = demo_questions.metrics(server.metrics())
        server_peak = server.peak_bytes()
        with stages.stage("stop", "by SIGTERM"):
            code = server.stop()
            print(f"  exit code {code}")
    if code != 0:
        raise DataError(f"the server ended with exit code {code}; see {out / 'server.log'}")

    summary["twin"] = {
        "file": str(out / "twin.onnx"),
        "bytes": (out / "twin.onnx").stat().st_size,
        "space_id": manifest.space_id,
        "parity": manifest.parity,
    }
    summary["seconds"] = stages.seconds | {"total": stages.total}
    summary["peak_bytes"] = {
        # ru_maxrss is in kilobytes on Linux, in bytes on macOS.
        "training_and_client": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        * (1 if os.uname().sysname == "Darwin" else 1024),
        "server": server_peak,
    }
    (out / "summary.json").write_text(
        json.dumps(plain(summary), indent=2, allow_nan=False) + "\n", encoding="utf-8"
    )
    _farewell(out, summary)
    return _verdict(summary["one_shot"]), summary


def _verdict(one_shot: dict[str, Any]) -> int:
    """Fail the demo where the server does not repeat torch, or nothing was learned."""
    if abs(one_shot["server"] - one_shot["torch"]) > 0.005:
        what = "the server and torch differ by more than 0.5 points on the same trials"
    elif one_shot["server"] <= one_shot["pixels"]:
        what = "the twin is no better than the nearest neighbour on pixels; train for longer"
    else:
        return OK
    warn(what)
    return FAULT


class Stages:
    """Prints each stage with its time, and keeps the times."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._start = time.monotonic()

    @property
    def total(self) -> float:
        return round(time.monotonic() - self._start, 1)

    @contextmanager
    def stage(self, name: str, what: str) -> Iterator[None]:
        print(f"\n{name}: {what}", flush=True)
        start = time.monotonic()
        yield
        self.seconds[name] = round(time.monotonic() - start, 1)
        print(f"  {name} took {self.seconds[name]:.1f} s", flush=True)


def _train(data: Path, out: Path, seconds: float | None) -> Run:
    from twinserve.train.config import load_config
    from twinserve.train.loop import train

    settings = [f"data={data}", f"out={out}"]
    if seconds is not None:
        settings.append(f"max_seconds={seconds}")
    return train(load_config("omniglot", settings))


def _export(out: Path) -> Manifest:
    from twinserve.export.exporter import export

    manifest = export(out, out / "twin.onnx", "omniglot")
    size = (out / "twin.onnx").stat().st_size
    print(f"  {out / 'twin.onnx'}: {size / 1e6:.2f} MB, {manifest.dimension} dimensions")
    return manifest


def _fresh_data_dir(out: Path) -> Path:
    """Set an earlier demo's galleries aside: they belong to another twin's space."""
    data, before = out / "data", out / "data.before"
    if data.exists():
        if before.exists():
            shutil.rmtree(before)
        data.rename(before)
    return data


def _farewell(out: Path, summary: dict[str, Any]) -> None:
    peak = summary["peak_bytes"]
    server = "unknown" if peak["server"] is None else f"{peak['server'] / 2**20:.0f} MiB"
    print(
        f"\ndone in {summary['seconds']['total']:.0f} s; peak memory "
        f"{peak['training_and_client'] / 2**20:.0f} MiB (training and client), {server} (server)"
    )
    print(
        f"\n{out}/\n"
        "  twin.onnx          the model, its thresholds and the evidence: twinserve inspect it\n"
        "  report.html        how good it is on the fifth alphabet, and where it fails\n"
        "  contact_sheet.png  probes and their nearest\n"
        "  summary.json       all figures of this run\n"
        "  data/              the gallery, as the server left it\n"
        "\ngo on:\n"
        f"  {_serve_command(out)}\n"
        "      serves this twin and its gallery until Ctrl-C; then, in another terminal:\n"
        f"  twinserve search {GALLERY} {out}/probes/02.png\n"
        "      who is this?\n"
        "  README.md\n"
        "      tells how to train on a folder of your own"
    )


def _serve_command(out: Path) -> str:
    if out == DEFAULT_OUT:
        return "make serve"
    return f"twinserve serve --model {out}/twin.onnx --data-dir {out}/data"
