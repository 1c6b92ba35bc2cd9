"""The commands of docs/clients.md, run where their program is at hand.

A block is marked with the program that it needs. Those that compile take half a minute each, and
need Debian's packages that the page names; they are among the long tests, and skipped elsewhere.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import google.rpc
import pytest

from tests import conftest, twins
from tests.conftest import RunningServer
from tests.server import wire
from twinserve.client import Client

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "clients.md"
PROGRAMS = ROOT / "tools" / "buf" / "node_modules" / ".bin"
PACKAGES = ROOT / "examples" / "node" / "node_modules"
MARKED = re.compile(
    r"^<!-- run by tests/clients/test_documents\.py: (?P<program>[\w-]+) -->\n"
    r"```(?P<language>bash|js)\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)

# A line of the page's table that makes stubs, by the language's name.
LINES = re.compile(r"^\| (?P<language>[\w+]+) \| `(?P<command>protoc .*?)` \|", re.MULTILINE)
PLUGINS = {"Go": "protoc-gen-go-grpc", "Java": "grpc_java_plugin", "C++": "grpc_cpp_plugin"}


@dataclass(frozen=True)
class Block:
    """A marked block of a page."""

    program: str
    language: str
    text: str

    def run(self, folder: Path, server: RunningServer) -> str:
        """Run it against this server; return what it said."""
        assert "127.0.0.1:50051" in self.text
        script = self.text.replace("127.0.0.1:50051", server.target)
        starters = {
            "bash": ["bash", "-euo", "pipefail", "-c"],
            "js": ["node", "--input-type=module", "-e"],
        }
        done = subprocess.run(
            [*starters[self.language], script],
            cwd=folder,
            env={**os.environ, "PATH": os.pathsep.join([str(PROGRAMS), os.environ["PATH"]])},
            capture_output=True,
            text=True,
            timeout=280,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout


def blocks(page: Path, program: str = "") -> list[Block]:
    """Return the marked blocks of a page, or those of one program."""
    found = [Block(**one.groupdict()) for one in MARKED.finditer(page.read_text())]
    return [block for block in found if program in ("", block.program)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder like the repository's root after `make googleapis node`, with some pictures."""
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


def distance(folder: Path, server: RunningServer) -> float:
    """The distance that the Python client is told of one.png and two.png."""
    with Client(server.target) as client:
        (one,) = client.compare([(folder / "one.png", folder / "two.png")]).checked()
    return one.distance


def test_every_block_of_the_page_is_marked_but_what_was_shown_by_hand() -> None:
    fences = re.findall(r"^```(\w+)$", PAGE.read_text(), re.MULTILINE)
    assert fences.count("bash") + fences.count("js") == len(blocks(PAGE))
    assert {block.program for block in blocks(PAGE)} == {"node", "buf", *PLUGINS.values()}


def test_the_blocks_of_node_say_what_the_page_says(folder: Path, server: RunningServer) -> None:
    conftest.require(PACKAGES.is_dir(), "examples/node lacks its packages: run make node")
    demo, snippet = (block.run(folder, server) for block in blocks(PAGE, "node"))
    assert f"at {distance(folder, server):.4f}" in demo
    assert snippet == "nobody is enrolled yet\n"


def test_the_block_of_buf_runs(folder: Path, server: RunningServer) -> None:
    conftest.require((PROGRAMS / "buf").exists(), "buf is not installed: run make buf")
    (block,) = blocks(PAGE, "buf")
    said = block.run(folder, server)
    assert "twinserve.v1.GalleryService/Search" in said
    assert '"outcome": "OUTCOME_NO_MATCH"' in said


@pytest.mark.parametrize("language", PLUGINS)
def test_the_pages_line_of_a_language_makes_its_stubs(language: str, folder: Path) -> None:
    commands = {one["language"]: one["command"] for one in LINES.finditer(PAGE.read_text())}
    if shutil.which("protoc") is None or shutil.which(PLUGINS[language]) is None:
        pytest.skip(f"protoc or {PLUGINS[language]} is not installed")
    script = f"rm -rf build/stubs; mkdir build/stubs; {commands[language]}"
    subprocess.run(["bash", "-euc", script], cwd=folder, check=True, timeout=60)
    made = {path.name.lower().replace("_", "")[:16] for path in folder.glob("build/stubs/*/v1/*")}
    assert "embeddingservice" in made


@pytest.mark.long
@pytest.mark.parametrize("program", PLUGINS.values())
def test_the_client_of_a_compiled_language_is_built_and_compares(
    program: str, folder: Path, server: RunningServer
) -> None:
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not installed; docs/clients.md names Debian's packages")
    (block,) = blocks(PAGE, program)
    outcome, told, _ = block.run(folder, server).split()
    assert outcome == "OUTCOME_NO_MATCH"
    expected = pytest.approx(distance(folder, server), abs=1e-4)
    assert float(told.removeprefix("distance=")) == expected
