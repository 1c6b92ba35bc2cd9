"""What users install: the sdist, the wheel built from it, and what each extra brings.

The trap: a wheel built from an sdist that missed the linked folders (twinserve/server and so on)
installs without a word and fails at the first import.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
import textwrap
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest

from twinserve import __version__

LINKED = ("server", "train", "export", "cli")


@dataclass(frozen=True)
class Built:
    """The two files of a release."""

    sdist: Path
    wheel: Path


@pytest.fixture(scope="module")
def built(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Built:
    """Build the sdist, then the wheel from that sdist, as `make wheel` does."""
    out = tmp_path_factory.mktemp("dist")
    pins = str(root / "constraints.txt")
    subprocess.run(
        [sys.executable, "-m", "build", "--outdir", str(out), str(root)],
        check=True,
        capture_output=True,
        env={**os.environ, "PIP_CONSTRAINT": pins, "PIP_BUILD_CONSTRAINT": pins},
    )
    return Built(next(out.glob("*.tar.gz")), next(out.glob("*.whl")))


@pytest.fixture(scope="module")
def unpacked(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Unpack the wheel, so that it can be imported instead of the working tree."""
    folder = tmp_path_factory.mktemp("wheel")
    with zipfile.ZipFile(built.wheel) as wheel:
        wheel.extractall(folder)
    return folder


def import_without(
    folder: Path, modules: str, forbidden: tuple[str, ...]
) -> subprocess.CompletedProcess[str]:
    """Import modules from an unpacked wheel in a process where others cannot be imported."""
    code = textwrap.dedent(f"""
        import sys, importlib

        class Wall:
            def find_spec(self, name, path=None, target=None):
                for one in {forbidden!r}:
                    if name == one or name.startswith(one + "."):
                        raise ImportError(f"{{name}} was asked for")

        sys.meta_path.insert(0, Wall())
        for name in {modules.split()!r}:
            module = importlib.import_module(name)
            assert module.__file__.startswith({str(folder)!r}), module.__file__
    """)
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_wheel_holds_every_module_of_the_working_tree(root: Path, unpacked: Path) -> None:
    ours = {
        f"twinserve/{path.relative_to(root / 'twinserve')}"
        for path in (root / "twinserve").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    for folder in LINKED:
        ours |= {
            f"twinserve/{path.relative_to(root)}"
            for path in (root / folder).rglob("*")
            if path.is_file() and "__pycache__" not in path.parts
        }
    packed = {str(path.relative_to(unpacked)) for path in unpacked.rglob("*") if path.is_file()}

    assert {name for name in ours - packed if not name.endswith(".pyc")} == set()
    assert "twinserve/py.typed" in packed
    assert "twinserve/v1/gallery_service_pb2.pyi" in packed
    assert any(re.fullmatch(r"twinserve/train/presets/\w+\.toml", name) for name in packed)


def test_the_wheel_holds_nothing_but_the_package(unpacked: Path) -> None:
    assert {path.name.split("-")[0] for path in unpacked.iterdir()} == {"twinserve"}


def test_the_sdist_holds_the_linked_folders_the_contract_and_the_tests(built: Built) -> None:
    with tarfile.open(built.sdist) as archive:
        names = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    for folder in LINKED:
        assert f"twinserve/{folder}/__init__.py" in names
    assert "protos/twinserve/v1/shared.proto" in names
    assert "tests/house/test_packaging.py" in names


def test_the_sdist_holds_what_a_packager_needs(
    built: Built, tool: Callable[[str], ModuleType]
) -> None:
    with tarfile.open(built.sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert set(tool("release_check").IN_SDIST) <= names


def test_the_version_stands_in_one_place_and_the_commit_in_the_wheel(
    root: Path, built: Built, unpacked: Path
) -> None:
    assert f"-{__version__}-" in built.wheel.name
    assert not (root / "twinserve/_build.py").exists(), "a checkout has none"
    facts: dict[str, str] = {}
    exec((unpacked / "twinserve/_build.py").read_text(), facts)
    head = subprocess.run(
        ["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, check=True
    ).stdout.strip()
    assert facts["COMMIT"] in (head, f"{head}-dirty")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", facts["TIME"])


def test_the_server_and_the_command_line_start_without_torch_and_the_trainer(
    unpacked: Path,
) -> None:
    done = import_without(
        unpacked,
        "twinserve.server.__main__ twinserve.cli.__main__",
        ("torch", "onnx", "onnxscript", "pyarrow", "twinserve.train", "twinserve.export"),
    )
    assert done.returncode == 0, done.stderr


def test_the_client_needs_no_runtime_no_index_and_no_pictures(unpacked: Path) -> None:
    done = import_without(
        unpacked,
        "twinserve.client twinserve.transfer twinserve.cli.__main__",
        ("torch", "onnx", "onnxruntime", "hnswlib", "PIL", "tokenizers", "aiohttp", "pyarrow"),
    )
    assert done.returncode == 0, done.stderr


def test_the_wall_of_these_tests_stops_what_it_should(unpacked: Path) -> None:
    done = import_without(unpacked, "twinserve.train.losses", ("torch",))
    assert "ImportError: torch was asked for" in done.stderr


def fresh_environment(folder: Path, root: Path, requirement: str) -> Path:
    """Install a requirement into a new environment; gives its folder of programs."""
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    pins = str(root / "constraints.txt")
    subprocess.run(
        [str(folder / "bin/pip"), "install", "--quiet", requirement],
        check=True,
        env={
            **os.environ,
            "PIP_CONSTRAINT": pins,
            "PIP_BUILD_CONSTRAINT": pins,
            "HNSWLIB_NO_NATIVE": "1",
        },
    )
    return folder / "bin"


def packages(programs: Path) -> set[str]:
    """List what is installed in an environment, in lower case."""
    frozen = subprocess.run(
        [str(programs / "pip"), "freeze"], check=True, capture_output=True, text=True
    ).stdout
    return {re.split(r"[ =@]", line)[0].lower() for line in frozen.splitlines()}


@pytest.mark.long
@pytest.mark.timeout(900)
def test_the_wheel_with_the_cpu_extra_serves_a_twin_with_no_torch_on_the_machine(
    root: Path, built: Built, tmp_path: Path, twin_file: Path
) -> None:
    programs = fresh_environment(
        tmp_path / "server", root, f"twinserve[cpu] @ {built.wheel.as_uri()}"
    )
    assert packages(programs).isdisjoint({"torch", "onnx", "onnxscript", "pyarrow", "pytest"})

    server = subprocess.Popen(
        [
            *(str(programs / "twinserve"), "serve", "--model", str(twin_file)),
            *("--data-dir", str(tmp_path / "data"), "--grpc-port", "0", "--http-port", "0"),
        ],
        stdout=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
    )
    try:
        assert server.stdout is not None
        serving = next(line for line in server.stdout if "SERVING" in line)
        target = re.search(r"grpc=(\S+)", serving)
        assert target
        code = textwrap.dedent(f"""
            import numpy as np
            from twinserve.client import Client

            with Client({target[1]!r}) as client:
                pixels = np.zeros((28, 28, 1), np.uint8)
                pixels[4:20, 10:12] = 255
                answer = client.embed([pixels])
            assert answer.vectors.shape[0] == 1 and np.isfinite(answer.vectors).all()
        """)
        subprocess.run([str(programs / "python"), "-c", code], check=True, cwd=tmp_path)
        server.terminate()
        assert server.wait(60) == 0
    finally:
        server.kill()
        server.wait()
        server.stdout.close()


@pytest.mark.long
@pytest.mark.timeout(300)
def test_the_client_extra_installs_neither_a_runtime_nor_torch(
    root: Path, built: Built, tmp_path: Path
) -> None:
    programs = fresh_environment(
        tmp_path / "client", root, f"twinserve[client] @ {built.wheel.as_uri()}"
    )
    heavy = {"torch", "onnx", "onnxruntime", "hnswlib", "pillow", "aiohttp", "pyarrow"}
    assert packages(programs).isdisjoint(heavy)
    subprocess.run(
        [str(programs / "python"), "-c", "import twinserve.client"], check=True, cwd=tmp_path
    )


@pytest.mark.long
@pytest.mark.timeout(900)
def test_the_dockerfiles_steps_run_in_order_and_end_in_a_server(
    root: Path, twin_file: Path
) -> None:
    done = subprocess.run(
        [
            *(sys.executable, str(root / "tools/dockerfile_dry_run.py")),
            *("--python", sys.executable, "--twin", str(twin_file)),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "served, healthy, stopped with 0" in done.stdout
