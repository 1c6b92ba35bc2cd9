"""The Node client of examples/node: its own tests, and its demo, against a real server."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests import conftest, twins
from tests.conftest import RunningServer
from tests.server import wire
from twinserve.client import Client

FOLDER = Path(__file__).resolve().parents[2] / "examples" / "node"
PIXELS, _ = twins.classes_of_pixels(3, 1)


@pytest.fixture(scope="module", autouse=True)
def _installed() -> None:
    conftest.require(shutil.which("node"), "node is not installed; Node.js 20 or newer brings it")
    conftest.require(
        (FOLDER / "node_modules" / "@grpc" / "grpc-js").is_dir(),
        "the packages of examples/node are not installed: run make node",
    )


def node(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["node", *arguments],
        cwd=FOLDER,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=200,
    )


def test_its_own_tests_pass(server: RunningServer) -> None:
    tests = sorted((FOLDER / "test").glob("*.test.js"))
    assert len(tests) == 2
    done = node("--test", "--test-reporter=tap", *tests, TWINSERVE_TARGET=server.target)
    assert done.returncode == 0, done.stdout
    assert "# fail 0" in done.stdout
    assert "# skipped 0" in done.stdout
    assert done.stdout.count("    ok ") == 11


def test_its_demo_says_of_pictures_what_our_client_says(
    server: RunningServer, tmp_path: Path
) -> None:
    files = [tmp_path / f"{name}.png" for name in ("probe", "second", "third")]
    for path, picture in zip(files, PIXELS, strict=True):
        path.write_bytes(wire.png(picture))
    (tmp_path / "bad.png").write_text("no picture")
    done = node("demo.js", "--target", server.target, *files, tmp_path / "bad.png")
    assert (done.returncode, done.stderr) == (0, "")

    with Client(server.target) as client:
        embeddings = client.embed(files)
        pairs = [(files[0], files[1]), (files[0], files[2])]
        second, third = (one.distance for one in client.compare(pairs).checked())
        assert not list(client.list_galleries()), "the demo leaves nothing behind"
    nearest = sorted([(second, "second.png"), (third, "third.png")])
    assert done.stdout.splitlines() == [
        *(f"embedded {name}.png: 16 values" for name in ("probe", "second", "third")),
        "embedded bad.png: IMAGE_UNDECODABLE",
        f"space {embeddings.space_id}",
        f"compared: OUTCOME_NO_MATCH at {second:.4f}",
        "enrolled 2 of 3",
        *(f"found {name} at {distance:.4f}" for distance, name in nearest),
    ]


def test_its_demo_tells_a_refusal_by_its_reason(server: RunningServer, tmp_path: Path) -> None:
    picture = tmp_path / "one.png"
    picture.write_bytes(wire.png(PIXELS[0]))
    done = node("demo.js", "--target", server.target, "--model", "nobody", picture, picture)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("MODEL_NOT_FOUND: ")
