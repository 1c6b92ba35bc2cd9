"""Is this the one it claims to be? Handwriting here; faces, signatures or parts with --data.

    python examples/verification/verify.py
    python examples/verification/verify.py --data faces/     one folder of pictures per person

In: a folder or zip of pictures, the innermost folder is the subject. A twin is trained on some
subjects and calibrated on others. Subjects that did neither are enrolled with a few pictures each
and then claimed, by themselves and by others. Out: how often both were believed, beside what the
twin's file states.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path, PurePosixPath

import numpy as np

from twinserve.cli.server_process import ServerProcess
from twinserve.client import Client, EnrollItem

DATA = Path(__file__).parents[2] / "data/omniglot/images_background_small1.zip"
GALLERY = "subjects"
ENROLLED = 3  # pictures of each subject
CLAIMS = 2  # of each subject by itself, and as many by others
# Handwriting: ink on white paper, drawn a little differently each time.
DRAWINGS = ["ink_inverted=true", "rotate_degrees=10", "scale=0.2", "shear=0.2", "shift=0.08"]


def main() -> int:
    """Train, export, serve, enrol, verify."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, default=DATA, help="folder or zip (%(default)s)")
    parser.add_argument("--precision", default="fp32", choices=("fp32", "int8"), help="to serve")
    parser.add_argument("--far", type=float, default=0.01, help="false accept rate (%(default)s)")
    parser.add_argument("--seconds", type=int, default=60, help="of training at most (%(default)s)")
    parser.add_argument(
        "--set", nargs="+", default=[], metavar="KEY=VALUE", help="settings of twinserve train"
    )
    arguments = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        run, twin = work / "run", work / "twin.onnx"
        settings = ["calibrate_fraction=0.3", "report_fraction=0.3"]
        settings += [f"max_seconds={arguments.seconds}", *arguments.set]
        if arguments.data == DATA:
            settings += DRAWINGS
        twinserve("train", "--data", arguments.data, "--out", run, "--set", *settings)
        twinserve("export", run, "--out", twin, "--precision", arguments.precision)
        if arguments.precision != "fp32":
            twin = twin.with_suffix(f".{arguments.precision}.onnx")
        unseen = json.loads((run / "splits.json").read_text())["report"]
        pictures = read(arguments.data, unseen)
        flags = ["--model", str(twin), "--data-dir", str(work / "data")]
        print(f"$ twinserve serve {' '.join(flags)}")
        with ServerProcess(flags, work / "server.log") as server, Client(server.target) as client:
            verify(client, pictures, arguments.far)
    return 0


def twinserve(verb: str, *arguments: str | Path) -> None:
    """Run one verb of the command line, and show it."""
    line = [verb, *map(str, arguments)]
    print(f"$ twinserve {' '.join(line)}", flush=True)
    subprocess.run(
        [sys.executable, "-m", "twinserve.cli", *line], check=True, stdout=subprocess.DEVNULL
    )


def read(data: Path, subjects: list[str]) -> dict[str, list[bytes]]:
    """Read the pictures of some subjects, by the ends of their folders' names."""
    files: dict[PurePosixPath, bytes] = {}
    if data.is_dir():
        found = (file for file in data.rglob("*") if file.is_file())
        files = {PurePosixPath(f.relative_to(data).as_posix()): f.read_bytes() for f in found}
    else:
        with zipfile.ZipFile(data) as archive:
            names = (entry for entry in archive.namelist() if not entry.endswith("/"))
            files = {PurePosixPath(name): archive.read(name) for name in names}
    return {
        subject: [
            content
            for name, content in sorted(files.items())
            if f"/{name.parent}".endswith(f"/{subject}")
        ]
        for subject in subjects
    }


def verify(client: Client, pictures: dict[str, list[bytes]], far: float) -> None:
    """Enrol a few pictures of each subject, then let it and others claim to be it."""
    client.create_gallery(GALLERY)
    items = [
        EnrollItem(picture, subject=subject)
        for subject, own in pictures.items()
        for picture in own[:ENROLLED]
    ]
    client.enroll(GALLERY, items, raise_for_errors=True)
    generator = np.random.default_rng(0)
    believed: dict[bool, list[bool]] = {True: [], False: []}
    last = None
    for subject, own in pictures.items():
        others = [other for other in pictures if other != subject]
        for picture in own[ENROLLED : ENROLLED + CLAIMS]:
            other = others[generator.integers(len(others))]
            for claimed in (subject, other):
                last = client.verify(GALLERY, claimed, picture, far=far)
                believed[claimed == subject].append(bool(last.match))
    assert last is not None
    print(f"\n{len(pictures)} unseen subjects, {ENROLLED} pictures of each enrolled")
    if last.match is None:
        print(f"the twin's evidence does not reach down to FAR {far:g}; ask for a larger one,")
        print("or calibrate it on more classes")
        return
    print(f"asked for: FAR {far:g}; decided at distance <= {last.threshold:.4f}")
    print(
        f"stated by the twin's file: {last.false_accept_rate:.2%}, "
        f"at most {last.false_accept_rate_upper:.2%} among new classes"
    )
    for genuine, who in ((True, "claimed by themselves"), (False, "claimed by others    ")):
        claims = believed[genuine]
        print(f"{who}  {np.mean(claims):6.1%} of {len(claims)} believed")


if __name__ == "__main__":
    sys.exit(main())
