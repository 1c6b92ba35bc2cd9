"""tools/environment.py: what a machine lacks is said in one line, before anything is installed."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType

import pytest

CPU = ["filelock", "sympy>=1.13", 'nvidia-modelopt; extra == "quantize"']
CUDA = [*CPU, 'nvidia-cudnn-cu13==9.2; platform_system == "Linux"', "cuda-bindings<14,>=13"]


@pytest.fixture(scope="module")
def environment(tool: Callable[[str], ModuleType]) -> ModuleType:
    return tool("environment")


def report(requires: Sequence[str]) -> str:
    """Imitate the part of pip's report that is read."""
    return json.dumps({"install": [{"metadata": {"name": "torch", "requires_dist": requires}}]})


def answering(status: int, output: str = "", error: str = "") -> Callable[..., object]:
    """Make a runner that answers every command alike."""
    return lambda command: subprocess.CompletedProcess(command, status, output, error)


def test_a_torch_that_brings_cuda_is_refused_where_no_gpu_is(environment: ModuleType) -> None:
    with pytest.raises(environment.Missing) as raised:
        environment.check_torch(answering(0, report(CUDA)), ["pip"], gpu=False, goal="test")

    message = str(raised.value)
    assert "\n" not in message
    assert "(2 packages)" in message
    assert "make test TORCH_INDEX=<address>" in message
    assert "make test CUDA=yes" in message


def test_a_torch_that_brings_cuda_is_taken_where_a_gpu_is(environment: ModuleType) -> None:
    environment.check_torch(answering(0, report(CUDA)), ["pip"], gpu=True)


def test_a_torch_for_the_cpu_is_taken_anywhere(environment: ModuleType) -> None:
    asked: list[Sequence[str]] = []

    def resolve(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
        asked.append(command)
        return subprocess.CompletedProcess(command, 0, report(CPU), "")

    environment.check_torch(resolve, ["pip"], gpu=False)
    assert asked[0][-1] == environment.torch_pin()


def test_a_torch_that_pip_cannot_find_is_named_with_pips_reason(environment: ModuleType) -> None:
    with pytest.raises(environment.Missing, match="No matching distribution"):
        environment.check_torch(
            answering(1, error="x\nERROR: No matching distribution"), ["pip"], gpu=False
        )


def test_the_constraints_pin_one_torch_without_a_local_suffix(environment: ModuleType) -> None:
    assert environment.torch_pin() == "torch==2.13.0"


def test_a_gpu_is_seen_by_its_driver_or_by_a_working_nvidia_smi(
    environment: ModuleType, tmp_path: Path
) -> None:
    nowhere = tmp_path / "driver"
    assert not environment.has_nvidia_gpu(answering(9), nowhere)
    assert environment.has_nvidia_gpu(answering(0), nowhere)
    assert environment.has_nvidia_gpu(answering(9), tmp_path)


def test_the_compiler_here_is_found(environment: ModuleType) -> None:
    environment.check_compiler()


def test_a_missing_compiler_is_one_line_that_names_the_packages(environment: ModuleType) -> None:
    with pytest.raises(environment.Missing, match=r"no working C\+\+ compiler.*g\+\+ python3-dev"):
        environment.check_compiler(compiler="no-such-compiler")


def test_missing_python_headers_are_one_line_that_names_the_package(
    environment: ModuleType, tmp_path: Path
) -> None:
    with pytest.raises(environment.Missing, match=r"Python\.h is not in .*python3-dev"):
        environment.check_compiler(include=tmp_path)


def test_a_python_without_venv_is_one_line_that_names_the_package(environment: ModuleType) -> None:
    with pytest.raises(environment.Missing, match="apt-get install python3-venv"):
        environment.check_venv(answering(1))


@pytest.mark.parametrize("version", [(3, 10), (3, 13)])
def test_an_untried_python_is_refused_by_name(
    environment: ModuleType, version: tuple[int, int]
) -> None:
    with pytest.raises(environment.Missing, match=rf"Python {version[0]}\.{version[1]} is not"):
        environment.check_python(version)


def test_a_program_that_is_not_there_counts_as_a_failure(environment: ModuleType) -> None:
    assert environment.run_quietly(["no-such-program"]).returncode == 127


def test_what_is_missing_ends_the_script_with_one_line_and_status_1(tmp_path: Path) -> None:
    """Run whole, with a path on which no compiler lies."""
    script = Path(__file__).resolve().parents[2] / "tools" / "environment.py"
    done = subprocess.run(
        [sys.executable, str(script), "--extra", "all", str(tmp_path / "venv")],
        capture_output=True,
        text=True,
        env={"PATH": str(tmp_path)},
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("twinserve: no working C++ compiler")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "venv").exists()


def test_an_environment_made_by_another_python_is_made_anew(tmp_path: Path) -> None:
    """Else a first try with the wrong Python would stay for good."""
    folder = tmp_path / "venv"
    (folder / "bin").mkdir(parents=True)
    python = folder / "bin" / "python"
    python.write_text("#!/bin/sh\nexit 1\n")
    python.chmod(0o755)
    (tmp_path / "nothing.txt").touch()
    script = Path(__file__).resolve().parents[2] / "tools" / "environment.py"
    subprocess.run(
        [sys.executable, str(script), "--requirements", str(tmp_path / "nothing.txt"), str(folder)],
        capture_output=True,
        check=True,
    )
    version = [str(python), "-c", "import sys; print(sys.version_info[:2])"]
    assert subprocess.check_output(version, text=True).strip() == str(sys.version_info[:2])


@pytest.mark.parametrize(
    ("said", "flags"),
    [
        ("model\t: 1\nflags\t\t: fpu sse2 avx avx2 fma\nflags\t\t: fpu\n", "-mavx2 -mfma"),
        ("flags\t\t: fpu sse2 avx\n", ""),
        ("Features\t: fp asimd\n", ""),
        (None, ""),
    ],
)
def test_wide_vectors_are_compiled_for_where_the_processor_has_them(
    environment: ModuleType, tmp_path: Path, said: str | None, flags: str
) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    if said is not None:
        cpuinfo.write_text(said)
    assert environment.vector_flags(cpuinfo) == flags
