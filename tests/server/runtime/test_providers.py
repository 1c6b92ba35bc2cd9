"""What was asked for is what runs, or a refusal that names what is missing."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from twinserve.errors import ConfigError, ProviderUnavailable
from twinserve.server.runtime import providers
from twinserve.server.runtime.providers import CPU, CUDA, TENSORRT, Device, GpuOptions, Runtime


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


def test_auto_takes_the_cpu_where_cuda_does_not_load(
    library_without_its_cuda: Path, caplog: pytest.LogCaptureFixture
) -> None:
    found = runtime(library_without_its_cuda, CUDA, CPU)
    assert providers.choose("auto", found) == Device(CPU, {})
    assert not [record for record in caplog.records if record.levelname == "WARNING"]
    assert providers.choose("auto", found, GpuOptions(extra={"a": "b"})) == Device(CPU, {})
    assert "--provider-option are for graphics cards, and have no effect" in caplog.text


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
    assert chosen.options == {
        "device_id": "1",
        "cudnn_conv_algo_search": "HEURISTIC",
        "arena_extend_strategy": "kSameAsRequested",
    }
    limited = providers.choose(
        "cuda", runtime(library, CUDA, CPU), GpuOptions(1 << 30, extra={"use_tf32": "0"})
    )
    assert limited.options["gpu_mem_limit"] == str(1 << 30)
    assert limited.options["use_tf32"] == "0"
    assert [name for name, _ in limited.chain({})] == [CUDA, CPU]


def test_the_cpu_asks_nothing_of_cuda(tmp_path: Path) -> None:
    assert providers.choose("cpu", runtime(tmp_path / "none.so", CPU)).label == "cpu"


def test_tensorrt_keeps_its_engines_and_leaves_to_cuda_what_it_does_not_take(
    tmp_path: Path,
) -> None:
    for name in ("cuda", "tensorrt"):
        library = tmp_path / f"libonnxruntime_providers_{name}.so"
        subprocess.run(["cc", "-shared", "-o", library, "-x", "c", "/dev/null"], check=True)
    found = runtime(tmp_path / "libonnxruntime_providers_cuda.so", TENSORRT, CUDA, CPU)
    chosen = providers.choose("tensorrt:2", found, GpuOptions(cache=tmp_path / "engines"))
    assert chosen.label == "tensorrt:2"
    assert chosen.options["trt_engine_cache_path"] == str(tmp_path / "engines")
    assert (tmp_path / "engines").is_dir()
    (first, own), (second, cuda), (third, _) = chosen.chain({"trt_fp16_enable": "1"})
    assert (first, second, third) == (TENSORRT, CUDA, CPU)
    assert own["trt_fp16_enable"] == "1"
    assert cuda["cudnn_conv_algo_search"] == "HEURISTIC"


def test_tensorrt_without_its_library_is_refused_by_name(tmp_path: Path) -> None:
    library = tmp_path / "libonnxruntime_providers_cuda.so"
    with pytest.raises(ProviderUnavailable, match=r"providers_tensorrt\.so is not there"):
        providers.choose("tensorrt", runtime(library, TENSORRT, CUDA, CPU))
    with pytest.raises(ProviderUnavailable, match="no TensorRT provider"):
        providers.choose("tensorrt", runtime(library, CUDA, CPU))


@pytest.mark.parametrize("device", ["gpu", "cpu:1", "cuda:x", "cuda:-1", "cuda:", "auto:0", ""])
def test_an_unknown_device_is_refused(device: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="auto, cpu, cuda"):
        providers.choose(device, runtime(tmp_path / "none.so", CPU))


def test_options_of_a_card_are_refused_on_a_cpu_that_was_asked_for(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="for graphics cards"):
        providers.choose("cpu", runtime(tmp_path / "none.so", CPU), GpuOptions(memory_limit=1))


@pytest.mark.parametrize(
    ("text", "size"),
    [("", 0), ("100", 100), ("512M", 512 << 20), ("8GiB", 8 << 30), ("2g", 2 << 30)],
)
def test_a_size_is_read(text: str, size: int) -> None:
    assert providers.memory_size(text) == size


@pytest.mark.parametrize("text", ["8X", "-1", "0", "1.5G", "G"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="512M"):
        providers.memory_size(text)


def test_a_provider_option_needs_a_key_and_a_value() -> None:
    assert providers.provider_options(["a=b", "c=d=e"]) == {"a": "b", "c": "d=e"}
    for text in ("a", "=b"):
        with pytest.raises(ConfigError, match="KEY=VALUE"):
            providers.provider_options([text])


def test_a_session_that_fell_back_in_silence_is_refused() -> None:
    with pytest.raises(ProviderUnavailable, match="CPUExecutionProvider only"):
        providers.check(Session(CPU), Device(CUDA, {"device_id": "0"}))
    providers.check(Session(CUDA, CPU), Device(CUDA, {"device_id": "0"}))
