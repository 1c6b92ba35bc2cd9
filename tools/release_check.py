"""Try what would be released, as those who install it will: `make release-check`.

In: the working tree, committed. Out: a line a step, and exit status 1 at the first that fails. The
version is the same everywhere; sdist and wheel are built, the wheel also from the tree, with the
same content; client and server are installed into environments of their own, and one serves the
other. It takes the package index and a few minutes (docs/releasing.md).
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).resolve().parent.parent
TWIN = ROOT / "data/omniglot/letters.onnx"
PINS = str(ROOT / "constraints.txt")
BUILDING = {**os.environ, "PIP_CONSTRAINT": PINS, "PIP_BUILD_CONSTRAINT": PINS}
# What a packager needs beside the package itself.
IN_SDIST = (
    "CHANGELOG.md",
    "Dockerfile",
    "LICENSE",
    "Makefile",
    "constraints.txt",
    "deploy/compose.yaml",
    "docs/storage.md",
    "hatch_build.py",
    "protos/twinserve/v1/shared.proto",
    "tests/house/test_packaging.py",
    "tools/release_check.py",
    "twinserve/_build.py",
    "twinserve/server/__main__.py",
)
ROUND_TRIP = """
import sys
import numpy as np
from twinserve.client import Client
from twinserve.messages import EnrollItem

with Client(sys.argv[1]) as client:
    model = next(iter(client.models()))
    client.create_gallery("trial", model=model.name)
    drawn = [np.full((28, 28, 1), 255, np.uint8) for _ in range(3)]
    for n, picture in enumerate(drawn):
        picture[4:24, 4 + 7 * n : 7 + 7 * n] = 0
    client.enroll("trial", [EnrollItem(one, id=f"i{n}") for n, one in enumerate(drawn)])
    (hits,) = client.search("trial", [drawn[1]], top_k=1)
    assert hits[0].item.id == "i1", hits
"""


def fail(message: str) -> NoReturn:
    """Stop with one sentence."""
    sys.exit(f"release_check: {message}")


def said(command: Sequence[str | Path], **options: object) -> str:
    """Run a program and give its standard output, or fail with what it said."""
    done = subprocess.run(
        [str(word) for word in command],
        capture_output=True,
        text=True,
        check=False,
        **options,  # type: ignore[call-overload]
    )
    if done.returncode != 0:
        fail(f"{' '.join(map(str, command))} ended with {done.returncode}:\n{done.stderr[-3000:]}")
    output: str = done.stdout
    return output


def version() -> str:
    """Read the one place where the version stands."""
    found = re.search(r'^__version__ = "(.+)"$', (ROOT / "twinserve/__init__.py").read_text(), re.M)
    if found is None:
        fail("twinserve/__init__.py says no __version__")
    return found[1]


def check_versions(version: str) -> None:
    """Hold chart, changelog and tag to the version."""
    chart = (ROOT / "deploy/helm/twinserve/Chart.yaml").read_text()
    for name in ("version", "appVersion"):
        if f"\n{name}: {version}\n" not in chart:
            fail(f"{name} of deploy/helm/twinserve/Chart.yaml is not {version}")
    headings = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.M)
    tags = said(["git", "-C", ROOT, "tag", "--points-at", "HEAD"]).split()
    if tags and tags != [f"v{version}"]:
        fail(f"this commit is tagged {', '.join(tags)}, and the version is {version}")
    if headings[0] != version and (tags or headings[0] != "Unreleased"):
        fail(f"CHANGELOG.md begins with {headings[0]}, not with {version}")
    if not (ROOT / f"tests/fixtures/upgrade/{version}.tar.xz").exists():
        fail(
            f"tests/fixtures/upgrade has no {version}.tar.xz, which the next release is tried on: "
            "run its make.py"
        )
    print(f"version {version} everywhere; the changelog begins with {headings[0]}")


def built(folder: Path) -> tuple[Path, Path]:
    """Build sdist, wheel from the sdist and wheel from the tree; the wheels hold the same."""
    said([sys.executable, "-m", "build", "--outdir", folder, ROOT], env=BUILDING)
    said(
        [sys.executable, "-m", "build", "--wheel", "--outdir", folder / "tree", ROOT], env=BUILDING
    )
    (sdist,), (wheel,) = folder.glob("*.tar.gz"), folder.glob("*.whl")
    (of_tree,) = (folder / "tree").glob("*.whl")
    differing = sorted(records(wheel) ^ records(of_tree))
    if differing:
        fail(f"the wheels of sdist and tree differ: {differing[:6]}")
    with tarfile.open(sdist) as archive:
        packed = {name.partition("/")[2] for name in archive.getnames()}
    missing = sorted(set(IN_SDIST) - packed)
    if missing:
        fail(f"the sdist lacks {', '.join(missing)}")
    print(f"{sdist.name} and {wheel.name}, which is the same from sdist and tree")
    return sdist, wheel


def records(wheel: Path) -> set[str]:
    """Read which files a wheel holds, with their digests."""
    with zipfile.ZipFile(wheel) as opened:
        (name,) = (one for one in opened.namelist() if one.endswith(".dist-info/RECORD"))
        return set(opened.read(name).decode().splitlines())


def installed(folder: Path, wheel: Path, extra: str, version: str) -> Path:
    """Install one extra into a new environment; gives its programs."""
    said([sys.executable, "-m", "venv", folder])
    said(
        [folder / "bin/pip", "install", "--quiet", f"twinserve[{extra}] @ {wheel.as_uri()}"],
        env={**BUILDING, "HNSWLIB_NO_NATIVE": "1"},
    )
    programs = folder / "bin"
    answer = said([programs / "twinserve", "--version"], cwd=folder)
    if version not in answer:
        fail(f"twinserve --version says {answer!r}, not {version}")
    asked = "import twinserve._build as build; print(build.COMMIT)"
    commit = said([programs / "python", "-c", asked], cwd=folder).strip()
    print(f"twinserve[{extra}]: {answer.splitlines()[0]}, of commit {commit[:12]}")
    return programs


def check_round_trip(server: Path, client: Path, folder: Path) -> None:
    """Inspect, serve and stop with one environment; enrol and search with the other."""
    said([server / "twinserve", "inspect", TWIN], cwd=folder)
    process = subprocess.Popen(
        [
            *(server / "twinserve", "serve", "--model", TWIN, "--data-dir", folder / "data"),
            *("--grpc-port", "0", "--http-port", "0"),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        cwd=folder,
    )
    try:
        assert process.stdout is not None
        found = re.search(r"grpc=(\S+)", process.stdout.readline())
        if found is None:
            fail("the server did not become SERVING")
        said([client / "twinserve", "health", "--target", found[1]], cwd=folder)
        said([client / "python", "-c", ROUND_TRIP, found[1]], cwd=folder)
        process.terminate()
        if process.wait(60) != 0:
            fail(f"SIGTERM ended the server with {process.returncode}")
    finally:
        process.kill()
        process.wait()
    print("inspected, served, enrolled, searched, stopped with 0")


def main(argv: Sequence[str] | None = None) -> int:
    """Run all steps."""
    parser = argparse.ArgumentParser(description="Try what would be released.")
    parser.add_argument(
        "--allow-dirty", action="store_true", help="although files differ from the commit"
    )
    options = parser.parse_args(argv)
    if said(["git", "-C", ROOT, "status", "--porcelain"]) and not options.allow_dirty:
        fail("files differ from the commit: commit them, or say --allow-dirty")
    now = version()
    check_versions(now)
    with tempfile.TemporaryDirectory(prefix="twinserve-release-") as name:
        folder = Path(name)
        _, wheel = built(folder / "dist")
        client = installed(folder / "client", wheel, "client", now)
        server = installed(folder / "server", wheel, "cpu", now)
        check_round_trip(server, client, folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
