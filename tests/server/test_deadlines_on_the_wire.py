"""A deadline that cannot be met is refused by the server itself, at once, on every call.

A real server with a slow twin and one client's long queue before it. The client's clock has no part
in it: each refusal comes long before the deadline, with details that only the server gives.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import grpc
import numpy as np
import pytest
from google.rpc import error_details_pb2 as details
from onnx import TensorProto, helper, numpy_helper

from tests import conftest, twins
from tests.conftest import RunningServer
from tests.server import input_calls, test_under_load, wire
from tests.server.test_error_table import ONE_THREAD, every_call, fill
from twinserve.distance import Metric
from twinserve.manifest import TensorInput
from twinserve.v1 import embedding_service_pb2 as embedding

# Seconds that the calls have, and within which a refusal comes where the client has waited for
# nothing. What waits takes some ten times as long.
TIMEOUT, AT_ONCE = 2.0, 1.0
ROWS, SINES = 1000, 100
KIND = "tensor"
CALLS = {name: (method, request) for name, method, request in every_call(KIND)}
# Refused by the front before they are read; the others by the queue of their model.
UNREAD = ("Embed inputs[0]", "Compare pairs[0].first", "Compare pairs[0].second", "ModelInfer")


def slow_twin() -> bytes:
    """A twin of float32 [batch, 8] that takes some 20 ms a row: millions of sines, to no effect."""
    weights = twins.projection(8, seed=5)
    wide = np.ones((8, 65_536), np.float32)
    sines = [helper.make_node("Sin", [f"wide{i}"], [f"wide{i + 1}"]) for i in range(SINES)]
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["tensor", "wide"], ["wide0"]),
            *sines,
            helper.make_node("ReduceMean", [f"wide{SINES}", "last"], ["mean"]),
            helper.make_node("Mul", ["mean", "tiny"], ["nothing"]),
            helper.make_node("MatMul", ["tensor", "weights"], ["projected"]),
            helper.make_node("Add", ["projected", "nothing"], ["embedding"]),
        ],
        "slow",
        [helper.make_tensor_value_info("tensor", TensorProto.FLOAT, ["batch", 8])],
        [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["batch", twins.DIMENSION])],
        [
            numpy_helper.from_array(weights, "weights"),
            numpy_helper.from_array(wide, "wide"),
            numpy_helper.from_array(np.array([1], np.int64), "last"),
            numpy_helper.from_array(np.array(1e-12, np.float32), "tiny"),
        ],
    )
    return twins._finish(graph, weights, TensorInput((8,)), KIND, "1", Metric.COSINE, None)


@pytest.fixture(scope="module")
def slow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    folder = tmp_path_factory.mktemp("slow")
    (folder / "slow.onnx").write_bytes(slow_twin())
    running = conftest.start(
        *ONE_THREAD,
        *("--model", folder / "slow.onnx"),
        *("--data-dir", folder / "data"),
        *("--max-batch", "4"),  # short runs: what waits is the queue, and not the run before
    )
    yield running
    if running.process.poll() is None:
        running.kill()


@pytest.fixture(scope="module")
def queued(slow_server: RunningServer) -> Iterator[tuple[grpc.Channel, grpc.Future]]:
    """A client's connection, and its call for which a thousand rows wait."""
    with slow_server.channel() as channel:
        fill(channel, (KIND,))
        for name, (method, request) in CALLS.items():
            status = input_calls.status_of(channel, method, request)
            good = not status.code or not input_calls.is_built(status)
            assert good, f"{name} is good, but for what waits: {status}"
        rows = np.random.default_rng(1).standard_normal((ROWS, 8)).astype(np.float32)
        held = wire.Stubs(channel).embedding.Embed.future(
            embedding.EmbedRequest(model=KIND, inputs=[wire.tensor(row) for row in rows])
        )
        while not held.done() and waiting(slow_server) < 0.9 * ROWS:
            time.sleep(0.01)
        yield channel, held
        held.cancel()


def waiting(server: RunningServer) -> float:
    return test_under_load.gauge(test_under_load.metrics(server), "twinserve_queue_rows")


@pytest.mark.parametrize("name", CALLS)
def test_a_deadline_that_cannot_be_met_is_refused_at_once(
    queued: tuple[grpc.Channel, grpc.Future], name: str
) -> None:
    channel, held = queued
    method, request = CALLS[name]
    began = time.monotonic()
    status = input_calls.status_of(channel, method, request, timeout=TIMEOUT)
    seconds = time.monotonic() - began
    assert not held.done(), "the queue was too short"
    if not input_calls.is_built(status):
        return
    assert status.code == grpc.StatusCode.DEADLINE_EXCEEDED.value[0], status
    assert wire.reason(status) == "DEADLINE_EXCEEDED"
    assert "more time" in status.message, "what to do about it"
    assert seconds < AT_ONCE
    if name in UNREAD:
        delay = wire.detail(status, details.RetryInfo).retry_delay.ToTimedelta().total_seconds()
        assert delay > TIMEOUT / 2
        assert f"{delay:.2f} s" in status.message


def test_calls_refused_unread_are_counted_apart_from_those_inside(
    slow_server: RunningServer, queued: tuple[grpc.Channel, grpc.Future]
) -> None:
    def counted(name: str) -> float:
        return test_under_load.gauge(test_under_load.metrics(slow_server), f"twinserve_{name}")

    names = ("refused_calls_total", "rejections_total", "request_seconds_count")
    before = [counted(name) for name in names]
    for name in UNREAD:
        method, request = CALLS[name]
        status = input_calls.status_of(queued[0], method, request, timeout=TIMEOUT)
        assert wire.reason(status) == "DEADLINE_EXCEEDED"
    assert [counted(name) - was for name, was in zip(names, before, strict=True)] == [4, 4, 0]


def test_a_call_that_has_the_time_is_let_in_behind_the_same_queue(
    queued: tuple[grpc.Channel, grpc.Future],
) -> None:
    channel, held = queued
    method, request = CALLS["Embed inputs[0]"]
    name = f"/{method.containing_service.full_name}/{method.name}"
    call = channel.unary_unary(name, type(request).SerializeToString)
    patient = call.future(request, timeout=1000)
    with pytest.raises(grpc.FutureTimeoutError):
        patient.exception(timeout=0.3)
    assert not held.done(), "the queue was too short"
    patient.cancel()


def test_another_client_is_not_refused_for_the_queue_of_this_one(
    slow_server: RunningServer, queued: tuple[grpc.Channel, grpc.Future]
) -> None:
    method, request = CALLS["Embed inputs[0]"]
    own = ("grpc.use_local_subchannel_pool", 1)  # a connection of its own
    with grpc.insecure_channel(slow_server.target, [own]) as channel:
        began = time.monotonic()
        status = input_calls.status_of(channel, method, request, timeout=TIMEOUT)
        assert not status.code, f"its turn is the next: {status}"
        assert time.monotonic() - began < TIMEOUT
    assert not queued[1].done(), "the queue was too short"
