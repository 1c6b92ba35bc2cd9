"""Starting, health, reflection, metrics, and stopping without losing a call."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)

from tests import twins
from tests.conftest import RunningServer
from tests.server import wire
from tests.server.wire import Stubs
from twinserve import manifest as manifests
from twinserve.v1 import embedding_service_pb2 as pb
from twinserve.v1 import gallery_pb2, gallery_service_pb2, shared_pb2

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
SERVICES = ("EmbeddingService", "GalleryService", "ModelService")
PIXELS, _ = twins.classes_of_pixels(4, 2)


def get(server: RunningServer, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{server.http_port}{path}") as reply:
            return reply.status, reply.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def refuse(*flags: str | Path) -> str:
    """Start a server that must not start; return what it said."""
    done = subprocess.run(
        [sys.executable, "-m", "twinserve.server", "--grpc-port", "0", "--http-port", "0", *flags],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2
    assert "SERVING" not in done.stdout
    assert "Traceback" not in done.stderr
    return done.stderr.splitlines()[-1]


def test_health_is_answered_by_service(server: RunningServer) -> None:
    with server.channel() as channel:
        health = health_pb2_grpc.HealthStub(channel)
        own = (f"twinserve.v1.{service}" for service in SERVICES)
        for name in ("", *own, "inference.GRPCInferenceService"):
            reply = health.Check(health_pb2.HealthCheckRequest(service=name))
            assert reply.status == SERVING
        with pytest.raises(grpc.RpcError) as unknown:
            health.Check(health_pb2.HealthCheckRequest(service="nobody"))
        assert unknown.value.code() is grpc.StatusCode.NOT_FOUND


def test_reflection_describes_every_service(server: RunningServer) -> None:
    with server.channel() as channel:
        described = ProtoReflectionDescriptorDatabase(channel)
        names = set(described.get_services())
        assert names >= {
            *(f"twinserve.v1.{service}" for service in SERVICES),
            "inference.GRPCInferenceService",
            "grpc.health.v1.Health",
        }
        file = described.FindFileContainingSymbol("twinserve.v1.GalleryService")
        assert file.service[0].method[0].name == "CreateGallery"


def test_the_http_port_has_health_and_metrics(server: RunningServer) -> None:
    assert get(server, "/healthz") == (200, "alive\n")
    assert get(server, "/readyz") == (200, "ready\n")
    status, text = get(server, "/")
    assert status == 200
    assert {"/healthz", "/metrics", "/v1/embeddings"} <= set(text.split())
    with server.channel() as channel:
        stub = Stubs(channel).embedding
        stub.Embed(pb.EmbedRequest(inputs=[wire.tensor(PIXELS[0])]))
        with pytest.raises(grpc.RpcError):
            stub.Embed(pb.EmbedRequest(inputs=[shared_pb2.Input(image=b"x")]))
    code, text = get(server, "/metrics")
    assert code == 200
    for family in (
        'twinserve_request_seconds_count{code="OK",method="Embed",model="small"}',
        'twinserve_request_seconds_count{code="INVALID_ARGUMENT",method="Embed",model=""}',
        'twinserve_rejections_total{reason="IMAGE_UNDECODABLE"}',
        'twinserve_batch_rows_count{model="small"}',
        'twinserve_batches_total{model="small",reason="runner_free"}',
        'twinserve_queue_seconds_bucket{le="0.0002",model="small"}',
        'twinserve_model_info{model="small@1",precision="fp32",provider="CPUExecutionProvider"}',
        'twinserve_queue_rows{model="small"} 0.0',
        "twinserve_admitted_rows 0.0",
        "twinserve_gallery_items",
        "process_resident_memory_bytes",
    ):
        assert family in text, family


def test_sigterm_answers_what_was_accepted_and_exits_with_zero(
    start_server: Callable[..., RunningServer], twin_file: Path, tmp_path: Path
) -> None:
    running = start_server("--model", twin_file, "--data-dir", tmp_path, "--drain-delay", "0.3")
    statuses: list[int] = []
    answered = 0
    refused: list[grpc.StatusCode] = []
    stop = threading.Event()
    with running.channel() as channel:
        stubs = Stubs(channel)
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())

        def follow() -> None:
            with contextlib.suppress(grpc.RpcError):  # the stream ends with the server
                statuses.extend(update.status for update in watch)

        def load() -> None:
            nonlocal answered
            while not stop.is_set():
                try:
                    stubs.embedding.Embed(
                        pb.EmbedRequest(inputs=[wire.tensor(pixels) for pixels in PIXELS])
                    )
                    answered += 1
                except grpc.RpcError as error:
                    refused.append(error.code())
                    return

        threads = [
            threading.Thread(target=follow),
            *(threading.Thread(target=load) for _ in "1234"),
        ]
        for thread in threads:
            thread.start()
        time.sleep(0.5)
        assert running.stop() == 0
        stop.set()
        for thread in threads:
            thread.join(10)
    assert statuses == [SERVING, NOT_SERVING]
    assert answered > 10
    # A call that was refused was refused whole, before any work: nothing ended halfway.
    assert set(refused) <= {grpc.StatusCode.UNAVAILABLE}


def test_a_cancelled_call_leaves_nothing_behind(
    start_server: Callable[..., RunningServer], twin_file: Path, tmp_path: Path
) -> None:
    running = start_server("--model", twin_file, "--data-dir", tmp_path)
    with running.channel() as channel:
        stub = Stubs(channel).embedding
        request = pb.EmbedRequest(inputs=[wire.image(pixels) for pixels in PIXELS] * 100)
        for pause in (0, 0.001, 0.005, 0.02):
            call = stub.Embed.future(request)
            time.sleep(pause)
            call.cancel()
        assert len(stub.Embed(pb.EmbedRequest(inputs=[wire.tensor(PIXELS[0])])).results) == 1
        for _ in range(200):
            _, text = get(running, "/metrics")
            if (
                "twinserve_admitted_rows 0.0" in text
                and 'twinserve_queue_rows{model="small"} 0.0' in text
            ):
                break
            time.sleep(0.02)
        else:
            raise AssertionError("rows of cancelled calls are still counted")
    assert running.stop() == 0


def test_two_models_answer_by_name_and_a_gallery_keeps_to_its_own_space(
    start_server: Callable[..., RunningServer], twin_file: Path, tmp_path: Path
) -> None:
    vectors = tmp_path / "vectors.onnx"
    vectors.write_bytes(twins.small_tensor_twin())
    running = start_server(
        "--model", twin_file, "--model", f"numbers={vectors}", "--data-dir", tmp_path / "data"
    )
    with running.channel() as channel:
        stubs = Stubs(channel)
        row = np.arange(8, dtype=np.float32)
        reply = stubs.embedding.Embed(pb.EmbedRequest(model="numbers", inputs=[wire.tensor(row)]))
        np.testing.assert_allclose(
            reply.results[0].embedding.values, row @ twins.projection(8, seed=5), rtol=1e-4
        )
        with wire.Refused(grpc.StatusCode.NOT_FOUND) as refused:
            stubs.embedding.Embed(pb.EmbedRequest(inputs=[wire.tensor(row)]))
        assert "small@1" in refused.status.message
        compared = stubs.embedding.Compare(
            pb.CompareRequest(
                model="numbers", pairs=[pb.Pair(first=wire.tensor(row), second=wire.tensor(-row))]
            )
        )
        comparison = compared.results[0].comparison
        assert comparison.score.distance == pytest.approx(2.0)
        assert comparison.decision.outcome == shared_pb2.OUTCOME_NOT_CALIBRATED
        assert not comparison.score.HasField("probability")
        zero = wire.tensor(np.zeros(8, np.float32))  # which this twin maps to zero, under cosine
        with wire.Refused(grpc.StatusCode.INVALID_ARGUMENT) as refused:
            stubs.embedding.Compare(
                pb.CompareRequest(model="numbers", pairs=[pb.Pair(first=zero, second=zero)])
            )
        assert wire.reason(refused.status) == "ZERO_VECTOR"
        stubs.gallery.CreateGallery(
            gallery_service_pb2.CreateGalleryRequest(
                gallery=gallery_pb2.Gallery(name="faces", model="small")
            )
        )
        with wire.Refused(grpc.StatusCode.FAILED_PRECONDITION):
            stubs.gallery.Search(
                gallery_service_pb2.SearchRequest(
                    gallery="faces", probes=[shared_pb2.Input(embedding=reply.results[0].embedding)]
                )
            )
    assert running.stop() == 0
    # Served without its model, the gallery refuses raw probes and names both spaces.
    other = start_server("--model", vectors, "--data-dir", tmp_path / "data")
    with other.channel() as channel, wire.Refused(grpc.StatusCode.FAILED_PRECONDITION) as refused:
        Stubs(channel).gallery.Search(
            gallery_service_pb2.SearchRequest(gallery="faces", probes=[wire.tensor(PIXELS[0])])
        )
    assert manifests.read(twin_file).space_id in refused.status.message
    assert manifests.read(vectors).space_id in refused.status.message


def test_a_second_server_on_the_same_folder_is_refused(
    start_server: Callable[..., RunningServer], twin_file: Path, tmp_path: Path
) -> None:
    start_server("--model", twin_file, "--data-dir", tmp_path)
    said = refuse("--model", twin_file, "--data-dir", tmp_path)
    assert str(tmp_path) in said


def test_what_cannot_be_served_is_refused_with_a_sentence(twin_file: Path, tmp_path: Path) -> None:
    data = ("--data-dir", str(tmp_path / "data"))
    assert "not a file" in refuse("--model", tmp_path / "none.onnx", *data)
    text = tmp_path / "text.onnx"
    text.write_text("this is no model")
    assert "not an ONNX model" in refuse("--model", text, *data)
    damaged = tmp_path / "damaged.onnx"
    content = bytearray(twin_file.read_bytes())
    content[len(content) // 3] ^= 1  # one bit of the weights
    damaged.write_bytes(content)
    assert "damaged or was edited" in refuse("--model", damaged, *data)
    assert "--insecure" in refuse("--model", twin_file, *data, "--host", "0.0.0.0")
    assert "--device tpu is unknown" in refuse("--model", twin_file, *data, "--device", "tpu")
    assert "no CUDA provider" in refuse("--model", twin_file, *data, "--device", "cuda")
    assert "given twice" in refuse("--model", twin_file, "--model", twin_file, *data)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        for flag in ("--grpc-port", "--http-port"):
            said = refuse("--model", twin_file, *data, flag, port)
            assert f"port {port} of 127.0.0.1 cannot be bound" in said
            assert f"give another with {flag}" in said
    said = refuse("--model", twin_file, "--data-dir", twin_file)
    assert f"--data-dir {twin_file} cannot be used (File exists); give a folder" in said
