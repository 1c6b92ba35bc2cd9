"""Clients that ask the server for its contract: everything is described, and can be called."""

from __future__ import annotations

import base64
import json
import subprocess
from pathlib import Path

import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor

from tests import conftest, twins
from tests.clients.reflected import Reflected
from tests.conftest import RunningServer
from tests.server import wire
from twinserve.v1 import embedding_service_pb2, gallery_service_pb2, model_service_pb2

ROOT = Path(__file__).resolve().parents[2]
BUF = ROOT / "tools" / "buf" / "node_modules" / ".bin" / "buf"
EMBEDDING = "twinserve.v1.EmbeddingService"
PIXELS, _ = twins.classes_of_pixels(2, 1)
IMAGES = [{"image": base64.b64encode(wire.png(picture)).decode()} for picture in PIXELS]


def test_every_call_of_the_contract_is_described_with_all_its_fields(
    server: RunningServer,
) -> None:
    def walk(message: Descriptor, seen: dict[str, list[str]]) -> None:
        if message.full_name in seen:
            return
        seen[message.full_name] = [f"{field.name} = {field.number}" for field in message.fields]
        for field in message.fields:
            if field.type == FieldDescriptor.TYPE_MESSAGE:
                walk(field.message_type, seen)

    with server.channel() as channel:
        reflected = Reflected(channel)
        assert "inference.GRPCInferenceService" in reflected.services()
        for generated in (embedding_service_pb2, gallery_service_pb2, model_service_pb2):
            for service in generated.DESCRIPTOR.services_by_name.values():
                told: dict[str, list[str]] = {}
                ours: dict[str, list[str]] = {}
                methods = reflected.methods(service.full_name)
                assert [one.name for one in methods] == [one.name for one in service.methods]
                for theirs, generated_method in zip(methods, service.methods, strict=True):
                    for seen, method in ((told, theirs), (ours, generated_method)):
                        walk(method.input_type, seen)
                        walk(method.output_type, seen)
                assert told == ours


def test_a_client_that_knows_only_the_address_makes_calls(server: RunningServer) -> None:
    with server.channel() as channel:
        reflected = Reflected(channel)
        assert reflected.call("grpc.health.v1.Health", "Check", {}) == {"status": "SERVING"}
        (model,) = reflected.call("twinserve.v1.ModelService", "ListModels", {})["models"]
        assert model["name"] == "small"
        reply = reflected.call(
            EMBEDDING, "Compare", {"pairs": [{"first": IMAGES[0], "second": IMAGES[1]}]}
        )
    first, second = twins.embed_pixels(PIXELS)
    (result,) = reply["results"]
    distance = float(((first - second) ** 2).sum() ** 0.5)
    assert result["comparison"]["score"]["distance"] == pytest.approx(distance, abs=1e-4)


def test_buf_lists_and_calls_by_reflection(server: RunningServer) -> None:
    """Stands for grpcurl too, which asks for the same and has no package to install it by."""
    conftest.require(BUF.exists(), "buf is not installed: run make buf")

    def curl(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [BUF, "curl", "--http2-prior-knowledge", "--protocol", "grpc", *arguments],
            capture_output=True,
            text=True,
            timeout=60,
        )

    url = f"http://{server.target}"
    listed = curl("--list-methods", url).stdout.split()
    assert f"{EMBEDDING}/Compare" in listed
    request = json.dumps({"inputs": IMAGES})
    reply = json.loads(curl("-d", request, f"{url}/{EMBEDDING}/Embed").stdout)
    assert len(reply["results"]) == 2
    refused = curl("-d", '{"name": "nobody"}', f"{url}/twinserve.v1.GalleryService/GetGallery")
    assert refused.returncode != 0
    assert "there is no gallery 'nobody'" in refused.stderr
