"""Fuzzed requests for a real server, over gRPC: every method, messages of `tests.message_fuzz`.

    python -m tests.request_fuzz SEED COUNT [--in-flight 16]

Starts a server, sends the requests, and prints as JSON what became of them by method and status,
and what the server's memory was after the first tenth and at the end. It fails where an answer is a
fault of the server's (UNKNOWN, INTERNAL, DATA_LOSS, or none in time), where the server dies or has
logged a traceback, and where a sound call is answered otherwise after them than before.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import sys
import tempfile
import time
from collections import Counter, deque
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message

from tests import twins
from tests.conftest import RunningServer, start
from tests.message_fuzz import MessageFuzz
from tests.server import wire
from twinserve.oip import inference_pb2
from twinserve.v1 import (
    embedding_service_pb2,
    gallery_pb2,
    gallery_service_pb2,
    model_service_pb2,
    shared_pb2,
)
from twinserve.v1 import gallery_service_pb2 as pb

PATIENCE = 30.0  # seconds within which every answer has to come
FAULTS = {"UNKNOWN", "INTERNAL", "DATA_LOSS", "DEADLINE_EXCEEDED", "UNAVAILABLE", "CANCELLED"}
# A body that is no message is answered so by grpc's convention.
UNREADABLE = "cannot be read as"
SERVICES = (
    embedding_service_pb2.DESCRIPTOR.services_by_name["EmbeddingService"],
    gallery_service_pb2.DESCRIPTOR.services_by_name["GalleryService"],
    model_service_pb2.DESCRIPTOR.services_by_name["ModelService"],
    inference_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"],
)
# What waits for the disk or loads a model is called less often; a thousand loads say no more.
SELDOM = {
    "CreateGallery": 0.1,
    "DeleteGallery": 0.1,
    "LoadModel": 0.01,
    "RepositoryModelLoad": 0.01,
    "UnloadModel": 0.1,
    "RepositoryModelUnload": 0.1,
    "StartShadow": 0.1,
}
STREAMED = 5  # messages of one stream


def known(gallery: str) -> dict[str, list[Any]]:
    """Values that the server knows, by the names of fields."""
    galleries = [gallery, gallery, "one", "two", "live"]
    return {
        "gallery": galleries,
        "galleries": galleries,
        "name": [*galleries, "small", "texts", "fuzzed"],
        "model": ["", "small", "texts", "live-model", "small@1"],
        "model_name": ["small", "texts"],
        "candidate": ["texts", "small"],
        "alias": ["live", "live-model"],
        "file": ["small.onnx", "none.onnx"],
        "id": [f"i{number}" for number in range(50)],
        "ids": [f"i{number}" for number in range(50)],
        "subject": [f"s{number}" for number in range(10)],
        "new_subject": [f"s{number}" for number in range(10)],
        "key": ["site", "age", "none"],
        "top_k": [1, 3, 10],
        "dimension": [0, 16],
        "dimensions": [16, 8],
        "max_items": [0, 100, 5000],
        "folder": ["monday"],
    }


def sound(gallery: str) -> dict[str, list[Any]]:
    """Sound messages by the name of their type: inputs, metadata, and requests of most methods."""
    pixels = twins.classes_of_pixels(4, 1)[0]
    pictures = [*(wire.image(one) for one in pixels), *(wire.tensor(one) for one in pixels)]
    texts = [shared_pb2.Input(text=text) for text in twins.classes_of_texts(2, 1)[0]]
    north, forty = shared_pb2.MetadataValue(text="north"), shared_pb2.MetadataValue(integer=40)
    age = shared_pb2.Clause(key="age", range=shared_pb2.Range(at_least=forty))
    site = shared_pb2.Clause(key="site", equals=north)
    filters = [shared_pb2.Filter(clause=age), shared_pb2.Filter(clause=site)]
    filters.append(shared_pb2.Filter(any=shared_pb2.FilterList(filters=filters)))
    items = [
        pb.EnrollItem(
            item=shared_pb2.Item(
                id=f"i{number}", subject=f"s{number % 5}", metadata={"site": north}
            ),
            input=one,
        )
        for number, one in enumerate(pictures)
    ]
    pairs = [
        embedding_service_pb2.Pair(first=one, second=other)
        for one, other in itertools.pairwise(pictures)
    ]
    embeds = [
        embedding_service_pb2.EmbedRequest(model="small", inputs=pictures, request_id="r"),
        embedding_service_pb2.EmbedRequest(model="texts", inputs=texts, request_id="r"),
    ]
    infer = inference_pb2.ModelInferRequest
    messages: list[Message] = [
        *pictures,
        *texts,
        north,
        forty,
        *filters,
        *embeds,
        *(embedding_service_pb2.EmbedStreamRequest(request=one) for one in embeds),
        embedding_service_pb2.CompareRequest(model="small", pairs=pairs),
        pb.EnrollRequest(gallery=gallery, items=items),
        pb.EnrollRequest(gallery=gallery, items=items[:1], request_id="once", atomic=True),
        pb.SearchRequest(gallery=gallery, probes=pictures, top_k=3),
        pb.SearchRequest(gallery=gallery, probes=pictures[:1], filter=filters[0], exact=True),
        pb.VerifyRequest(gallery=gallery, subject="s1", probe=pictures[0]),
        pb.GetItemRequest(gallery=gallery, id="i1", with_embedding=True),
        pb.ListItemsRequest(gallery=gallery, page_size=2, view=pb.ITEM_VIEW_FULL),
        pb.CountItemsRequest(gallery=gallery, filter=filters[2]),
        pb.ExportItemsRequest(gallery=gallery),
        pb.RemoveRequest(gallery=gallery, ids=pb.IdList(ids=["i7"])),
        pb.MoveItemsRequest(gallery=gallery, ids=pb.IdList(ids=["i1"]), subject="s2"),
        pb.RenameSubjectRequest(gallery=gallery, subject="s3", new_subject="s4", merge=True),
        pb.GetGalleryRequest(name=gallery),
        pb.SetGalleryAliasRequest(alias="live", gallery=gallery),
        pb.CreateGalleryRequest(gallery=gallery_pb2.Gallery(name="one", model="small")),
        pb.DeleteGalleryRequest(name="one"),
        pb.BackupGalleriesRequest(galleries=[gallery], folder="monday"),
        model_service_pb2.GetModelRequest(name="small"),
        model_service_pb2.LoadModelRequest(file="texts.onnx", name="texts"),
        model_service_pb2.SetAliasRequest(alias="live-model", name="small"),
        model_service_pb2.StartShadowRequest(candidate="texts", model="small", share=0.1),
        infer(
            model_name="small",
            inputs=[infer.InferInputTensor(name="image", datatype="UINT8", shape=[1, 28, 28, 1])],
            raw_input_contents=[pixels[0].tobytes()],
        ),
    ]
    found: dict[str, list[Any]] = {}
    for message in messages:
        found.setdefault(message.DESCRIPTOR.full_name, []).append(message)
    return found


def fill(stubs: wire.Stubs, gallery: str) -> None:
    """Make a gallery that fuzzed calls find."""
    stubs.gallery.CreateGallery(
        pb.CreateGalleryRequest(
            gallery=gallery_pb2.Gallery(
                name=gallery,
                model="small",
                max_items=5000,
                metadata_keys=[
                    gallery_pb2.MetadataKey(key="site", type=gallery_pb2.METADATA_TYPE_TEXT),
                    gallery_pb2.MetadataKey(key="age", type=gallery_pb2.METADATA_TYPE_INTEGER),
                ],
            )
        )
    )


def answers(stubs: wire.Stubs) -> bytes:
    """Return what a sound call says, less what differs from call to call."""
    inputs = [wire.tensor(one) for one in twins.classes_of_pixels(4, 1)[0]]
    reply = stubs.embedding.Embed(
        embedding_service_pb2.EmbedRequest(model="small", inputs=inputs), timeout=PATIENCE
    )
    reply.ClearField("timing")
    return reply.SerializeToString(deterministic=True)


class Sender:
    """Sends bodies to methods, a few at a time, and counts what they come back as."""

    def __init__(self, channel: grpc.Channel, in_flight: int) -> None:
        self.outcomes: Counter[str] = Counter()
        self.faults: list[str] = []
        self._channel = channel
        self._in_flight = in_flight
        self._sent: deque[tuple[str, int, Any]] = deque()

    def send(self, method: MethodDescriptor, bodies: list[bytes], number: int) -> None:
        """Send one request, or one stream of several; waits while many are unanswered."""
        path = f"/{method.containing_service.full_name}/{method.name}"
        if not method.client_streaming and not method.server_streaming:
            call = self._channel.unary_unary(path, None, None).future(bodies[0], timeout=PATIENCE)
            self._sent.append((method.name, number, call))
        else:
            self._stream(path, method, bodies, number)
        while len(self._sent) >= self._in_flight:
            self._take()

    def finish(self) -> None:
        """Wait for all answers."""
        while self._sent:
            self._take()

    def _stream(
        self, path: str, method: MethodDescriptor, bodies: list[bytes], number: int
    ) -> None:
        if method.client_streaming:
            replies = self._channel.stream_stream(path, None, None)(iter(bodies), timeout=PATIENCE)
        else:
            replies = self._channel.unary_stream(path, None, None)(bodies[0], timeout=PATIENCE)
        try:
            for _ in replies:
                pass
            self._count(method.name, number, "OK", "")
        except grpc.RpcError as error:
            self._count(method.name, number, error.code().name, error.details() or "")

    def _take(self) -> None:
        name, number, call = self._sent.popleft()
        try:
            call.result(PATIENCE + 5)
            self._count(name, number, "OK", "")
        except grpc.FutureTimeoutError:
            self._count(name, number, "UNAVAILABLE", "no answer came")
        except grpc.RpcError as error:
            self._count(name, number, error.code().name, error.details() or "")

    def _count(self, name: str, number: int, code: str, details: str) -> None:
        if code == "INTERNAL" and UNREADABLE in details:
            code = "UNREADABLE"
        self.outcomes[f"{name} {code}"] += 1
        if code in FAULTS:
            self.faults.append(f"request {number}, {name}: {code}: {details}")


def requests(
    chance: random.Random, count: int, kept: str
) -> Iterator[tuple[MethodDescriptor, list[bytes]]]:
    """Draw methods, and the bodies of a request of each."""
    fuzz = MessageFuzz(chance, known(kept), sound(kept))
    # The gallery that the others need stays.
    careful = MessageFuzz(chance, {**known("one"), "name": ["one", "two"]}, {})
    methods = [method for service in SERVICES for method in service.methods]
    weights = [SELDOM.get(method.name, 1.0) for method in methods]
    for method in chance.choices(methods, weights, k=count):
        maker = careful if method.name == "DeleteGallery" else fuzz
        copies = chance.randint(0, STREAMED) if method.client_streaming else 1
        yield method, [maker.body(method.input_type) for _ in range(copies)]


def resident(server: RunningServer) -> int:
    """Return the bytes of memory that the server holds."""
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) << 10


def run(seed: int, count: int, in_flight: int, folder: Path) -> Mapping[str, Any]:
    """Do it, and return what is printed.

    Raises:
        AssertionError: as the module says.
    """
    twin_dir = folder / "twins"
    twin_dir.mkdir()
    small, texts = twin_dir / "small.onnx", twin_dir / "texts.onnx"
    small.write_bytes(twins.small_image_twin())
    texts.write_bytes(twins.small_text_twin(calibrated=False))
    server = start(
        *("--model", f"small={small}", "--model", f"texts={texts}", "--model-dir", twin_dir),
        *("--data-dir", folder / "data", "--backup-dir", folder / "backups"),
        *("--runners", "1", "--threads", "1"),
    )
    try:
        with server.channel() as channel:
            stubs = wire.Stubs(channel)
            fill(stubs, "kept")
            before = answers(stubs)
            sender = Sender(channel, in_flight)
            began, warm = time.monotonic(), 0
            for number, (method, bodies) in enumerate(requests(random.Random(seed), count, "kept")):
                sender.send(method, bodies, number)
                if number == count // 10:
                    warm = resident(server)
                if sender.faults or server.process.poll() is not None:
                    break
            sender.finish()
            died = server.process.poll()
            assert died is None, f"the server ended with {died}:\n{''.join(server.errors[-40:])}"
            assert not sender.faults, sender.faults[0] + "\n" + "".join(server.errors[-40:])
            traces = [line for line in server.errors if line.startswith("Traceback")]
            assert not traces, "".join(server.errors[-60:])
            assert answers(stubs) == before, "a sound call is answered otherwise than before"
            report = {
                "requests": sum(sender.outcomes.values()),
                "seconds": round(time.monotonic() - began, 1),
                "outcomes": dict(sorted(sender.outcomes.items())),
                "resident_warm": warm,
                "resident_end": resident(server),
            }
        assert server.stop() == 0, "the server did not end well"
        return report
    finally:
        if server.process.poll() is None:
            server.kill()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("seed", type=int)
    parser.add_argument("count", type=int)
    parser.add_argument("--in-flight", type=int, default=16)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        report = run(arguments.seed, arguments.count, arguments.in_flight, Path(folder))
    json.dump(report, sys.stdout, indent=1)
    print()


if __name__ == "__main__":
    main()
