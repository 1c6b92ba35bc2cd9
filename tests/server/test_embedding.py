"""Embed and Compare against a real server in its own process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest

from tests import twins
from tests.conftest import RunningServer
from tests.server import wire
from tests.server.wire import Refused, Stubs
from twinserve import decision, manifest
from twinserve.distance import Metric, paired
from twinserve.v1 import embedding_service_pb2 as pb
from twinserve.v1 import model_service_pb2, shared_pb2


@pytest.fixture(scope="module")
def stubs(server: RunningServer) -> Iterator[Stubs]:
    with server.channel() as channel:
        yield Stubs(channel)


@pytest.fixture(scope="module")
def space(twin_file: Path) -> str:
    return manifest.read(twin_file).space_id


def test_images_tensors_and_ready_embeddings_give_the_same_vector(stubs: Stubs, space: str) -> None:
    pixels, _ = twins.classes_of_pixels(1, 1)
    expected = twins.embed_pixels(pixels)[0]
    inputs = [
        wire.image(pixels[0]),
        wire.tensor(pixels[0]),
        wire.tensor(pixels[0, :, :, 0]),
        wire.ready(expected, space),
    ]
    reply = stubs.embedding.Embed(pb.EmbedRequest(inputs=inputs, request_id="r1"))
    assert reply.request_id == "r1"
    assert reply.model_version == "small@1"
    assert reply.space_id == space
    for result in reply.results:
        np.testing.assert_allclose(result.embedding.values, expected, atol=1e-5)
        assert result.embedding.space_id == space
    assert reply.timing.batch_rows >= 1
    assert reply.timing.dispatch_reason == shared_pb2.DISPATCH_REASON_RUNNER_FREE


def test_an_image_of_another_size_is_resized_by_the_contract(stubs: Stubs) -> None:
    large = np.zeros((105, 105, 1), np.uint8)
    reply = stubs.embedding.Embed(pb.EmbedRequest(inputs=[wire.image(large)]))
    np.testing.assert_allclose(reply.results[0].embedding.values, np.zeros(16), atol=1e-6)


def test_one_bad_input_fails_alone_and_the_others_are_answered(stubs: Stubs) -> None:
    pixels, _ = twins.classes_of_pixels(2, 1)
    inputs = [
        wire.image(pixels[0]),
        shared_pb2.Input(image=b"no picture at all"),
        shared_pb2.Input(),
        wire.tensor(pixels[1]),
    ]
    reply = stubs.embedding.Embed(pb.EmbedRequest(inputs=inputs))
    kinds = [result.WhichOneof("result") for result in reply.results]
    assert kinds == ["embedding", "error", "error", "embedding"]
    assert wire.reason(reply.results[1].error) == "IMAGE_UNDECODABLE"
    assert wire.field(reply.results[1].error) == "inputs[1].image"
    assert wire.reason(reply.results[2].error) == "EMPTY_INPUT"
    assert wire.field(reply.results[2].error) == "inputs[2]"
    expected = twins.embed_pixels(pixels)
    np.testing.assert_allclose(reply.results[3].embedding.values, expected[1], atol=1e-5)


def test_atomic_turns_one_bad_input_into_the_calls_error(stubs: Stubs) -> None:
    pixels, _ = twins.classes_of_pixels(1, 1)
    inputs = [wire.image(pixels[0]), shared_pb2.Input(image=b"no picture")]
    with Refused(grpc.StatusCode.INVALID_ARGUMENT) as refused:
        stubs.embedding.Embed(pb.EmbedRequest(inputs=inputs, atomic=True))
    assert wire.reason(refused.status) == "IMAGE_UNDECODABLE"
    assert wire.field(refused.status) == "inputs[1].image"


def test_a_call_whose_items_all_fail_fails_with_the_first_ones_code(stubs: Stubs) -> None:
    inputs = [wire.ready(np.ones(16), "sp_of_another_model"), shared_pb2.Input(image=b"")]
    with Refused(grpc.StatusCode.FAILED_PRECONDITION) as refused:
        stubs.embedding.Embed(pb.EmbedRequest(inputs=inputs))
    assert wire.reason(refused.status) == "SPACE_MISMATCH"


@pytest.mark.parametrize(
    ("encoding", "tolerance"),
    [
        (shared_pb2.ENCODING_FLOAT32, 1e-5),
        (shared_pb2.ENCODING_FLOAT16, 2e-3),
        (shared_pb2.ENCODING_INT8, 2e-2),
    ],
)
def test_packed_rows_unpack_to_the_embeddings_and_failed_rows_are_zero(
    stubs: Stubs, encoding: shared_pb2.Encoding.ValueType, tolerance: float
) -> None:
    pixels, _ = twins.classes_of_pixels(2, 1)
    inputs = [wire.image(pixels[0]), shared_pb2.Input(image=b"x"), wire.image(pixels[1])]
    reply = stubs.embedding.Embed(
        pb.EmbedRequest(inputs=inputs, options=pb.EmbedOptions(encoding=encoding))
    )
    packed = reply.packed
    kind = {1: "<f4", 2: "<f2", 3: "i1"}[encoding]
    block = np.frombuffer(packed.data, kind).reshape(3, packed.dimension).astype(np.float64)
    if encoding == shared_pb2.ENCODING_INT8:
        block *= np.array(packed.scales)[:, None]
    np.testing.assert_allclose(
        block[[0, 2]], twins.embed_pixels(pixels), atol=tolerance, rtol=tolerance
    )
    assert not block[1].any()
    assert [r.WhichOneof("result") for r in reply.results] == [None, "error", None]


def test_binary_packs_one_bit_a_coordinate(stubs: Stubs) -> None:
    pixels, _ = twins.classes_of_pixels(1, 1)
    options = pb.EmbedOptions(encoding=shared_pb2.ENCODING_BINARY)
    reply = stubs.embedding.Embed(pb.EmbedRequest(inputs=[wire.image(pixels[0])], options=options))
    bits = np.unpackbits(np.frombuffer(reply.packed.data, np.uint8))
    assert bits.tolist() == (twins.embed_pixels(pixels)[0] > 0).astype(int).tolist()


def test_a_dimension_the_model_was_not_trained_for_is_refused(stubs: Stubs) -> None:
    pixels, _ = twins.classes_of_pixels(1, 1)
    request = pb.EmbedRequest(inputs=[wire.image(pixels[0])], options=pb.EmbedOptions(dimensions=8))
    with Refused(grpc.StatusCode.INVALID_ARGUMENT) as refused:
        stubs.embedding.Embed(request)
    assert wire.field(refused.status) == "options.dimensions"


def test_compare_decides_by_the_twins_own_operating_points(stubs: Stubs, twin_file: Path) -> None:
    pixels, _ = twins.classes_of_pixels(2, 2)
    pairs = [
        pb.Pair(first=wire.image(pixels[0]), second=wire.image(pixels[1])),
        pb.Pair(first=wire.image(pixels[0]), second=wire.image(pixels[2])),
        pb.Pair(first=wire.image(pixels[0]), second=wire.image(pixels[0])),
    ]
    reply = stubs.embedding.Compare(pb.CompareRequest(pairs=pairs, prior=0.2))
    vectors = twins.embed_pixels(pixels)
    expected = paired(vectors[[0, 0, 0]], vectors[[1, 2, 0]], Metric.EUCLIDEAN)
    calibration = manifest.read(twin_file).calibration(16)
    assert calibration is not None
    limit = decision.limit(decision.Rule(), calibration)
    assert limit.threshold is not None
    for result, distance in zip(reply.results, expected, strict=True):
        comparison = result.comparison
        assert comparison.score.distance == pytest.approx(distance, abs=1e-4)
        assert comparison.decision.threshold == limit.threshold
        match = comparison.score.distance <= limit.threshold
        assert comparison.decision.outcome == (
            shared_pb2.OUTCOME_MATCH if match else shared_pb2.OUTCOME_NO_MATCH
        )
        assert comparison.decision.false_accept_rate == limit.false_accept_rate
        likelihood = decision.likelihood(comparison.score.distance, calibration, 0.2)
        assert comparison.score.probability == pytest.approx(likelihood.probability)
    assert reply.results[2].comparison.score.distance == 0.0, "identical inputs are embedded once"
    outcomes = [result.comparison.decision.outcome for result in reply.results]
    assert outcomes == [1, 2, 1], "the same picture with noise matches, another does not"


def test_the_order_of_a_pair_does_not_matter(stubs: Stubs) -> None:
    pixels, _ = twins.classes_of_pixels(2, 1)
    a, b = wire.image(pixels[0]), wire.image(pixels[1])
    reply = stubs.embedding.Compare(
        pb.CompareRequest(pairs=[pb.Pair(first=a, second=b), pb.Pair(first=b, second=a)])
    )
    one, other = (result.comparison.score.distance for result in reply.results)
    assert one == other


def test_a_rate_below_the_evidence_is_not_calibrated_and_a_threshold_is_taken_as_said(
    stubs: Stubs,
) -> None:
    pixels, _ = twins.classes_of_pixels(2, 1)
    pairs = [pb.Pair(first=wire.image(pixels[0]), second=wire.image(pixels[1]))]
    tiny = shared_pb2.DecisionRule(false_accept_rate=1e-9)
    reply = stubs.embedding.Compare(pb.CompareRequest(pairs=pairs, rule=tiny))
    comparison = reply.results[0].comparison
    assert comparison.decision.outcome == shared_pb2.OUTCOME_NOT_CALIBRATED
    distance = comparison.score.distance
    for threshold, outcome in ((distance, 1), (np.nextafter(distance, 0), 2)):
        rule = shared_pb2.DecisionRule(threshold=threshold)
        reply = stubs.embedding.Compare(pb.CompareRequest(pairs=pairs, rule=rule))
        assert reply.results[0].comparison.decision.outcome == outcome


def test_a_bad_side_of_a_pair_is_named(stubs: Stubs) -> None:
    pixels, _ = twins.classes_of_pixels(1, 1)
    good = wire.image(pixels[0])
    bad = shared_pb2.Input(image=b"x")
    reply = stubs.embedding.Compare(
        pb.CompareRequest(pairs=[pb.Pair(first=good, second=bad), pb.Pair(first=good, second=good)])
    )
    assert wire.field(reply.results[0].error) == "pairs[0].second.image"
    assert reply.results[1].comparison.score.distance == 0.0


def test_models_say_what_really_runs(stubs: Stubs, twin_file: Path) -> None:
    listed = stubs.model.ListModels(model_service_pb2.ListModelsRequest())
    (model,) = listed.models
    assert (model.name, model.version, model.precision) == ("small", "1", "fp32")
    assert model.provider == "CPUExecutionProvider"
    assert model.dimension == 16
    assert manifest.Manifest.from_json(model.manifest_json) == manifest.read(twin_file)
    assert len(model.operating_points) > 5
    for name in ("", "small", "small@1"):
        request = model_service_pb2.GetModelRequest(name=name)
        assert stubs.model.GetModel(request).model == model
