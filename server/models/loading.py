"""From a twin's file to a warm engine, at the start of the server and by LoadModel.

One at a time: loading takes processors and memory from what is served, and is measured. The file is
read by onnxruntime from its path, which does not hold the GIL, and must stay as it is meanwhile:
the digest that is remembered is that of the bytes that run.
"""

from __future__ import annotations

import hashlib
import logging
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import Executor
from pathlib import Path

from twinserve import manifest as manifests
from twinserve.errors import ConfigError, FailedPrecondition, TwinserveError
from twinserve.manifest import Manifest
from twinserve.server.afterwards import Afterwards
from twinserve.server.batching.admission import Admission
from twinserve.server.config import CPU_BATCH_TOKENS, GPU_BATCH_TOKENS, ServerConfig
from twinserve.server.engine import Engine
from twinserve.server.models.table import Origin, Served
from twinserve.server.runtime import machine, providers
from twinserve.server.runtime.planning import Asked, Plan, spinning_asked
from twinserve.server.runtime.providers import GpuOptions
from twinserve.server.runtime.runner import Runner
from twinserve.server.watching.metrics import Metrics

log = logging.getLogger(__name__)

# Of the file's size: its bytes while they are parsed, the weights, and the weights as the kernels
# want them. What is served stays loaded beside it.
_MEMORY = 3


class Loader:
    """Loads and warms twins.

    Args:
        config: the server's settings.
        metrics: told how loads went, and by the engines of their batches.
        admission: shared by all engines.
        preparers: threads for decoding and tokenizing.
        preparer_count: how many they are.
        afterwards: where the thread that reads calls puts off what it runs itself.
        digest: of a file's content; the first thing that a load does.

    Raises:
        ProviderUnavailable: the device that was asked for does not run.
    """

    def __init__(
        self,
        config: ServerConfig,
        metrics: Metrics,
        admission: Admission,
        preparers: Executor,
        preparer_count: int,
        afterwards: Afterwards | None = None,
        digest: Callable[[Path], str] | None = None,
    ) -> None:
        self._config = config
        self._afterwards = afterwards
        self._digest = digest or digest_of
        self._metrics = metrics
        self._admission = admission
        self._preparers = preparers
        self._preparer_count = preparer_count
        self._device = providers.choose(
            config.device,
            providers.Runtime.installed(),
            GpuOptions(
                config.gpu_memory_limit, config.data_dir / "engines", config.provider_options
            ),
        )
        self._asked = Asked(config.runners, config.threads, spinning_asked(config.spinning))
        # How the version before runs, by name: measuring beside what is served would disturb both.
        self._plans: dict[str, Plan] = {}
        self._lock = threading.Lock()
        # The preparers are the threads; the tokenizer library needs none of its own.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

    def load(self, path: Path, name: str = "", file: str = "") -> Served:
        """Load a twin and warm it; other loads wait.

        Args:
            path: of the file.
            name: to serve it under; "" is the manifest's own.
            file: its name below --model-dir; "" where --model named it.

        Raises:
            ConfigError: there is no such file.
            ManifestError: not a twin that can be served.
            FailedPrecondition: too little memory, or the file changed meanwhile.
        """
        if not path.is_file():
            raise ConfigError(f"--model {path} is not a file; give the path of a twin.onnx")
        with self._lock:
            began = time.perf_counter()
            try:
                served = self._load(path, name, file, began)
            except BaseException:
                self._metrics.model_loads.labels("failed").inc()
                raise
            self._metrics.model_loads.labels("loaded").inc()
            return served

    def read(self, path: Path) -> Manifest:
        """Read a twin's manifest; a file that is no twin is a load that failed.

        Raises:
            ManifestError: not a twin.
        """
        try:
            return manifests.read(path)
        except TwinserveError:
            self._metrics.model_loads.labels("failed").inc()
            raise

    def _load(self, path: Path, name: str, file: str, began: float) -> Served:
        size = path.stat().st_size
        log.info("loading %s, %.1f MB", path.name, size / 1e6)
        if file:
            check_memory(path, size, memory_left(machine.memory(), machine.resident()))
        before = _identity(path)
        digest = self._digest(path)
        name = name or manifests.read(path).name
        runner = Runner(
            path,
            self._device,
            self._asked,
            like=self._plans.get(name),
            strict=self._config.strict_device,
        )
        loaded = time.perf_counter()
        on_cpu = self._device.provider == providers.CPU
        tokens = self._config.max_batch_tokens or (CPU_BATCH_TOKENS if on_cpu else GPU_BATCH_TOKENS)
        measured = runner.warm(self._config.max_batch, tokens)
        self._plans[name] = runner.plan
        if _identity(path) != before:
            raise FailedPrecondition(
                f"{path.name} changed while it was loaded; put files into place whole, with a "
                "rename, and load it again",
                resource=("file", path.name),
            )
        engine = Engine(
            runner,
            name,
            admission=self._admission,
            preparers=self._preparers,
            preparer_count=self._preparer_count,
            observer=self._metrics.observer(name),
            limits=self._config.limits,
            max_batch=self._config.max_batch,
            max_batch_tokens=tokens,
            runners=runner.plan.runners,
            measured=measured,
            ageing=self._config.ageing,
            afterwards=self._afterwards,
        )
        seconds = time.perf_counter() - began
        self._metrics.model_load_seconds.labels(name).observe(seconds)
        log.info(
            "%s: %s on %s, runners × threads %s; loaded in %.1f s and warmed in %.1f s",
            engine.version,
            runner.manifest.precision,
            self._device.label,
            runner.plan,
            loaded - began,
            seconds - (loaded - began),
        )
        return Served(engine, Origin(path, digest, file, seconds))


def digest_of(path: Path) -> str:
    """SHA-256 of a file, hexadecimal; hashing does not hold the GIL."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _identity(path: Path) -> tuple[int, int, int]:
    stat = path.stat()
    return stat.st_ino, stat.st_size, stat.st_mtime_ns


def check_memory(path: Path, size: int, available: int | None) -> None:
    """Refuse a load that does not fit beside what is served.

    Args:
        path: of the twin.
        size: of its file, in bytes.
        available: bytes of memory that may still be taken; None is not known.

    Raises:
        FailedPrecondition: with both figures.
    """
    needed = _MEMORY * size
    if available is not None and needed > available:
        raise FailedPrecondition(
            f"loading {path.name} beside what is served takes some {needed >> 20} MB of memory, "
            f"and {available >> 20} MB are free; unload a model first, or give the server more",
            resource=("memory", path.name),
            metadata={"limit": str(available), "value": str(needed)},
        )


def memory_left(memory: machine.Memory, resident: int) -> int | None:
    """Bytes of memory that a process may still take; None where the machine does not say.

    Args:
        memory: of the machine, with the limit of the process's control groups.
        resident: bytes that the process has in memory.
    """
    if not memory.available:
        return None
    if memory.limit is None:
        return memory.available
    return max(0, min(memory.available, memory.limit - resident))
