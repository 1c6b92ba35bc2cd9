"""The replies written by hand are, byte for byte, what the public messages would give."""

from __future__ import annotations

import numpy as np
import pytest

from twinserve.errors import TwinserveError, UndecodableImage
from twinserve.server.batching.jobs import Reason, Ride
from twinserve.server.engine import Outcome
from twinserve.server.services import codec, embedding_reply
from twinserve.server.services.status import status_of
from twinserve.v1 import embedding_service_pb2 as pb
from twinserve.v1 import shared_pb2 as shared

TIMING = shared.ServerTiming(
    queue_us=12, preprocess_us=3, inference_us=450, batch_rows=7, dispatch_reason=1
)


def public(
    request_id: str,
    version: str,
    space: str,
    outcomes: list[Outcome],
    counts: list[int],
    cuts: list[bool],
    packed: pb.Packed | None,
    timing: shared.ServerTiming,
) -> bytes:
    """Write the reply through the contract's own messages."""
    reply = pb.EmbedResponse(
        request_id=request_id, model_version=version, space_id=space, timing=timing, packed=packed
    )
    for outcome, count, cut in zip(outcomes, counts, cuts, strict=True):
        result = reply.results.add(token_count=count, truncated=cut)
        if isinstance(outcome, TwinserveError):
            result.error.CopyFrom(status_of(outcome))
        elif packed is None:
            codec.write_embedding(result.embedding, outcome, space)
    return reply.SerializeToString(deterministic=True)


def by_hand(
    request_id: str,
    version: str,
    space: str,
    outcomes: list[Outcome],
    counts: list[int],
    cuts: list[bool],
    packed: pb.Packed | None,
    timing: shared.ServerTiming,
) -> bytes:
    return embedding_reply.response(
        request_id=request_id,
        model_version=version,
        space_id=space,
        outcomes=outcomes,
        token_counts=counts,
        truncated=cuts,
        packed=packed,
        timing=timing.SerializeToString(),
    )


@pytest.mark.parametrize("dimension", [1, 3, 31, 32, 128, 384, 4096])
@pytest.mark.parametrize("rows", [1, 2, 40])
@pytest.mark.parametrize("request_id", ["", "a", "ünd " * 30])
def test_embeddings_errors_and_token_counts_are_written_as_the_contract_writes_them(
    dimension: int, rows: int, request_id: str, rng: np.random.Generator
) -> None:
    outcomes: list[Outcome] = list(rng.normal(size=(rows, dimension)).astype(np.float32))
    counts = [int(n) for n in rng.choice([0, 1, 127, 128, 100_000], rows)]
    cuts = [bool(n) for n in rng.integers(0, 2, rows)]
    if rows > 1:
        outcomes[1] = UndecodableImage("not a picture; send one", field="inputs[1].image")
    arguments = (request_id, "twin@1.2", "sp-" + "0" * 60, outcomes, counts, cuts, None, TIMING)
    data = by_hand(*arguments)
    assert data == public(*arguments)
    read = pb.EmbedResponse.FromString(data)
    assert len(read.results) == rows
    first = outcomes[0]
    assert isinstance(first, np.ndarray)
    assert np.array_equal(np.array(read.results[0].embedding.values, np.float32), first)


@pytest.mark.parametrize("encoding", [1, 2, 3, 4])
def test_packed_replies_are_written_as_the_contract_writes_them(
    encoding: shared.Encoding.ValueType, rng: np.random.Generator
) -> None:
    rows = list(rng.normal(size=(5, 24)).astype(np.float32))
    outcomes: list[Outcome] = [*rows]
    outcomes[3] = UndecodableImage("not a picture; send one", field="inputs[3].image")
    packed = codec.pack([None if i == 3 else row for i, row in enumerate(rows)], 24, encoding)
    arguments = ("id", "twin@1", "space", outcomes, [0, 5, 0, 0, 9], [False] * 5, packed, TIMING)
    assert by_hand(*arguments) == public(*arguments)


def test_what_is_zero_or_empty_is_left_out_as_the_contract_leaves_it_out() -> None:
    nothing = ("", "", "", [np.zeros(3, np.float32)], [0], [False], None, shared.ServerTiming())
    assert by_hand(*nothing) == public(*nothing)


def test_vectors_that_are_views_of_a_batch_are_copied_as_they_read(
    rng: np.random.Generator,
) -> None:
    batch = rng.normal(size=(8, 6)).astype(np.float32)
    outcomes: list[Outcome] = [batch[3, ::2], batch[:3, 1], batch[5, :3].astype(">f4")]
    arguments = ("", "m@1", "s", outcomes, [0] * 3, [False] * 3, None, TIMING)
    assert by_hand(*arguments) == public(*arguments)


def test_a_streams_reply_holds_the_response_and_its_request() -> None:
    response = pb.EmbedResponse(model_version="twin@1", results=[pb.EmbedResult(token_count=4)])
    data = embedding_reply.stream_response(response.SerializeToString(), "seven")
    whole = pb.EmbedStreamResponse(response=response, request_id="seven")
    assert data == whole.SerializeToString()


@pytest.mark.parametrize("queue", [0.0, 0.4e-6, 127e-6, 128e-6, 16_383e-6, 16_384e-6, 3.25, 4000.0])
@pytest.mark.parametrize("reason", list(Reason))
def test_the_timing_is_written_as_the_contract_writes_it(queue: float, reason: Reason) -> None:
    ride = Ride(queue, inference=7.5e-3, rows=300, reason=reason)
    for preprocess in (0.0, 90e-6):
        message = codec.timing_message(ride, preprocess)
        assert embedding_reply.timing(ride, preprocess) == message.SerializeToString()
        message = codec.timing_message(None, preprocess)
        assert embedding_reply.timing(None, preprocess) == message.SerializeToString()
