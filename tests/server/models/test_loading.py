"""From file to warm engine: one at a time, from a file that stays as it is, within memory."""

from __future__ import annotations

import gc
import hashlib
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests import twins
from twinserve.errors import ConfigError, FailedPrecondition, ManifestError
from twinserve.server.batching.admission import Admission
from twinserve.server.config import ModelSpec, ServerConfig
from twinserve.server.models.loading import Loader, check_memory, digest_of, memory_left
from twinserve.server.runtime.machine import Memory
from twinserve.server.watching.metrics import Metrics


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "twin.onnx"
    path.write_bytes(twins.small_image_twin(calibrated=False))
    return path


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture
def make(path: Path, metrics: Metrics) -> Iterator[Callable[..., Loader]]:
    """Make loaders with settings that need not be measured."""
    config = ServerConfig((ModelSpec(path),), path.parent, device="cpu", runners=1, threads=1)
    with ThreadPoolExecutor(1) as preparers:
        admission = Admission(4096, lambda: 0.001)
        yield lambda **more: Loader(config, metrics, admission, preparers, 1, **more)


@pytest.fixture
def loader(make: Callable[..., Loader]) -> Loader:
    return make()


def loads(metrics: Metrics, outcome: str) -> float:
    value = metrics.registry.get_sample_value("twinserve_model_loads_total", {"outcome": outcome})
    return value or 0.0


def test_a_warm_engine_says_where_it_came_from(
    loader: Loader, path: Path, metrics: Metrics
) -> None:
    served = loader.load(path, "other")
    try:
        assert served.engine.version == "other@1"
        assert served.origin is not None
        assert served.origin.digest == hashlib.sha256(path.read_bytes()).hexdigest()
        assert (served.origin.path, served.origin.file) == (path, "")
        assert 0 < served.origin.seconds < 60
        assert loads(metrics, "loaded") == 1
    finally:
        served.engine.batcher.close()


def test_what_is_no_twin_is_refused_and_counted(
    loader: Loader, path: Path, metrics: Metrics
) -> None:
    with pytest.raises(ConfigError, match="is not a file; give the path"):
        loader.load(path.parent / "none.onnx")
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(ManifestError):
        loader.load(path)
    assert loads(metrics, "failed") == 1
    with pytest.raises(ManifestError):  # as LoadModel, which reads it before it loads
        loader.read(path)
    assert loads(metrics, "failed") == 2


def test_failed_loads_count_from_nought_so_that_the_first_is_seen_as_a_rise(
    metrics: Metrics,
) -> None:
    value = metrics.registry.get_sample_value("twinserve_model_loads_total", {"outcome": "failed"})
    assert value == 0


def test_a_file_that_changes_while_it_is_loaded_is_refused(
    make: Callable[..., Loader], path: Path
) -> None:
    def meanwhile(of: Path) -> str:
        digest = digest_of(of)
        of.write_bytes(twins.small_image_twin(seed=9, calibrated=False))
        return digest

    with pytest.raises(FailedPrecondition, match=r"twin\.onnx changed while it was loaded"):
        make(digest=meanwhile).load(path)


def test_loads_come_one_at_a_time(make: Callable[..., Loader], path: Path) -> None:
    inside: list[int] = []
    most = [0]

    def count(of: Path) -> str:
        inside.append(1)
        most[0] = max(most[0], len(inside))
        threading.Event().wait(0.02)  # long enough for another one to come in
        inside.pop()
        return digest_of(of)

    loader = make(digest=count)
    with ThreadPoolExecutor(4) as threads:
        for served in threads.map(loader.load, [path] * 4):
            served.engine.batcher.close()
    assert most == [1]


def test_a_load_that_does_not_fit_says_what_it_takes_and_what_there_is(path: Path) -> None:
    check_memory(path, 100 << 20, None)
    check_memory(path, 100 << 20, 300 << 20)
    with pytest.raises(FailedPrecondition, match="takes some 300 MB of memory, and 299 MB") as full:
        check_memory(path, 100 << 20, 299 << 20)
    assert full.value.metadata["limit"] == str(299 << 20)


@pytest.mark.parametrize(
    ("available", "limit", "left"),
    [(900, None, 900), (900, 500, 300), (100, 500, 100), (900, 150, 0), (0, 500, None)],
)
def test_what_a_container_grants_bounds_what_a_load_may_take(
    available: int, limit: int | None, left: int | None
) -> None:
    assert memory_left(Memory(1000, available, limit), 200) == left


def test_an_engine_is_freed_with_its_last_reference(loader: Loader, path: Path) -> None:
    threads = threading.active_count()
    gc.collect()
    gc.disable()  # a twin of some size must not stay until the collector comes by
    try:
        served = loader.load(path)
        served.engine.batcher.close()
        served.engine.batcher.close()
        left = [weakref.ref(part) for part in (served.engine, served.engine.runner)]
        del served
        assert [part() for part in left] == [None, None]
    finally:
        gc.enable()
    assert threading.active_count() == threads
