"""The server answers what torch computed, whatever batch a row rode in, and it really batches."""

from __future__ import annotations

import re
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from tests import conftest
from tests.conftest import RunningServer
from tests.server import wire
from tests.server.wire import Stubs
from twinserve.distance import Metric
from twinserve.train import checkpoint
from twinserve.train.evaluate import embed, one_shot_accuracy, one_shot_trials
from twinserve.v1 import embedding_service_pb2 as pb
from twinserve.v1 import shared_pb2

INPUTS = 1000


@dataclass(frozen=True, eq=False)
class Task:
    """A thousand inputs with what torch gives for them."""

    inputs: list[shared_pb2.Input]
    expected: NDArray[np.float32]  # [1000, dimension]
    labels: NDArray[np.int64]  # [real drawings]


@pytest.fixture(scope="module")
def task(trained: tuple[Path, Path]) -> Task:
    """The report alphabet's drawings, and random pixels up to a thousand."""
    run = checkpoint.load(trained[0])
    report = run.part("report")
    drawn = np.asarray(report.rows)
    noise = np.random.default_rng(1).integers(
        0, 256, (INPUTS - len(drawn), *drawn.shape[1:]), dtype=np.uint8
    )
    pixels = np.concatenate([drawn, noise])
    assert len(pixels) == INPUTS
    # Decoded pixels as a lossless image for every other input, as a tensor for the rest.
    inputs = [wire.tensor(p) if i % 2 else wire.image(p) for i, p in enumerate(pixels)]
    return Task(inputs, embed(run.twin, pixels), report.labels)


@pytest.fixture(scope="module")
def conv_server(
    trained: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningServer]:
    running = conftest.start("--model", trained[1], "--data-dir", tmp_path_factory.mktemp("data"))
    yield running
    running.kill()


def embed_one_by_one(
    server: RunningServer, inputs: list[shared_pb2.Input], clients: int
) -> NDArray[np.float32]:
    """Embed inputs in calls of one, `clients` at a time: float32 [n, dimension]."""
    with server.channel() as channel, ThreadPoolExecutor(clients) as pool:
        stub = Stubs(channel).embedding

        def one(single: shared_pb2.Input) -> list[float]:
            reply = stub.Embed(pb.EmbedRequest(inputs=[single]))
            return list(reply.results[0].embedding.values)

        return np.array(list(pool.map(one, inputs)), np.float32)


def batches(server: RunningServer) -> tuple[float, float]:
    """Read (rows, runs) from the metric."""
    with urllib.request.urlopen(f"http://127.0.0.1:{server.http_port}/metrics") as reply:
        text = reply.read().decode()
    rows, runs = (
        float(re.search(rf"^twinserve_batch_rows_{kind}\{{.*\}} (\S+)$", text, re.M)[1])  # type: ignore[index]
        for kind in ("sum", "count")
    )
    return rows, runs


def mean_batch(server: RunningServer, work: Callable[[], object]) -> float:
    """Return the mean batch of some work, read from the metric."""
    rows, runs = batches(server)
    work()
    rows_after, runs_after = batches(server)
    return (rows_after - rows) / (runs_after - runs)


@pytest.mark.parametrize("clients", [1, 32])
def test_a_thousand_embeddings_agree_with_torch(
    conv_server: RunningServer, task: Task, clients: int
) -> None:
    got = embed_one_by_one(conv_server, task.inputs, clients)
    assert float(np.abs(got - task.expected).max()) <= 1e-5


def test_one_shot_accuracy_through_the_server_is_torchs(
    conv_server: RunningServer, task: Task
) -> None:
    drawn = len(task.labels)
    got = embed_one_by_one(conv_server, task.inputs[:drawn], 32)
    trials = one_shot_trials(task.labels, ways=20, trials=400, seed=0)
    served = one_shot_accuracy(got, trials, Metric.COSINE)
    in_torch = one_shot_accuracy(task.expected[:drawn], trials, Metric.COSINE)
    assert abs(served - in_torch) <= 0.005
    assert served > 0.35, "even seconds of training are far above chance (0.05)"


def is_batching(server: RunningServer, task: Task) -> bool:
    """Whether 32 clients' single calls share runs; how many do is the load's and the machine's."""
    mean = mean_batch(server, lambda: embed_one_by_one(server, task.inputs, 32))
    print("mean batch", mean)
    return mean > 1.5


def test_calls_of_32_clients_share_runs(conv_server: RunningServer, task: Task) -> None:
    assert is_batching(conv_server, task)


def test_one_run_per_call_would_be_noticed(
    trained: tuple[Path, Path],
    task: Task,
    start_server: Callable[..., RunningServer],
    tmp_path: Path,
) -> None:
    alone = start_server("--model", trained[1], "--data-dir", tmp_path, "--max-batch", "1")
    assert not is_batching(alone, task)
