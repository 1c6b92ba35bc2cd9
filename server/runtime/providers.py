"""Which hardware runs a twin: what was asked for, or a refusal that names what is missing.

onnxruntime falls back to the CPU in silence when a CUDA library is missing, and says so only in its
log. Here a device that was asked for either runs or stops the server with a sentence; `auto` takes
the best that really loads and says which.
"""

from __future__ import annotations

import ctypes
import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from twinserve.errors import ConfigError, ProviderUnavailable

log = logging.getLogger(__name__)

CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"
TENSORRT = "TensorrtExecutionProvider"

_KINDS = {"cpu": CPU, "cuda": CUDA, "tensorrt": TENSORRT}
_SIZE = re.compile(r"([1-9][0-9]*)([KMGT]?)i?B?", re.IGNORECASE)
_UNITS = {"": 0, "K": 10, "M": 20, "G": 30, "T": 40}


@dataclass(frozen=True)
class Device:
    """A provider with its options."""

    provider: str
    options: dict[str, str]
    # Of CUDA, for the nodes that TensorRT does not take.
    cuda_options: dict[str, str] = field(default_factory=dict)

    @property
    def kind(self) -> str:
        """The word of `--device`: cpu, cuda or tensorrt."""
        return next(kind for kind, provider in _KINDS.items() if provider == self.provider)

    @property
    def index(self) -> int:
        """Which card; 0 on a CPU."""
        return int(self.options.get("device_id", "0"))

    @property
    def label(self) -> str:
        """Name for people: cpu, cuda:0 or tensorrt:0."""
        return "cpu" if self.provider == CPU else f"{self.kind}:{self.index}"

    def chain(self, options: Mapping[str, str]) -> list[tuple[str, dict[str, str]]]:
        """List this provider and those behind it, as onnxruntime takes them.

        Args:
            options: of this provider, that this session needs besides.
        """
        providers = [(self.provider, {**self.options, **options})]
        if self.provider == TENSORRT:
            providers.append((CUDA, dict(self.cuda_options)))
        if self.provider != CPU:
            # Shapes and such are computed there; `--strict-device` refuses even those.
            providers.append((CPU, {}))
        return providers


@dataclass(frozen=True)
class GpuOptions:
    """What the operator says about graphics cards."""

    memory_limit: int = 0  # bytes of one session's arena; 0: the whole card
    cache: Path | None = None  # where TensorRT keeps the engines that it built
    extra: Mapping[str, str] = field(default_factory=dict)  # --provider-option KEY=VALUE


@dataclass(frozen=True)
class Runtime:
    """What of onnxruntime decides about providers; tests pass another."""

    available: Callable[[], list[str]]
    cuda_library: Path

    @property
    def tensorrt_library(self) -> Path:
        """The library of TensorRT's provider, beside CUDA's."""
        return self.cuda_library.with_name("libonnxruntime_providers_tensorrt.so")

    @staticmethod
    def installed() -> Runtime:
        """The onnxruntime of this environment."""
        import onnxruntime

        folder = Path(onnxruntime.__file__).parent / "capi"
        return Runtime(_available, folder / "libonnxruntime_providers_cuda.so")


def choose(device: str, runtime: Runtime, options: GpuOptions | None = None) -> Device:
    """Turn `--device` into a provider that loads here.

    Raises:
        ConfigError: not auto, cpu, cuda[:N] or tensorrt[:N]; or options for a CPU.
        ProviderUnavailable: what was asked for cannot load; the message names the library.
    """
    options = options or GpuOptions()
    kind, separator, index = device.partition(":")
    on_card = kind in ("cuda", "tensorrt")
    good_index = on_card and index.isdigit() if separator else True
    if kind not in ("auto", *_KINDS) or not good_index:
        raise ConfigError(
            f"--device {device} is unknown; give auto, cpu, cuda, cuda:N, tensorrt or tensorrt:N"
        )
    if kind == "cpu":
        if options.memory_limit or options.extra:
            raise ConfigError(
                "--gpu-memory-limit and --provider-option are for graphics cards, and --device is "
                "cpu; leave them out"
            )
        return Device(CPU, {})
    reason = missing(runtime, TENSORRT if kind == "tensorrt" else CUDA)
    if reason is None:
        return _card(kind, index or "0", options)
    if on_card:
        raise ProviderUnavailable(
            f"--device {device} was asked for, but {reason}; mend that, or give --device cpu"
        )
    log.info("device auto: cpu, since %s", reason)
    if options.memory_limit or options.extra:
        log.warning(
            "--gpu-memory-limit and --provider-option are for graphics cards, and have no effect "
            "on the cpu; --device cuda refuses to start without a card"
        )
    return Device(CPU, {})


def _card(kind: str, index: str, options: GpuOptions) -> Device:
    cuda = {
        "device_id": index,
        # The exhaustive default searches again for every new batch size, for 600 ms.
        "cudnn_conv_algo_search": "HEURISTIC",
        # Doubling takes up to twice what is needed from whoever shares the card.
        "arena_extend_strategy": "kSameAsRequested",
    }
    if options.memory_limit:
        cuda["gpu_mem_limit"] = str(options.memory_limit)
    if kind != "tensorrt":
        return Device(CUDA, {**cuda, **options.extra})
    tensorrt = {"device_id": index}
    if options.memory_limit:
        tensorrt["trt_max_workspace_size"] = str(options.memory_limit)
    if options.cache is not None:
        options.cache.mkdir(parents=True, exist_ok=True)
        folder = str(options.cache)
        tensorrt |= {
            # An engine takes tens of seconds to build, and is good for this card alone.
            "trt_engine_cache_enable": "1",
            "trt_engine_cache_path": folder,
            "trt_timing_cache_enable": "1",
            "trt_timing_cache_path": folder,
        }
    return Device(TENSORRT, {**tensorrt, **options.extra}, cuda)


def memory_size(text: str) -> int:
    """Read a number of bytes such as 8G or 512M (of 1024 each); nothing is 0.

    Raises:
        ConfigError: not a size.
    """
    if not text:
        return 0
    found = _SIZE.fullmatch(text)
    if not found:
        raise ConfigError(f"--gpu-memory-limit {text} is no size; give bytes, or 512M, or 8G")
    return int(found[1]) << _UNITS[found[2].upper()]


def provider_options(texts: list[str]) -> dict[str, str]:
    """Read `--provider-option KEY=VALUE`.

    Raises:
        ConfigError: without a key or a value.
    """
    options = {}
    for text in texts:
        key, separator, value = text.partition("=")
        if not key or not separator:
            raise ConfigError(
                f"--provider-option {text} is no KEY=VALUE; give one such as "
                "cudnn_conv_use_max_workspace=0"
            )
        options[key] = value
    return options


def check(session: Any, device: Device) -> None:
    """Refuse a session that runs elsewhere than asked.

    Raises:
        ProviderUnavailable: the session lacks the provider.
    """
    running = session.get_providers()
    if device.provider not in running:
        raise ProviderUnavailable(
            f"{device.label} was asked for, but onnxruntime made a session with "
            f"{', '.join(running)} only; its log above says why. Mend that, or give --device cpu"
        )


def missing(runtime: Runtime, provider: str) -> str | None:
    """Say why a provider of graphics cards cannot load, or None when it can."""
    name, library = "CUDA", runtime.cuda_library
    if provider == TENSORRT:
        name, library = "TensorRT", runtime.tensorrt_library
    if provider not in runtime.available():
        return (
            f"the onnxruntime installed here has no {name} provider (install twinserve[gpu] alone)"
        )
    if not library.exists():
        return f"{library.name} is not there (install onnxruntime-gpu again)"
    _preload()
    try:
        # The loader names the first library that is missing, which onnxruntime only logs.
        ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
    except OSError as error:
        text = str(error)
        # Loaded alone, the provider lacks the symbols that onnxruntime itself gives it.
        if "undefined symbol" not in text:
            return f"its {name} provider does not load: {text}"
    return None


def _available() -> list[str]:
    """Name the providers that onnxruntime was built with, and those that it took in as plugins."""
    import onnxruntime

    names = dict.fromkeys(onnxruntime.get_available_providers())
    # From 1.32 on CUDA may come as a plugin, which is listed among the devices alone.
    devices: list[Any] = getattr(onnxruntime, "get_ep_devices", list)()
    return list(names | dict.fromkeys(device.ep_name for device in devices))


def _preload() -> None:
    """Load CUDA and cuDNN from the nvidia-* packages, where those are what is installed."""
    try:
        import onnxruntime

        onnxruntime.preload_dlls(directory="")
    except (ImportError, AttributeError, OSError) as error:
        log.debug("preloading CUDA libraries: %s", error)
