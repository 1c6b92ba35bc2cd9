"""Design's table of errors on every call that takes an input, generated from the descriptors.

Each row is provoked on a real server in each place where the contract has an input: code, reason,
domain, field and other details. A call that takes an input and is not known here fails the first
test; one that a later release brings answers so, and joins by itself once it is built. What a
deadline does stands in test_deadlines_on_the_wire.py.
"""

from __future__ import annotations

import io
import struct
import threading
import time
import urllib.request
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf.message import Message
from google.rpc import error_details_pb2 as details
from google.rpc import status_pb2
from PIL import Image

from tests import twins
from tests.conftest import RunningServer, start
from tests.server import input_calls, wire
from tests.server.input_calls import Place
from twinserve.distance import Metric
from twinserve.oip import inference_pb2
from twinserve.v1 import embedding_service_pb2 as embedding
from twinserve.v1 import gallery_pb2, shared_pb2
from twinserve.v1 import gallery_service_pb2 as gallery
from twinserve.v1.shared_pb2 import Input

CODE = grpc.StatusCode
KINDS = ("image", "text", "tensor")  # a model and a gallery of each name
ONE_THREAD = ("--runners", "1", "--threads", "1")  # measuring what is best takes a second
PIXELS, _ = twins.classes_of_pixels(2, 1)
PICTURE = wire.png(PIXELS[0])
GOOD = {
    "image": Input(image=PICTURE),
    "text": Input(text="word1 word2"),
    "tensor": wire.tensor(np.arange(8, dtype=np.float32)),
}

# What surrounds the input in each call, for the model or gallery of a kind.
AROUND: dict[str, Callable[[str], Message]] = {
    "Embed": lambda kind: embedding.EmbedRequest(model=kind),
    "EmbedStream": lambda kind: embedding.EmbedStreamRequest(
        request=embedding.EmbedRequest(model=kind, request_id="one")
    ),
    "Compare": lambda kind: embedding.CompareRequest(model=kind),
    "Enroll": lambda kind: gallery.EnrollRequest(gallery=kind),
    "EnrollStream": lambda kind: gallery.EnrollRequest(gallery=kind),
    "Search": lambda kind: gallery.SearchRequest(gallery=kind),
    "Verify": lambda kind: gallery.VerifyRequest(gallery=kind, subject="ann"),
}
PLACES = input_calls.places()
LISTING = [place for place in PLACES if place.listed]
# The one call whose inputs are tensors of another protocol.
INFER = next(one for one in input_calls.methods() if one.name == "ModelInfer")


def test_every_call_that_takes_an_input_is_in_the_table() -> None:
    assert {place.call for place in PLACES} == set(AROUND)
    assert sorted(map(str, PLACES)) == [
        "Compare pairs[0].first",
        "Compare pairs[0].second",
        "Embed inputs[0]",
        "EmbedStream request.inputs[0]",
        "Enroll items[0].input",
        "EnrollStream items[0].input",
        "Search probes[0]",
        "Verify probe",
    ]
    others = {one.name for one in input_calls.methods() if "inference" in one.full_name}
    asking = {name for name in others if not name.startswith(("Server", "Model"))}
    assert not asking, "a call of the protocol that this table does not know"


@pytest.fixture(scope="module")
def table_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    folder = tmp_path_factory.mktemp("twins")
    made = {
        "image": twins.small_image_twin("image", metric=Metric.COSINE),
        "text": twins.small_text_twin("text", truncate=False),
        "tensor": twins.small_tensor_twin("tensor"),
    }
    # Full with two calls of the largest kind.
    flags: list[str | Path] = ["--data-dir", tmp_path_factory.mktemp("data"), "--max-rows", "2048"]
    flags += ONE_THREAD
    for kind, data in made.items():
        (folder / f"{kind}.onnx").write_bytes(data)
        flags += ["--model", folder / f"{kind}.onnx"]
    running = start(*flags)
    yield running
    if running.process.poll() is None:
        running.kill()


@pytest.fixture(scope="module")
def channel(table_server: RunningServer) -> Iterator[grpc.Channel]:
    with table_server.channel() as channel:
        fill(channel)
        yield channel


def fill(channel: grpc.Channel, kinds: Sequence[str] = KINDS) -> None:
    """Make the gallery of each kind, with one subject."""
    stubs = wire.Stubs(channel)
    for kind in kinds:
        stubs.gallery.CreateGallery(
            gallery.CreateGalleryRequest(gallery=gallery_pb2.Gallery(name=kind, model=kind))
        )
        item = shared_pb2.Item(id="a", subject="ann")
        stubs.gallery.Enroll(
            gallery.EnrollRequest(
                gallery=kind, items=[gallery.EnrollItem(item=item, input=GOOD[kind])]
            )
        )


@dataclass(frozen=True)
class Row:
    """One bad input: what each call must say, and where."""

    input: Input
    reason: str
    part: str  # of the input that the error names; "" is the input itself
    kind: str = "image"
    code: grpc.StatusCode = CODE.INVALID_ARGUMENT
    infer: str | None = "inputs[0][0]"  # the field that ModelInfer names; None: it cannot be said


def bomb() -> bytes:
    """A PNG of a few bytes whose header claims 60,000 x 60,000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        check = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", check)

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 0, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def saved(kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(PIXELS[0][:, :, 0]).save(file, kind, **options)
    return file.getvalue()


def endless() -> bytes:
    """A JPEG that is passed over ten thousand times."""
    data = saved("JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    return data[:-2] + data[last : last + 10] * 10_000 + data[-2:]


def pixels(**changed: Any) -> Input:
    fields = {"data_type": 1, "shape": [28, 28, 1], "data": bytes(784)}
    return Input(tensor=shared_pb2.Tensor(**{**fields, **changed}))


def vector(fill: float, at: dict[int, float] | None = None, size: int = 16) -> np.ndarray:
    made = np.full(size, fill, np.float32)
    for place, value in (at or {}).items():
        made[place] = value
    return made


SPACE = "the space"  # stands for the image model's own, which the rows cannot know
UNDECODABLE, LIMIT, SHAPE = "IMAGE_UNDECODABLE", "LIMIT_EXCEEDED", "WRONG_SHAPE"
EMPTY, MODALITY, FINITE = "EMPTY_INPUT", "WRONG_MODALITY", "NOT_FINITE"
ROWS = {
    "bytes that are no image": Row(Input(image=b"GIF89a but no picture"), UNDECODABLE, "image"),
    "an image of a sixth format": Row(Input(image=saved("TIFF")), UNDECODABLE, "image"),
    "a truncated image": Row(Input(image=PICTURE[: len(PICTURE) // 2]), UNDECODABLE, "image"),
    "an empty image": Row(Input(image=b""), EMPTY, "image"),
    "an image of too many pixels": Row(Input(image=bomb()), LIMIT, "image"),
    "an image of too many bytes": Row(Input(image=PICTURE + bytes(17 << 20)), LIMIT, "image"),
    "an image of too many passes": Row(Input(image=endless()), LIMIT, "image"),
    "no input": Row(Input(), EMPTY, "", infer=None),
    "a text for an image model": Row(Input(text="who"), MODALITY, "text", infer="inputs[0].name"),
    "an image for a text model": Row(
        Input(image=PICTURE), MODALITY, "image", "text", infer="inputs[0].name"
    ),
    "a text for a tensor model": Row(
        Input(text="who"), MODALITY, "text", "tensor", infer="inputs[0].name"
    ),
    "an empty text": Row(Input(text=""), EMPTY, "text", "text"),
    "a blank text": Row(Input(text=" \n "), EMPTY, "text", "text"),
    "a text of too many bytes": Row(Input(text="a" * 70_000), LIMIT, "text", "text"),
    "a text of too many tokens": Row(Input(text="word1 " * 40), LIMIT, "text", "text"),
    "a prompt that the model has not": Row(
        Input(text="word1", prompt="poem"), "INVALID_INPUT", "prompt", "text", infer=None
    ),
    "a prompt with an image": Row(
        Input(image=PICTURE, prompt="query"), "INVALID_INPUT", "prompt", infer=None
    ),
    "pixels of another size": Row(
        pixels(shape=[27, 28, 1], data=bytes(756)), SHAPE, "tensor", infer="inputs[0].shape"
    ),
    "pixels of another type": Row(
        pixels(data_type=2, data=bytes(4 * 784)), SHAPE, "tensor", infer="inputs[0].datatype"
    ),
    "a tensor of no type": Row(pixels(data_type=0), SHAPE, "tensor", infer=None),
    "a tensor of no known type": Row(pixels(data_type=77), SHAPE, "tensor", infer=None),
    "a tensor shorter than its shape": Row(
        pixels(data=b"abc"), SHAPE, "tensor", infer="raw_input_contents[0]"
    ),
    "a tensor of a huge shape": Row(
        pixels(shape=[2**62, 2**62, 4]), SHAPE, "tensor", infer="inputs[0].shape"
    ),
    "a tensor with a negative extent": Row(
        pixels(shape=[-1, 28]), SHAPE, "tensor", infer="inputs[0].shape"
    ),
    "a tensor of too many bytes": Row(
        pixels(shape=[17 << 20], data=bytes(17 << 20)), LIMIT, "tensor", infer=None
    ),
    "a NaN in a tensor": Row(
        wire.tensor(vector(1, {3: np.nan}, 8)), FINITE, "tensor", "tensor"
    ),
    "an infinity in a tensor": Row(
        wire.tensor(vector(1, {3: np.inf}, 8)), FINITE, "tensor", "tensor"
    ),
    "an input that the model maps to zero": Row(pixels(), "ZERO_VECTOR", "tensor"),
    "an embedding without values": Row(
        Input(embedding=shared_pb2.Embedding(space_id=SPACE)), EMPTY, "embedding", infer=None
    ),
    "a NaN in an embedding": Row(
        wire.ready(vector(1, {3: np.nan}), SPACE), FINITE, "embedding", infer=None
    ),
    "an infinity in an embedding": Row(
        wire.ready(vector(1, {3: -np.inf}), SPACE), FINITE, "embedding", infer=None
    ),
    "an embedding of another dimension": Row(
        wire.ready(vector(1, size=15), SPACE), SHAPE, "embedding", infer=None
    ),
    "a zero vector under cosine": Row(
        wire.ready(vector(0), SPACE), "ZERO_VECTOR", "embedding", infer=None
    ),
    "an embedding of another space": Row(
        wire.ready(vector(1), "sp_foreign"),
        "SPACE_MISMATCH",
        "embedding",
        code=CODE.FAILED_PRECONDITION,
        infer=None,
    ),
    "an embedding of no space": Row(
        wire.ready(vector(1), ""),
        "SPACE_MISMATCH",
        "embedding",
        code=CODE.FAILED_PRECONDITION,
        infer=None,
    ),
}  # fmt: skip


def in_space(one: Input, space: str) -> Input:
    """Put the image model's own space where a row means it."""
    made = Input()
    made.CopyFrom(one)
    if made.embedding.space_id == SPACE:
        made.embedding.space_id = space
    return made


@pytest.fixture(scope="module")
def space(channel: grpc.Channel) -> str:
    reply = wire.Stubs(channel).embedding.Embed(
        embedding.EmbedRequest(model="image", inputs=[GOOD["image"]])
    )
    return str(reply.space_id)


def check(status: status_pb2.Status, row: Row, field: str, space: str) -> None:
    """Hold a status to its row: code, reason, domain, field, and the facts that go with it."""
    assert status.code == row.code.value[0], status
    assert wire.reason(status) == row.reason
    violation = wire.detail(status, details.BadRequest).field_violations[0]
    assert (violation.field, violation.reason) == (field, row.reason)
    assert violation.description, "the sentence"
    assert len(status.message) > 20
    metadata = wire.detail(status, details.ErrorInfo).metadata
    if row.reason == LIMIT:
        assert int(metadata["limit"]) > 0
    if row.reason == "SPACE_MISMATCH":
        assert metadata["space_id"] == row.input.embedding.space_id
        assert metadata["wanted_space_id"] == space
        assert space in status.message


@pytest.mark.parametrize("what", ROWS)
@pytest.mark.parametrize("place", PLACES, ids=str)
def test_a_bad_input_fails_the_call_that_holds_nothing_else(
    channel: grpc.Channel, space: str, place: Place, what: str
) -> None:
    row = ROWS[what]
    request = AROUND[place.call](row.kind)
    input_calls.plant(request, place, in_space(row.input, space), GOOD[row.kind])
    status = input_calls.status_of(channel, place.method, request)
    if input_calls.is_built(status):
        check(status, row, f"{place.path()}.{row.part}".rstrip("."), space)


@pytest.mark.parametrize("place", LISTING, ids=str)
def test_a_bad_input_among_good_ones_fails_alone_with_its_index(
    channel: grpc.Channel, space: str, place: Place
) -> None:
    """Every row of the table in one call, a good input before each; and as a whole when atomic."""
    for kind in KINDS:
        rows = [row for row in ROWS.values() if row.kind == kind and row.input.ByteSize() < 1 << 20]
        request = AROUND[place.call](kind)
        for row in rows:
            input_calls.plant(request, place, GOOD[kind], GOOD[kind])
            input_calls.plant(request, place, in_space(row.input, space), GOOD[kind])
        status = input_calls.status_of(channel, place.method, request)
        if not input_calls.is_built(status):
            return
        assert status.code == 0, status
        reply: Any = input_calls.send(channel, place.method, request)
        results = getattr(reply, "response", reply).results
        assert len(results) == 2 * len(rows)
        for index, row in enumerate(rows):
            good, bad = results[2 * index : 2 * index + 2]
            assert not good.HasField("error"), good
            field = f"{place.path(2 * index + 1)}.{row.part}".rstrip(".")
            check(bad.error, row, field, space)
        inside: Any = getattr(request, "request", request)
        if "atomic" not in inside.DESCRIPTOR.fields_by_name:
            continue
        inside.atomic = True
        status = input_calls.status_of(channel, place.method, request)
        failed = wire.detail(status, details.ErrorInfo).metadata["items_failed"]
        assert status.code == rows[0].code.value[0]
        assert int(failed or 1) == len(rows)


@pytest.mark.parametrize("place", LISTING, ids=str)
def test_no_items_and_too_many_are_refused_with_the_list_named(
    channel: grpc.Channel, place: Place
) -> None:
    for count, reason in ((0, EMPTY), (1025, LIMIT)):
        request = AROUND[place.call]("tensor")
        for _ in range(count):
            input_calls.plant(request, place, GOOD["tensor"], GOOD["tensor"])
        status = input_calls.status_of(channel, place.method, request)
        if not input_calls.is_built(status):
            return
        assert status.code == CODE.INVALID_ARGUMENT.value[0]
        assert (wire.reason(status), wire.field(status)) == (reason, place.listed)


def good_call(place: Place, kind: str = "image", count: int = 1) -> Message:
    request = AROUND[place.call](kind)
    for _ in range(count if place.listed else 1):
        input_calls.plant(request, place, GOOD[kind], GOOD[kind])
    return request


@pytest.mark.parametrize("place", PLACES, ids=str)
def test_a_model_or_gallery_that_is_not_there_is_named(channel: grpc.Channel, place: Place) -> None:
    status = input_calls.status_of(channel, place.method, good_call(place, "image"))
    if not input_calls.is_built(status):
        return
    assert status.code == 0, f"the call itself is good: {status}"
    request = AROUND[place.call]("nobody")
    input_calls.plant(request, place, GOOD["image"], GOOD["image"])
    status = input_calls.status_of(channel, place.method, request)
    kind = "gallery" if "gallery" in request.DESCRIPTOR.fields_by_name else "model"
    assert status.code == CODE.NOT_FOUND.value[0]
    assert wire.reason(status) == f"{kind.upper()}_NOT_FOUND"
    resource = wire.detail(status, details.ResourceInfo)
    assert (resource.resource_type, resource.resource_name) == (kind, "nobody")


def infer(row_input: Input, kind: str) -> inference_pb2.ModelInferRequest:
    """Say an input in the words of the Open Inference Protocol."""
    what = row_input.WhichOneof("kind")
    tensor = inference_pb2.ModelInferRequest.InferInputTensor(datatype="BYTES", shape=[1])
    if what == "tensor":
        tensor.name = "image" if kind == "image" else "tensor"
        tensor.datatype = {1: "UINT8", 2: "FP32", 3: "INT64"}[row_input.tensor.data_type]
        tensor.shape[:] = [1, *row_input.tensor.shape]
        data = row_input.tensor.data
    else:
        tensor.name = "encoded_image" if what == "image" else "text"
        element = row_input.image if what == "image" else row_input.text.encode()
        data = struct.pack("<I", len(element)) + element
    return inference_pb2.ModelInferRequest(
        model_name=kind, inputs=[tensor], raw_input_contents=[data]
    )


@pytest.mark.parametrize("what", [what for what, row in ROWS.items() if row.infer])
def test_a_bad_input_fails_an_inference_with_its_row_named(
    channel: grpc.Channel, space: str, what: str
) -> None:
    row = ROWS[what]
    assert row.infer is not None
    status = input_calls.status_of(channel, INFER, infer(row.input, row.kind))
    check(status, row, row.infer, space)


# The calls that are answered once, of which each is refused where the server has no room.
UNARY = [*(str(place) for place in PLACES if not place.method.client_streaming), INFER.name]


def call_of(name: str, inputs: Sequence[Input]) -> tuple[Any, Message]:
    """A call of `UNARY` to the image model with these inputs; with the first where it takes one."""
    if name == INFER.name:
        request = infer(inputs[0], "image")
        request.inputs[0].shape[0] = len(inputs)
        rows = [infer(one, "image").raw_input_contents[0] for one in inputs]
        request.raw_input_contents[0] = b"".join(rows)
        return INFER, request
    place = next(place for place in PLACES if str(place) == name)
    asked = AROUND[place.call]("image")
    for one in inputs if place.listed else inputs[:1]:
        input_calls.plant(asked, place, one, GOOD["image"])
    return place.method, asked


def test_an_inference_by_a_model_that_is_not_there_names_it(channel: grpc.Channel) -> None:
    assert input_calls.status_of(channel, INFER, infer(GOOD["image"], "image")).code == 0
    request = infer(GOOD["image"], "image")
    request.model_name = "nobody"
    status = input_calls.status_of(channel, INFER, request)
    assert status.code == CODE.NOT_FOUND.value[0]
    assert wire.reason(status) == "MODEL_NOT_FOUND"
    assert wire.detail(status, details.ResourceInfo).resource_name == "nobody"


def every_call(kind: str = "image") -> list[tuple[str, Any, Message]]:
    """One good call in each place, and an inference."""
    return [
        *((str(place), place.method, good_call(place, kind)) for place in PLACES),
        ("ModelInfer", INFER, infer(GOOD[kind], kind)),
    ]


def until(
    channel: grpc.Channel, method: Any, request: Message, code: grpc.StatusCode
) -> status_pb2.Status:
    """Repeat a call until it ends with a code, for at most 30 seconds."""
    end = time.monotonic() + 30
    while time.monotonic() < end:
        status = input_calls.status_of(channel, method, request)
        if status.code == code.value[0] or not input_calls.is_built(status):
            return status
    raise AssertionError(f"{method.name} never ended with {code}, but with {status}")


class Flood:
    """Clients that keep a server full for as long as the block runs.

    Pictures that differ in trailing bytes: dear to decode, and none is another's repetition.
    """

    def __init__(self, target: str, clients: int = 4) -> None:
        request = embedding.EmbedRequest(
            model="image",
            inputs=[Input(image=PICTURE + bytes(divmod(i, 256))) for i in range(1024)],
        )
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._run, args=(target, request)) for _ in range(clients)
        ]

    def _run(self, target: str, request: embedding.EmbedRequest) -> None:
        # A channel each that shares no connection: the server counts them as clients of their own.
        options = [("grpc.use_local_subchannel_pool", 1)]
        with grpc.insecure_channel(target, options=options) as channel:
            stub = wire.Stubs(channel).embedding
            while not self._stop.is_set():
                try:
                    stub.Embed(request, timeout=30)
                except grpc.RpcError:
                    self._stop.wait(0.002)

    def __enter__(self) -> Flood:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(60)


def slow_pictures(count: int) -> list[Input]:
    """Pictures of 9 megapixels, which keep a call inside for some twentieth of a second each."""
    file = io.BytesIO()
    Image.new("L", (3000, 3000), 77).save(file, "PNG")
    return [Input(image=file.getvalue() + bytes([i])) for i in range(count)]


def distinct(count: int) -> list[Input]:
    """Inputs of which none repeats another, which would be embedded once."""
    made = np.random.default_rng(1).integers(0, 256, (count, 28, 28, 1), np.uint8)
    return [wire.tensor(one) for one in made]


def wait_until_admitted(server: RunningServer, rows: int) -> None:
    for _ in range(3000):
        with urllib.request.urlopen(f"http://127.0.0.1:{server.http_port}/metrics") as reply:
            if f"twinserve_admitted_rows {float(rows)}" in reply.read().decode():
                return
        time.sleep(0.01)
    raise AssertionError(f"{rows} rows were never admitted")


@pytest.mark.parametrize("name", UNARY)
def test_a_client_over_its_share_is_refused_while_others_are_served(
    table_server: RunningServer, channel: grpc.Channel, name: str
) -> None:
    slow = slow_pictures(10)
    inside = [*distinct(1014), *slow]  # all of its share, so that one input is too many
    method, request = call_of(name, distinct(100))
    options = [("grpc.use_local_subchannel_pool", 1)]  # a connection of its own: another client
    with grpc.insecure_channel(table_server.target, options=options) as other:
        held = [
            wire.Stubs(one).embedding.Embed.future(
                embedding.EmbedRequest(model="image", inputs=many)
            )
            for one, many in ((channel, inside), (other, slow))
        ]
        wait_until_admitted(table_server, len(inside) + len(slow))
        # More than half of the room is taken, and half of it is each client's.
        status = input_calls.status_of(channel, method, request)
        assert not held[0].done(), "the test itself was too slow"
        assert status.code == CODE.RESOURCE_EXHAUSTED.value[0], status
        assert wire.reason(status) == "CLIENT_OVER_SHARE"
        assert wire.detail(status, details.ErrorInfo).metadata["limit"] == "1024"
        assert wire.detail(status, details.RetryInfo).retry_delay.ToMilliseconds() > 0
        assert input_calls.status_of(other, method, request).code == 0
        assert [len(one.result().results) for one in held] == [len(inside), len(slow)]


def test_a_full_server_refuses_every_call_with_a_time_to_come_again(
    table_server: RunningServer, channel: grpc.Channel
) -> None:
    with Flood(table_server.target):
        for place in PLACES:
            if place.method.client_streaming:
                # Bulk waits for room, within its deadline, instead of coming again.
                request = good_call(place, count=1024)
                status = input_calls.status_of(channel, place.method, request)
                assert not status.code or not input_calls.is_built(status), place
        for name in UNARY:
            method, request = call_of(name, [GOOD["image"]] * 1024)
            status = until(channel, method, request, CODE.RESOURCE_EXHAUSTED)
            if not input_calls.is_built(status):
                continue
            assert wire.reason(status) in ("QUEUE_FULL", "CLIENT_OVER_SHARE"), name
            delay = wire.detail(status, details.RetryInfo).retry_delay
            assert 0 < delay.ToMilliseconds() <= 30_000, name
    for name, method, request in every_call():
        status = input_calls.status_of(channel, method, request)
        assert not status.code or not input_calls.is_built(status), f"afterwards {name}"


def test_a_server_that_stops_refuses_every_call_and_says_when_to_come_again(
    start_server: Callable[..., RunningServer], tmp_path: Path
) -> None:
    (tmp_path / "image.onnx").write_bytes(twins.small_image_twin("image", metric=Metric.COSINE))
    stopping = start_server(
        *ONE_THREAD, "--model", tmp_path / "image.onnx", "--data-dir", tmp_path / "data"
    )
    with stopping.channel() as channel:
        fill(channel, ("image",))
        slow = slow_pictures(30)
        held = wire.Stubs(channel).embedding.Embed.future(
            embedding.EmbedRequest(model="image", inputs=slow)
        )
        wait_until_admitted(stopping, len(slow))
        stopping.process.terminate()
        calls = every_call()
        until(channel, calls[0][1], calls[0][2], CODE.UNAVAILABLE)
        for name, method, request in calls:
            status = input_calls.status_of(channel, method, request)
            if not input_calls.is_built(status):
                continue
            assert status.code == CODE.UNAVAILABLE.value[0], name
            assert wire.reason(status) == "NOT_SERVING", name
            assert wire.detail(status, details.RetryInfo).retry_delay.ToMilliseconds() > 0, name
        assert len(held.result().results) == len(slow), "what was accepted is answered"
    assert stopping.process.wait(30) == 0
