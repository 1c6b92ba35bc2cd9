"""When the CPU's arena gives memory back, and what a run does with a batch."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from twinserve.manifest import TensorInput, TextInput
from twinserve.server.runtime import machine
from twinserve.server.runtime.planning import Setting
from twinserve.server.runtime.providers import CPU, Device
from twinserve.server.runtime.running import CpuRunning, Shrinking
from twinserve.server.runtime.sessions import Onnxruntime, open_session


def shrunk(sizes: list[int]) -> list[int]:
    """The places of the runs that end with a smaller arena."""
    shrinking = Shrinking()
    return [place for place, size in enumerate(sizes) if shrinking.after(size)]


def test_runs_of_one_size_give_nothing_back() -> None:
    assert shrunk([32] * 1000) == []


def test_a_mix_of_small_and_large_runs_keeps_the_memory_that_it_needs_again() -> None:
    assert shrunk([1, 1, 64, 1, 4, 64, 2, 64] * 100) == [2]


def test_a_lone_far_larger_run_gives_its_memory_back_at_its_end() -> None:
    assert shrunk([32] * 10 + [2048] + [32] * 500) == [10]


def test_memory_of_a_busy_time_is_given_back_once_it_is_over() -> None:
    (place,) = shrunk([2048] * 50 + [32] * 1000)
    assert 150 < place < 250, "not in the middle of the busy time, and not long after"


def test_load_that_rises_step_by_step_keeps_its_memory() -> None:
    assert shrunk([int(1.5**step) for step in range(20) for _ in range(5)]) == []


class Recorded:
    """A session that remembers each run's shape and options."""

    def __init__(self) -> None:
        self.runs: list[tuple[tuple[int, ...], Any]] = []

    def run(
        self, names: list[str], feed: Mapping[str, NDArray[Any]], options: Any = None
    ) -> list[Any]:
        first = next(iter(feed.values()))
        self.runs.append((first.shape, options))
        return [np.zeros((len(first), 2), np.float32)]


class Options(Onnxruntime):
    def run_options(self, entries: Mapping[str, str]) -> Any:
        return dict(entries)


def test_size_is_counted_with_padding_and_only_an_unusual_run_pays_for_shrinking() -> None:
    session = Recorded()
    running = CpuRunning(session, TextInput(max_tokens=512), Options())  # type: ignore[arg-type]
    short = [np.arange(8)] * 4
    for _ in range(5):
        running.run(short)
    running.run([*short[:3], np.arange(200)])
    assert session.runs[0] == ((4, 8), None)
    assert session.runs[-1] == ((4, 200), {"memory.enable_memory_arena_shrinkage": "cpu:0"})


def test_rows_of_one_shape_are_counted_by_their_number_alone() -> None:
    session = Recorded()
    running = CpuRunning(session, TensorInput((1000,)), Options())  # type: ignore[arg-type]
    for count in (2, 2, 2, 40):
        running.run(np.zeros((count, 1000), np.float32))
    assert [options is not None for _, options in session.runs] == [False] * 3 + [True]


def wide_twin(path: Path) -> Path:
    """A graph whose activations, 4 MB a row, dwarf its weights."""
    import onnx
    from onnx import TensorProto, helper

    def node(kind: str, ins: list[str], out: str, **attributes: Any) -> Any:
        return helper.make_node(kind, ins, [out], **attributes)

    graph = helper.make_graph(
        [
            node("Mul", ["tensor", "ones"], "wide"),  # [batch, 8] x [131072, 1, 8]
            node("Transpose", ["wide"], "turned", perm=[1, 0, 2]),
            node("Relu", ["turned"], "positive"),
            node("ReduceMean", ["positive", "axes"], "embedding", keepdims=0),
        ],
        "wide",
        [helper.make_tensor_value_info("tensor", TensorProto.FLOAT, ["batch", 8])],
        [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["batch", 8])],
        [
            onnx.numpy_helper.from_array(np.ones((131_072, 1, 8), np.float32), "ones"),
            onnx.numpy_helper.from_array(np.array([1], np.int64), "axes"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    path.write_bytes(model.SerializeToString())
    return path


def growth_by_a_large_batch(path: Path) -> int:
    """Bytes that a twin keeps in memory after a batch of 24 rows among batches of one."""
    library = Onnxruntime()
    session = open_session(path, Device(CPU, {}), Setting(1, 1), library)
    running = CpuRunning(session, TensorInput((8,)), library)
    small, large = np.ones((1, 8), np.float32), np.ones((24, 8), np.float32)
    for _ in range(3):
        running.run(small)
    before = machine.resident()
    np.testing.assert_allclose(running.run(large), large)
    return machine.resident() - before


def test_a_lone_large_batch_does_not_stay_in_memory(tmp_path: Path) -> None:
    # In a process of its own: what the arena gives back, the C library keeps where the memory came
    # from a hole that something else has left in its heap.
    path = wide_twin(tmp_path / "wide.onnx")
    program = (
        "import pathlib, sys\n"
        "from tests.server.runtime.test_running import growth_by_a_large_batch\n"
        "print(growth_by_a_large_batch(pathlib.Path(sys.argv[1])))\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program, str(path)], stdout=subprocess.PIPE, text=True, check=True
    )
    assert int(ran.stdout) < 24 << 20, "96 MB and more were needed for a while"


@pytest.mark.long
def test_two_hundred_thousand_requests_of_varied_size_leave_memory_as_it_was(
    tmp_path: Path,
) -> None:
    from tests import twins
    from twinserve.server.runtime.planning import Asked
    from twinserve.server.runtime.runner import Runner

    path = tmp_path / "texts.onnx"
    path.write_bytes(twins.small_text_twin(calibrated=False))
    runner = Runner(path, Device(CPU, {}), Asked(1, 2))
    runner.warm(64, 1024)
    generator = np.random.default_rng(4)

    def ask(requests: int) -> None:
        for _ in range(requests):
            count = min(64, int(generator.geometric(0.2)))
            length = int(generator.integers(1, twins.MAX_TOKENS + 1))
            runner.run([np.ones(length, np.int64)] * count)

    ask(100_000)
    half = machine.resident()
    ask(100_000)
    assert machine.resident() < 1.02 * half
