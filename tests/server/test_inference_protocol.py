"""The Open Inference Protocol against a real server with an image, a text and a tensor twin."""

from __future__ import annotations

import asyncio
import struct
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from google.rpc import error_details_pb2 as details
from numpy.typing import NDArray

from tests import conftest, twins
from tests.conftest import RunningServer
from tests.server import wire
from tests.server.wire import Refused
from twinserve import __version__, manifest
from twinserve.oip import inference_pb2 as pb
from twinserve.oip import inference_pb2_grpc as rpc
from twinserve.server.config import Limits
from twinserve.server.gate import Gate
from twinserve.server.models.holding import Models
from twinserve.server.services.inference import InferenceService
from twinserve.server.watching.metrics import Metrics

CODE = grpc.StatusCode
PIXELS, _ = twins.classes_of_pixels(4, 1)
EXPECTED = twins.embed_pixels(PIXELS)
VECTORS = np.random.default_rng(2).standard_normal((3, 8)).astype(np.float32)
TEXTS = ["word1 word2 word3", "word4 word5"]

Stub = rpc.GRPCInferenceServiceStub


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("twins")
    made = {
        "small": twins.small_image_twin(),
        "texts": twins.small_text_twin(),
        "vectors": twins.small_tensor_twin(),
    }
    for name, data in made.items():
        (folder / f"{name}.onnx").write_bytes(data)
    return {name: folder / f"{name}.onnx" for name in made}


@pytest.fixture(scope="module")
def oip_server(
    files: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningServer]:
    flags = [flag for path in files.values() for flag in ("--model", path)]
    running = conftest.start(*flags, "--data-dir", tmp_path_factory.mktemp("data"))
    yield running
    if running.process.poll() is None:
        running.kill()


@pytest.fixture(scope="module")
def stub(oip_server: RunningServer) -> Iterator[Stub]:
    with oip_server.channel() as channel:
        yield Stub(channel)


def block(elements: Sequence[bytes]) -> bytes:
    """Lay BYTES out as the protocol says: each its length in 4 bytes, then itself."""
    return b"".join(struct.pack("<I", len(one)) + one for one in elements)


def raw(
    model: str,
    name: str,
    datatype: str,
    shape: Sequence[int],
    data: bytes,
    **parameters: Any,
) -> pb.ModelInferRequest:
    """A request as tritonclient sends it: one input, its contents in one raw block."""
    tensor = pb.ModelInferRequest.InferInputTensor(name=name, datatype=datatype, shape=shape)
    request = pb.ModelInferRequest(model_name=model, inputs=[tensor], raw_input_contents=[data])
    set_parameters(request, **parameters)
    return request


def typed(
    model: str, name: str, datatype: str, shape: Sequence[int], **contents: Any
) -> pb.ModelInferRequest:
    """A request with its contents by type."""
    tensor = pb.ModelInferRequest.InferInputTensor(
        name=name, datatype=datatype, shape=shape, contents=pb.InferTensorContents(**contents)
    )
    return pb.ModelInferRequest(model_name=model, inputs=[tensor])


def set_parameters(request: pb.ModelInferRequest, **parameters: Any) -> None:
    kinds = {str: "string_param", bool: "bool_param", int: "int64_param", float: "double_param"}
    for key, value in parameters.items():
        setattr(request.parameters[key], kinds[type(value)], value)


def pixels(array: NDArray[np.uint8] = PIXELS, **parameters: Any) -> pb.ModelInferRequest:
    return raw("small", "image", "UINT8", array.shape, array.tobytes(), **parameters)


def texts(*words: str, **parameters: Any) -> pb.ModelInferRequest:
    data = block([word.encode() for word in words])
    return raw("texts", "text", "BYTES", [len(words)], data, **parameters)


def embedded(response: pb.ModelInferResponse) -> NDArray[np.float32]:
    """Read the one output: float32 [rows, dimension]."""
    (output,) = response.outputs
    assert (output.name, output.datatype) == ("embedding", "FP32")
    assert not output.HasField("contents")
    (data,) = response.raw_output_contents
    return np.frombuffer(data, "<f4").reshape(tuple(output.shape))


def test_the_server_is_live_and_ready_and_names_itself(stub: Stub) -> None:
    assert stub.ServerLive(pb.ServerLiveRequest()).live
    assert stub.ServerReady(pb.ServerReadyRequest()).ready
    about = stub.ServerMetadata(pb.ServerMetadataRequest())
    assert (about.name, about.version) == ("twinserve", __version__)
    assert set(about.extensions) == {
        "model_configuration",
        "parameters",
        "schedule_policy",
        "statistics",
    }


@pytest.mark.parametrize(
    ("name", "version", "ready"),
    [
        ("small", "", True),
        ("small", "1", True),
        ("small@1", "", True),
        ("small@1", "1", True),
        ("small", "2", False),
        ("small@1", "2", False),
        ("nobody", "", False),
    ],
)
def test_a_model_is_ready_by_name_and_version(
    stub: Stub, name: str, version: str, ready: bool
) -> None:
    reply = stub.ModelReady(pb.ModelReadyRequest(name=name, version=version))
    assert reply.ready is ready


@pytest.mark.parametrize(
    ("model", "inputs"),
    [
        ("small", [("image", "UINT8", [-1, 28, 28, 1]), ("encoded_image", "BYTES", [-1])]),
        ("texts", [("text", "BYTES", [-1])]),
        ("vectors", [("tensor", "FP32", [-1, 8])]),
    ],
)
def test_metadata_and_config_tell_the_same_tensors(
    stub: Stub, files: dict[str, Path], model: str, inputs: list[tuple[str, str, list[int]]]
) -> None:
    metadata = stub.ModelMetadata(pb.ModelMetadataRequest(name=model))
    assert (metadata.name, list(metadata.versions)) == (model, ["1"])
    assert metadata.platform == "onnxruntime_onnx"
    assert [(one.name, one.datatype, list(one.shape)) for one in metadata.inputs] == inputs
    assert [(one.name, one.datatype, list(one.shape)) for one in metadata.outputs] == [
        ("embedding", "FP32", [-1, 16])
    ]
    twin = manifest.read(files[model])
    assert metadata.properties["space_id"] == twin.space_id
    assert metadata.properties["metric"] == twin.metric
    assert metadata.properties["dimensions"] == ("8,16" if model == "texts" else "16")

    config = stub.ModelConfig(pb.ModelConfigRequest(name=model, version="1")).config
    types = {"UINT8": 2, "FP32": 11, "BYTES": 13}
    assert [(one.name, one.data_type, list(one.dims), one.optional) for one in config.input] == [
        (name, types[datatype], shape[1:], name == "encoded_image")
        for name, datatype, shape in inputs
    ]
    assert [(one.name, one.data_type, list(one.dims)) for one in config.output] == [
        ("embedding", types["FP32"], [16])
    ]
    assert config.max_batch_size == 1024, "rows of one request"
    assert config.HasField("dynamic_batching")
    assert config.dynamic_batching.priority_levels == 3
    assert config.dynamic_batching.default_priority_level == 2
    assert {key: one.string_value for key, one in config.parameters.items()} == dict(
        metadata.properties
    )


def test_pixels_become_embeddings_and_the_id_comes_back(stub: Stub, files: dict[str, Path]) -> None:
    request = pixels()
    request.id = "call-7"
    reply = stub.ModelInfer(request)
    np.testing.assert_allclose(embedded(reply), EXPECTED, atol=1e-5)
    assert (reply.model_name, reply.model_version, reply.id) == ("small", "1", "call-7")
    assert reply.parameters["space_id"].string_param == manifest.read(files["small"]).space_id


@pytest.mark.parametrize("shape", [[4], [4, 1]], ids=str)
def test_encoded_images_are_decoded_by_the_contract(stub: Stub, shape: list[int]) -> None:
    data = block([wire.png(picture) for picture in PIXELS])
    reply = stub.ModelInfer(raw("small", "encoded_image", "BYTES", shape, data))
    np.testing.assert_allclose(embedded(reply), EXPECTED, atol=1e-5)


def test_texts_are_tokenized_by_the_twin(stub: Stub) -> None:
    np.testing.assert_allclose(
        embedded(stub.ModelInfer(texts(*TEXTS))), twins.embed_texts(TEXTS), atol=1e-5
    )


def test_a_tensor_twin_takes_its_array(stub: Stub) -> None:
    reply = stub.ModelInfer(raw("vectors", "tensor", "FP32", [3, 8], VECTORS.tobytes()))
    expected = VECTORS @ twins.projection(8, seed=5)
    np.testing.assert_allclose(embedded(reply), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("request_of", "expected"),
    [
        (
            lambda: typed(
                "small",
                "image",
                "UINT8",
                PIXELS.shape,
                uint_contents=PIXELS.ravel().tolist(),
            ),
            EXPECTED,
        ),
        (
            lambda: typed(
                "small",
                "encoded_image",
                "BYTES",
                [4],
                bytes_contents=[wire.png(picture) for picture in PIXELS],
            ),
            EXPECTED,
        ),
        (
            lambda: typed(
                "texts", "text", "BYTES", [2], bytes_contents=[text.encode() for text in TEXTS]
            ),
            twins.embed_texts(TEXTS),
        ),
        (
            lambda: typed(
                "vectors", "tensor", "FP32", [3, 8], fp32_contents=VECTORS.ravel().tolist()
            ),
            VECTORS @ twins.projection(8, seed=5),
        ),
    ],
    ids=["pixels", "encoded", "texts", "tensor"],
)
def test_typed_contents_give_what_raw_ones_give(
    stub: Stub, request_of: Callable[[], pb.ModelInferRequest], expected: NDArray[np.float32]
) -> None:
    np.testing.assert_allclose(embedded(stub.ModelInfer(request_of())), expected, atol=1e-5)


def test_the_output_may_be_asked_for_by_name(stub: Stub) -> None:
    request = pixels()
    request.outputs.add(name="embedding")
    np.testing.assert_allclose(embedded(stub.ModelInfer(request)), EXPECTED, atol=1e-5)


def test_a_request_may_ask_for_fewer_dimensions_and_the_reply_names_their_space(
    stub: Stub, files: dict[str, Path]
) -> None:
    reply = stub.ModelInfer(texts(*TEXTS, dimensions=8))
    vectors = embedded(reply)
    assert vectors.shape == (2, 8)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    full = manifest.read(files["texts"]).space_id
    assert reply.parameters["space_id"].string_param == manifest.truncated_space_id(full, 8)


def test_a_prompt_goes_before_the_texts_and_long_ones_are_cut_or_refused(stub: Stub) -> None:
    reply = stub.ModelInfer(texts(*TEXTS, prompt="query"))
    expected = twins.embed_texts(TEXTS, twins.PROMPTS["query"])
    np.testing.assert_allclose(embedded(reply), expected, atol=1e-5)
    long = " ".join(["word7"] * 40)
    assert embedded(stub.ModelInfer(texts(long, truncate=True))).shape == (1, 16)
    with Refused(CODE.INVALID_ARGUMENT) as refused:
        stub.ModelInfer(texts(TEXTS[0], long, truncate=False))
    assert wire.reason(refused.status) == "LIMIT_EXCEEDED"
    assert wire.field(refused.status) == "inputs[0][1]"
    assert refused.status.message.startswith("row 1 of input text: ")


@pytest.mark.parametrize("level", [0, 1, 2, 3, 10], ids=str)
@pytest.mark.parametrize("kind", ["int64_param", "uint64_param"])
def test_every_level_of_priority_is_answered(stub: Stub, level: int, kind: str) -> None:
    request = pixels(PIXELS[:1])
    setattr(request.parameters["priority"], kind, level)
    assert embedded(stub.ModelInfer(request)).shape == (1, 16)


def test_reserved_and_unknown_parameters_are_passed_over(stub: Stub) -> None:
    request = pixels(
        sequence_id=7,
        sequence_start=True,
        sequence_end=False,
        headers="x",
        triton_enable_empty_final_response=True,
        binary_data_output=True,
        of_a_gateway="y",
        timeout=0,
    )
    request.inputs[0].parameters["content_type"].string_param = "np"
    np.testing.assert_allclose(embedded(stub.ModelInfer(request)), EXPECTED, atol=1e-5)


def test_a_timeout_in_microseconds_is_the_calls_deadline(stub: Stub) -> None:
    assert embedded(stub.ModelInfer(pixels(timeout=60_000_000))).shape == (4, 16)
    with Refused(CODE.DEADLINE_EXCEEDED) as refused:
        stub.ModelInfer(pixels(timeout=1), timeout=60)
    assert wire.reason(refused.status) == "DEADLINE_EXCEEDED"


def test_one_bad_row_fails_the_call_and_every_bad_row_is_named(stub: Stub) -> None:
    pictures = [wire.png(PIXELS[0]), b"no picture", wire.png(PIXELS[1]), b"nor this"]
    with Refused(CODE.INVALID_ARGUMENT) as refused:
        stub.ModelInfer(raw("small", "encoded_image", "BYTES", [4], block(pictures)))
    assert wire.reason(refused.status) == "IMAGE_UNDECODABLE"
    assert refused.status.message.startswith("row 1 of input encoded_image: ")
    assert wire.field(refused.status) == "inputs[0][1]"
    assert wire.detail(refused.status, details.ErrorInfo).metadata["items_failed"] == "2"


def changed(request: pb.ModelInferRequest, **fields: Any) -> pb.ModelInferRequest:
    """Change fields of the one input."""
    for name, value in fields.items():
        if name == "shape":
            request.inputs[0].shape[:] = value
        else:
            setattr(request.inputs[0], name, value)
    return request


def with_output(name: str, **parameters: str) -> pb.ModelInferRequest:
    request = pixels()
    output = request.outputs.add(name=name)
    for key, value in parameters.items():
        output.parameters[key].string_param = value
    return request


def twice_raw() -> pb.ModelInferRequest:
    request = pixels()
    request.raw_input_contents.append(b"")
    return request


def with_contents() -> pb.ModelInferRequest:
    request = pixels()
    request.inputs[0].contents.uint_contents.append(1)
    return request


def two_inputs() -> pb.ModelInferRequest:
    request = pixels()
    request.inputs.append(request.inputs[0])
    return request


def in_shared_memory() -> pb.ModelInferRequest:
    request = pixels()
    request.inputs[0].parameters["shared_memory_region"].string_param = "region"
    return request


REFUSALS: list[tuple[str, Callable[[], pb.ModelInferRequest], str, str]] = [
    ("no input", lambda: pb.ModelInferRequest(model_name="small"), "EMPTY_INPUT", "inputs"),
    ("two inputs", two_inputs, "INVALID_INPUT", "inputs"),
    (
        "another input",
        lambda: changed(pixels(), name="picture"),
        "WRONG_MODALITY",
        "inputs[0].name",
    ),
    (
        "token ids",
        lambda: raw("texts", "input_ids", "INT64", [1, 2], bytes(16)),
        "WRONG_MODALITY",
        "inputs[0].name",
    ),
    (
        "another datatype",
        lambda: changed(pixels(), datatype="FP32"),
        "WRONG_SHAPE",
        "inputs[0].datatype",
    ),
    (
        "another shape",
        lambda: changed(pixels(), shape=[4, 28, 28]),
        "WRONG_SHAPE",
        "inputs[0].shape",
    ),
    ("no shape", lambda: changed(pixels(), shape=[]), "WRONG_SHAPE", "inputs[0].shape"),
    (
        "a negative batch",
        lambda: changed(pixels(), shape=[-4, 28, 28, 1]),
        "WRONG_SHAPE",
        "inputs[0].shape",
    ),
    (
        "no rows",
        lambda: changed(pixels(), shape=[0, 28, 28, 1]),
        "EMPTY_INPUT",
        "inputs[0].shape",
    ),
    (
        "too many rows",
        lambda: changed(pixels(), shape=[1025, 28, 28, 1]),
        "LIMIT_EXCEEDED",
        "inputs[0].shape",
    ),
    (
        "fewer bytes than the shape",
        lambda: changed(pixels(), shape=[5, 28, 28, 1]),
        "WRONG_SHAPE",
        "raw_input_contents[0]",
    ),
    ("both kinds of contents", with_contents, "INVALID_INPUT", "inputs[0].contents"),
    ("a raw block too many", twice_raw, "INVALID_INPUT", "raw_input_contents"),
    (
        "no contents",
        lambda: pb.ModelInferRequest(model_name="small", inputs=pixels().inputs),
        "EMPTY_INPUT",
        "inputs[0].contents",
    ),
    (
        "contents of another type",
        lambda: typed("small", "image", "UINT8", [1, 28, 28, 1], int_contents=[1] * 784),
        "WRONG_SHAPE",
        "inputs[0].contents.int_contents",
    ),
    (
        "too few typed elements",
        lambda: typed("small", "image", "UINT8", [1, 28, 28, 1], uint_contents=[1] * 783),
        "WRONG_SHAPE",
        "inputs[0].contents",
    ),
    (
        "an element that the datatype cannot hold",
        lambda: typed("small", "image", "UINT8", [1, 28, 28, 1], uint_contents=[256] * 784),
        "WRONG_SHAPE",
        "inputs[0].contents",
    ),
    (
        "an element of BYTES beyond the end",
        lambda: raw("texts", "text", "BYTES", [1], struct.pack("<I", 9) + b"word1"),
        "WRONG_SHAPE",
        "raw_input_contents[0]",
    ),
    (
        "half a length",
        lambda: raw("texts", "text", "BYTES", [2], block([b"word1"]) + b"\1\0"),
        "WRONG_SHAPE",
        "raw_input_contents[0]",
    ),
    (
        "more elements than rows",
        lambda: raw("texts", "text", "BYTES", [1], block([b"word1"] * 3)),
        "WRONG_SHAPE",
        "raw_input_contents[0]",
    ),
    (
        "fewer elements than rows",
        lambda: typed("texts", "text", "BYTES", [2], bytes_contents=[b"word1"]),
        "WRONG_SHAPE",
        "inputs[0].contents",
    ),
    ("an empty text", lambda: texts("word1", ""), "EMPTY_INPUT", "inputs[0][1]"),
    ("a blank text", lambda: texts("word1", " "), "EMPTY_INPUT", "inputs[0][1]"),
    (
        "a text that is not UTF-8",
        lambda: raw("texts", "text", "BYTES", [1], block([b"\xff"])),
        "INVALID_INPUT",
        "inputs[0][0]",
    ),
    (
        "an empty image",
        lambda: raw("small", "encoded_image", "BYTES", [1], block([b""])),
        "EMPTY_INPUT",
        "inputs[0][0]",
    ),
    (
        "a NaN",
        lambda: raw(
            "vectors", "tensor", "FP32", [2, 8], np.array([1.0] * 15 + [np.nan], "<f4").tobytes()
        ),
        "NOT_FINITE",
        "inputs[0][1]",
    ),
    (
        "what the model maps to zero",
        lambda: raw("vectors", "tensor", "FP32", [1, 8], bytes(32)),
        "ZERO_VECTOR",
        "inputs[0][0]",
    ),
    ("another output", lambda: with_output("logits"), "INVALID_INPUT", "outputs[0].name"),
    (
        "classes instead of an embedding",
        lambda: with_output("embedding", classification="3"),
        "INVALID_INPUT",
        "outputs[0].parameters[classification]",
    ),
    (
        "an input in shared memory",
        in_shared_memory,
        "INVALID_INPUT",
        "inputs[0].parameters[shared_memory_region]",
    ),
    (
        "a dimension that the twin does not give",
        lambda: pixels(dimensions=8),
        "INVALID_INPUT",
        "parameters[dimensions]",
    ),
    (
        "a prompt for pictures",
        lambda: pixels(prompt="query"),
        "WRONG_MODALITY",
        "parameters[prompt]",
    ),
    (
        "an unknown prompt",
        lambda: texts(*TEXTS, prompt="answer"),
        "INVALID_INPUT",
        "parameters[prompt]",
    ),
    (
        "a timeout below zero",
        lambda: pixels(timeout=-1),
        "INVALID_INPUT",
        "parameters[timeout]",
    ),
    (
        "a priority in words",
        lambda: pixels(priority="high"),
        "INVALID_INPUT",
        "parameters[priority]",
    ),
]


@pytest.mark.parametrize(
    ("request_of", "reason", "field"), [row[1:] for row in REFUSALS], ids=[r[0] for r in REFUSALS]
)
def test_what_a_twin_does_not_take_is_refused_with_its_place(
    stub: Stub, request_of: Callable[[], pb.ModelInferRequest], reason: str, field: str
) -> None:
    with Refused(CODE.INVALID_ARGUMENT) as refused:
        stub.ModelInfer(request_of())
    assert wire.reason(refused.status) == reason
    assert wire.field(refused.status) == field


def test_an_unknown_model_or_version_is_not_found(stub: Stub) -> None:
    def infer(name: str, version: str) -> object:
        request = pixels()
        request.model_name, request.model_version = name, version
        return stub.ModelInfer(request)

    calls: dict[str, Callable[[str, str], object]] = {
        "ModelInfer": infer,
        "ModelMetadata": lambda n, v: stub.ModelMetadata(
            pb.ModelMetadataRequest(name=n, version=v)
        ),
        "ModelConfig": lambda n, v: stub.ModelConfig(pb.ModelConfigRequest(name=n, version=v)),
        "ModelStatistics": lambda n, v: stub.ModelStatistics(
            pb.ModelStatisticsRequest(name=n, version=v)
        ),
    }
    for call, ask in calls.items():
        prefix = "model_" if call == "ModelInfer" else ""
        for name, version, field in (
            ("nobody", "", "name"),
            ("nobody", "1", "name"),
            ("small", "9", "version"),
            ("small@1", "9", "version"),
        ):
            with Refused(CODE.NOT_FOUND) as refused:
                ask(name, version)
            assert wire.reason(refused.status) == "MODEL_NOT_FOUND", call
            assert wire.field(refused.status) == prefix + field
            assert "small@1" in refused.status.message, "it says what there is"


def test_several_models_need_a_name(stub: Stub) -> None:
    request = pixels()
    request.model_name = ""
    with Refused(CODE.NOT_FOUND):
        stub.ModelInfer(request)


def statistics(stub: Stub, name: str) -> pb.ModelStatistics:
    (found,) = stub.ModelStatistics(pb.ModelStatisticsRequest(name=name)).model_stats
    return found


def test_statistics_count_calls_rows_and_runs(stub: Stub) -> None:
    before = statistics(stub, "vectors")
    request = raw("vectors", "tensor", "FP32", [3, 8], VECTORS.tobytes())
    for _ in range(5):
        stub.ModelInfer(request)
    with Refused(CODE.INVALID_ARGUMENT):
        stub.ModelInfer(raw("vectors", "tensor", "FP32", [1, 8], bytes(32)))
    after = statistics(stub, "vectors")

    assert (after.name, after.version) == ("vectors", "1")
    assert after.inference_count - before.inference_count == 5 * 3 + 1
    assert after.execution_count - before.execution_count == 6
    old, new = before.inference_stats, after.inference_stats
    assert new.success.count - old.success.count == 5
    assert new.fail.count - old.fail.count == 1
    for name in ("success", "queue", "compute_input", "compute_infer"):
        assert getattr(new, name).ns > getattr(old, name).ns, name
        assert getattr(new, name).count - getattr(old, name).count in (5, 6), name
    parts = sum(
        getattr(new, name).ns - getattr(old, name).ns
        for name in ("queue", "compute_input", "compute_infer")
    )
    whole = new.success.ns - old.success.ns + new.fail.ns - old.fail.ns
    assert parts < whole, "a call's parts take no longer than the call"
    sizes = {one.batch_size: one.compute_infer.count for one in after.batch_stats}
    earlier = {one.batch_size: one.compute_infer.count for one in before.batch_stats}
    assert sizes[3] - earlier.get(3, 0) == 5
    assert sizes[1] - earlier.get(1, 0) == 1
    assert sum(sizes.values()) == after.execution_count
    assert sum(size * count for size, count in sizes.items()) == after.inference_count
    assert after.last_inference > before.last_inference


def test_statistics_without_a_name_are_of_every_model(stub: Stub) -> None:
    reply = stub.ModelStatistics(pb.ModelStatisticsRequest())
    assert {(one.name, one.version) for one in reply.model_stats} == {
        ("small", "1"),
        ("texts", "1"),
        ("vectors", "1"),
    }
    with Refused(CODE.INVALID_ARGUMENT):
        stub.ModelStatistics(pb.ModelStatisticsRequest(version="1"))


def test_statistics_and_metrics_tell_the_same_runs(stub: Stub, oip_server: RunningServer) -> None:
    stub.ModelInfer(pixels())
    found = statistics(stub, "small")
    address = f"http://127.0.0.1:{oip_server.http_port}/metrics"
    with urllib.request.urlopen(address) as reply:
        text = reply.read().decode()
    for series, value in (
        ('twinserve_batch_rows_sum{model="small"}', found.inference_count),
        ('twinserve_batch_rows_count{model="small"}', found.execution_count),
    ):
        (line,) = [line for line in text.splitlines() if line.startswith(series)]
        assert float(line.rsplit(" ", 1)[1]) == value


def test_two_versions_are_told_apart_and_counted_together(
    start_server: Callable[..., RunningServer], tmp_path: Path
) -> None:
    for version, seed in (("1", 3), ("2", 4)):
        (tmp_path / f"{version}.onnx").write_bytes(
            twins.small_image_twin(version=version, seed=seed, calibrated=False)
        )
    models = [flag for v in "12" for flag in ("--model", tmp_path / f"{v}.onnx")]
    server = start_server(*models, "--data-dir", tmp_path / "data")
    with server.channel() as channel:
        stub = Stub(channel)
        for version, ran, seed in (("", "2", 4), ("1", "1", 3), ("2", "2", 4)):
            request = pixels()
            request.model_version = version
            reply = stub.ModelInfer(request)
            assert reply.model_version == ran
            expected = twins.embed_pixels(PIXELS, seed)
            np.testing.assert_allclose(embedded(reply), expected, atol=1e-5)
        metadata = stub.ModelMetadata(pb.ModelMetadataRequest(name="small"))
        assert list(metadata.versions) == ["1", "2"]
        found = statistics(stub, "small")
        assert (found.version, found.inference_count) == ("2", 12), "rows of both versions"
        with Refused(CODE.FAILED_PRECONDITION) as refused:
            stub.ModelStatistics(pb.ModelStatisticsRequest(name="small", version="1"))
        assert wire.field(refused.status) == "version"


def test_a_server_that_stops_is_live_and_neither_it_nor_its_models_are_ready() -> None:
    class One(Models):
        def using(self, name: str, field: str = "model") -> AbstractContextManager[Any]:
            return nullcontext()

    async def ask(serving: bool) -> tuple[bool, bool, bool]:
        service = InferenceService(One(), Metrics(), Gate(), Limits(), lambda: serving)
        context: Any = None
        return (
            (await service.ServerLive(pb.ServerLiveRequest(), context)).live,
            (await service.ServerReady(pb.ServerReadyRequest(), context)).ready,
            (await service.ModelReady(pb.ModelReadyRequest(name="small"), context)).ready,
        )

    assert asyncio.run(ask(serving=True)) == (True, True, True)
    assert asyncio.run(ask(serving=False)) == (True, False, False)
