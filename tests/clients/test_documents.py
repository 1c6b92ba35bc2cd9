"""The commands of docs/clients.md run as they stand, each where its program is at hand.

A block is marked with the program that it needs. Those that compile take half a minute each, and
need Debian's packages that the page names; they are among the long tests, and skipped elsewhere.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import google.rpc
import pytest

from tests import conftest, twins
from tests.conftest import RunningServer
from tests.server import wire
from twinserve.client import Client

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "clients.md"
BLOCK = re.compile(
    r"^<!-- run by tests/clients/test_documents\.py: (?P<program>[\w-]+) -->\n"
    r"```(?P<language>bash|js)\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
BLOCKS = [
    (one["program"], one["language"], one["text"]) for one in BLOCK.finditer(PAGE.read_text())
]
COMPILERS = ["protoc-gen-go-grpc", "grpc_java_plugin", "grpc_cpp_plugin"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder like the repository's root after `make googleapis node`, with three pictures."""
    made = tmp_path_factory.mktemp("root")
    (made / "protos").symlink_to(ROOT / "protos")
    (made / "examples").symlink_to(ROOT / "examples")
    imported = made / "build" / "googleapis" / "google" / "rpc"
    imported.mkdir(parents=True)
    for path in Path(google.rpc.__path__[0]).glob("*.proto"):
        shutil.copy(path, imported)
    pixels, _ = twins.classes_of_pixels(3, 1)
    for name, picture in zip(("one", "two", "three"), pixels, strict=True):
        (made / f"{name}.png").write_bytes(wire.png(picture))
    return made


def run(program: str, folder: Path, server: RunningServer) -> list[str]:
    """Run all blocks of a program; return what each said."""
    said = []
    path = os.pathsep.join(
        [str(ROOT / "tools" / "buf" / "node_modules" / ".bin"), os.environ["PATH"]]
    )
    found = [(language, text) for needed, language, text in BLOCKS if needed == program]
    assert found, f"no block of {PAGE.name} is marked with {program}"
    for language, text in found:
        assert "127.0.0.1:50051" in text
        script = text.replace("127.0.0.1:50051", server.target)
        starter = (
            ["bash", "-euo", "pipefail", "-c", script]
            if language == "bash"
            else ["node", "--input-type=module", "-e", script]
        )
        done = subprocess.run(
            starter,
            cwd=folder,
            env={**os.environ, "PATH": path},
            capture_output=True,
            text=True,
            timeout=280,
        )
        assert done.returncode == 0, done.stderr
        said.append(done.stdout)
    return said


def distance(folder: Path, server: RunningServer) -> float:
    """The distance that the Python client is told of one.png and two.png."""
    with Client(server.target) as client:
        (one,) = client.compare([(folder / "one.png", folder / "two.png")]).checked()
    return one.distance


def test_every_block_is_run_but_what_was_shown_by_hand() -> None:
    fences = re.findall(r"^```(\w+)$", PAGE.read_text(), re.MULTILINE)
    assert fences.count("bash") + fences.count("js") == len(BLOCKS)
    assert {program for program, _, _ in BLOCKS} == {"node", "buf", *COMPILERS}


def test_the_blocks_of_node_say_what_the_page_says(folder: Path, server: RunningServer) -> None:
    packages = ROOT / "examples" / "node" / "node_modules"
    conftest.require(
        packages.is_dir(), "the packages of examples/node are not there: run make node"
    )
    demo, snippet = run("node", folder, server)
    assert f"at {distance(folder, server):.4f}" in demo
    assert snippet == "nobody is enrolled yet\n"


def test_the_block_of_buf_runs(folder: Path, server: RunningServer) -> None:
    buf = ROOT / "tools" / "buf" / "node_modules" / ".bin" / "buf"
    conftest.require(buf.exists(), "buf is not installed: run make buf")
    (said,) = run("buf", folder, server)
    assert "twinserve.v1.GalleryService/Search" in said
    assert '"outcome": "OUTCOME_NO_MATCH"' in said


@pytest.mark.long
@pytest.mark.parametrize("program", COMPILERS)
def test_the_client_of_a_compiled_language_is_built_and_compares(
    program: str, folder: Path, server: RunningServer
) -> None:
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not installed; docs/clients.md names Debian's packages")
    (said,) = run(program, folder, server)
    outcome, told, _ = said.split()
    assert outcome == "OUTCOME_NO_MATCH"
    assert float(told.removeprefix("distance=")) == pytest.approx(
        distance(folder, server), abs=1e-4
    )
