"""Which hardware runs a twin: what was asked for, or a refusal that names what is missing.

onnxruntime falls back to the CPU in silence when a CUDA library is missing, and says so only in its
log. Here a device that was asked for either runs or stops the server with a sentence; `auto` takes
the best that really loads and says which.
"""

from __future__ import annotations

import ctypes
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from twinserve.errors import ConfigError, ProviderUnavailable

log = logging.getLogger(__name__)

CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"


@dataclass(frozen=True)
class Device:
    """A provider with its options."""

    provider: str
    options: dict[str, str]

    @property
    def label(self) -> str:
        """Name for people: cpu, or cuda:0."""
        return "cpu" if self.provider == CPU else f"cuda:{self.options['device_id']}"


@dataclass(frozen=True)
class Runtime:
    """What of onnxruntime decides about providers; tests pass another."""

    available: Callable[[], list[str]]
    cuda_library: Path

    @staticmethod
    def installed() -> Runtime:
        """The onnxruntime of this environment."""
        import onnxruntime

        folder = Path(onnxruntime.__file__).parent / "capi"
        return Runtime(
            onnxruntime.get_available_providers, folder / "libonnxruntime_providers_cuda.so"
        )


def choose(device: str, runtime: Runtime) -> Device:
    """Turn `--device` into a provider that loads here.

    Raises:
        ConfigError: not auto, cpu, cuda or cuda:N.
        ProviderUnavailable: CUDA was asked for and cannot load; the message names the library.
    """
    kind, _, index = device.partition(":")
    if kind not in ("auto", "cpu", "cuda") or (index and (kind != "cuda" or not index.isdigit())):
        raise ConfigError(f"--device {device} is unknown; give auto, cpu, cuda or cuda:N")
    if kind == "cpu":
        return Device(CPU, {})
    missing = _missing(runtime)
    if missing is None:
        # HEURISTIC: the exhaustive default searches again for every new batch size, for 600 ms.
        options = {"device_id": index or "0", "cudnn_conv_algo_search": "HEURISTIC"}
        return Device(CUDA, options)
    if kind == "cuda":
        raise ProviderUnavailable(
            f"--device {device} was asked for, but {missing}; mend that, or give --device cpu"
        )
    log.info("device auto: cpu, since %s", missing)
    return Device(CPU, {})


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


def processors() -> int:
    """Count the processors that this process may use: its affinity, within the container's quota.

    Never the host's count: onnxruntime's own default takes every core of the host, whatever the
    container was given.
    """
    allowed = len(os.sched_getaffinity(0))
    limit = quota(Path("/sys/fs/cgroup"))
    return max(1, allowed if limit is None else min(allowed, limit))


def quota(root: Path) -> int | None:
    """Processors of the control group's quota, rounded up; None without one."""
    try:  # version 2: "max 100000" or "150000 100000"
        quota, period = (root / "cpu.max").read_text().split()
        return None if quota == "max" else -(-int(quota) // int(period))
    except (OSError, ValueError):
        pass
    try:
        micros = int((root / "cpu/cpu.cfs_quota_us").read_text())
        period_micros = int((root / "cpu/cpu.cfs_period_us").read_text())
        return None if micros <= 0 else -(-micros // period_micros)
    except (OSError, ValueError):
        return None


def _missing(runtime: Runtime) -> str | None:
    """Say why CUDA cannot load, or None when it can."""
    if CUDA not in runtime.available():
        return "the onnxruntime installed here has no CUDA provider (install twinserve[gpu] alone)"
    if not runtime.cuda_library.exists():
        return f"{runtime.cuda_library.name} is not there (install onnxruntime-gpu again)"
    _preload()
    try:
        # The loader names the first library that is missing, which onnxruntime only logs.
        ctypes.CDLL(str(runtime.cuda_library), mode=ctypes.RTLD_GLOBAL)
    except OSError as error:
        text = str(error)
        # Loaded alone, the provider lacks the symbols that onnxruntime itself gives it.
        if "undefined symbol" not in text:
            return f"its CUDA provider does not load: {text}"
    return None


def _preload() -> None:
    """Load CUDA and cuDNN from the nvidia-* packages, where those are what is installed."""
    try:
        import onnxruntime

        onnxruntime.preload_dlls(directory="")
    except (ImportError, AttributeError, OSError) as error:
        log.debug("preloading CUDA libraries: %s", error)
