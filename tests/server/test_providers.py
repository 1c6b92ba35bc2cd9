"""What was asked for is what runs, or a refusal that names what is missing."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from twinserve.errors import ConfigError, ProviderUnavailable
from twinserve.server import providers
from twinserve.server.providers import CPU, CUDA, Device, Runtime


class Session:
    def __init__(self, *running: str) -> None:
        self._running = list(running)

    def get_providers(self) -> list[str]:
        return self._running


def runtime(library: Path, *available: str) -> Runtime:
    return Runtime(lambda: list(available), library)


@pytest.fixture
def library_without_its_cuda(tmp_path: Path) -> Path:
    """A real shared library that needs one which is not there, as on a machine without CUDA."""
    compiler = shutil.which("cc")
    assert compiler, "hnswlib needed a compiler, so it must be here"
    source = tmp_path / "empty.c"
    source.write_text("int nothing;\n")
    needed = tmp_path / "libcudart_of_nobody.so.13"
    subprocess.run([compiler, "-shared", "-o", needed, source], check=True)
    provider = tmp_path / "libonnxruntime_providers_cuda.so"
    subprocess.run(
        [compiler, "-shared", "-o", provider, source, "-Wl,--no-as-needed", needed.name],
        check=True,
        cwd=tmp_path,
    )
    needed.unlink()
    return provider


def test_cuda_without_its_library_is_refused_by_the_librarys_name(
    library_without_its_cuda: Path,
) -> None:
    with pytest.raises(ProviderUnavailable, match=r"libcudart_of_nobody\.so\.13"):
        providers.choose("cuda", runtime(library_without_its_cuda, CUDA, CPU))


def test_auto_takes_the_cpu_where_cuda_does_not_load(library_without_its_cuda: Path) -> None:
    chosen = providers.choose("auto", runtime(library_without_its_cuda, CUDA, CPU))
    assert chosen == Device(CPU, {})


def test_cuda_is_refused_where_onnxruntime_was_built_without_it(tmp_path: Path) -> None:
    with pytest.raises(ProviderUnavailable, match=r"twinserve\[gpu\]"):
        providers.choose("cuda:1", runtime(tmp_path / "none.so", CPU))


def test_cuda_that_loads_is_chosen_with_its_device_and_cheap_convolution_search(
    tmp_path: Path,
) -> None:
    source = tmp_path / "empty.c"
    source.write_text("int nothing;\n")
    library = tmp_path / "libonnxruntime_providers_cuda.so"
    subprocess.run(["cc", "-shared", "-o", library, source], check=True)
    chosen = providers.choose("cuda:1", runtime(library, CUDA, CPU))
    assert chosen.label == "cuda:1"
    assert chosen.options == {"device_id": "1", "cudnn_conv_algo_search": "HEURISTIC"}


def test_the_cpu_asks_nothing_of_cuda(tmp_path: Path) -> None:
    assert providers.choose("cpu", runtime(tmp_path / "none.so", CPU)).label == "cpu"


@pytest.mark.parametrize("device", ["gpu", "cpu:1", "cuda:x", "cuda:-1", ""])
def test_an_unknown_device_is_refused(device: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="auto, cpu, cuda"):
        providers.choose(device, runtime(tmp_path / "none.so", CPU))


def test_a_session_that_fell_back_in_silence_is_refused() -> None:
    with pytest.raises(ProviderUnavailable, match="CPUExecutionProvider only"):
        providers.check(Session(CPU), Device(CUDA, {"device_id": "0"}))
    providers.check(Session(CUDA, CPU), Device(CUDA, {"device_id": "0"}))


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu.max": "150000 100000\n"}, 2),
        ({"cpu.max": "50000 100000\n"}, 1),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "400000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 4),
        ({}, None),
    ],
)
def test_the_containers_quota_is_read(
    files: dict[str, str], quota: int | None, tmp_path: Path
) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert providers.quota(tmp_path) == quota


def test_no_more_processors_are_used_than_this_process_may_use() -> None:
    command = "from twinserve.server import providers; print(providers.processors())"
    taskset = shutil.which("taskset")
    assert taskset

    out = subprocess.run(
        [taskset, "-c", "0", sys.executable, "-c", command], capture_output=True, check=True
    )
    assert out.stdout == b"1\n"
