"""The replies of Embed, written as the bytes that go on the wire.

The contract says `repeated float`, which every language reads; on the wire that is a length and the
floats, little-endian, just as `bytes` would be. Filling the field float by float costs twelve times
what copying the vector does, and the messages around it as much again, so the reply's frame is
written here by hand. Only replies are: what a client sends is parsed as what it is, since a client
may send a packed field in pieces. The tests hold these bytes equal to those of the public messages.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np

from twinserve.errors import TwinserveError
from twinserve.server.batching.jobs import Reason, Ride
from twinserve.server.engine import Outcome
from twinserve.server.inputs import Vector
from twinserve.server.services import codec
from twinserve.server.services.status import status_of
from twinserve.server.services.wire_format import field, number, text, varint, whole
from twinserve.v1 import embedding_service_pb2 as pb
from twinserve.v1 import shared_pb2 as shared

_FLOATS = np.dtype("<f4")


def response(
    *,
    request_id: str,
    model_version: str,
    space_id: str,
    outcomes: Sequence[Outcome],
    token_counts: Sequence[int],
    truncated: Sequence[bool],
    packed: pb.Packed | None,
    timing: bytes,
) -> bytes:
    """Write an EmbedResponse; the arguments are its fields and those of its results.

    The outcomes are embeddings, float32 [dimension], or what was wrong with an input; of an
    embedding that `packed` holds the result says nothing. The timing comes as its bytes.
    """
    parts = [_start(request_id, model_version, space_id)]
    for outcome, count, cut in zip(outcomes, token_counts, truncated, strict=True):
        tail = b"" if not (count or cut) else _text_facts(count, cut)
        if isinstance(outcome, TwinserveError):
            error = field(_ERROR, status_of(outcome).SerializeToString())
            parts.append(field(_RESULTS, error + tail))
        elif packed is not None:
            parts.append(field(_RESULTS, tail))
        else:
            size = outcome.shape[0]
            head, foot = _frame(space_id, size, len(tail))
            parts += (head, _bytes(outcome), foot, tail)
    if packed is not None:
        parts.append(field(_PACKED, packed.SerializeToString()))
    parts += (_TIMING, varint(len(timing)), timing)
    return b"".join(parts)


def timing(ride: Ride | None, preprocess: float) -> bytes:
    """Write a ServerTiming; see `codec.timing_message`."""
    prepared = whole(_PREPROCESS, int(preprocess * 1e6 + 0.5))
    if ride is None:
        return prepared
    queued = whole(_QUEUE, int(ride.queue * 1e6 + 0.5))
    return queued + prepared + _of_run(int(ride.inference * 1e6 + 0.5), ride.rows, ride.reason)


@functools.lru_cache(64)
def _of_run(inference_us: int, rows: int, reason: Reason) -> bytes:
    """Return what all calls of a run share."""
    return shared.ServerTiming(
        inference_us=inference_us, batch_rows=rows, dispatch_reason=codec.REASONS[reason]
    ).SerializeToString()


def stream_response(data: bytes, request_id: str) -> bytes:
    """Write an EmbedStreamResponse around the bytes of an EmbedResponse."""
    return field(_RESPONSE, data) + text(_STREAM_ID, request_id)


def _bytes(vector: Vector) -> bytes:
    return (vector if vector.dtype == _FLOATS else vector.astype(_FLOATS)).tobytes()


@functools.lru_cache(1024)
def _start_of(model_version: str, space_id: str) -> bytes:
    return text(_MODEL_VERSION, model_version) + text(_SPACE_ID, space_id)


def _start(request_id: str, model_version: str, space_id: str) -> bytes:
    return text(_REQUEST_ID, request_id) + _start_of(model_version, space_id)


@functools.lru_cache(1024)
def _frame(space_id: str, dimension: int, tail: int) -> tuple[bytes, bytes]:
    """Return what stands around the floats of a result, whose own `tail` bytes follow."""
    foot = text(_VALUES_SPACE, space_id)
    values = _VALUES + varint(4 * dimension) if dimension else b""
    embedding = len(values) + 4 * dimension + len(foot)
    head = _EMBEDDING + varint(embedding) + values
    result = len(head) + 4 * dimension + len(foot) + tail
    return _RESULTS + varint(result) + head, foot


def _text_facts(count: int, cut: bool) -> bytes:
    return pb.EmbedResult(token_count=count, truncated=cut).SerializeToString()


_REQUEST_ID = number(pb.EmbedResponse, "request_id")
_MODEL_VERSION = number(pb.EmbedResponse, "model_version")
_SPACE_ID = number(pb.EmbedResponse, "space_id")
_RESULTS = number(pb.EmbedResponse, "results")
_PACKED = number(pb.EmbedResponse, "packed")
_TIMING = number(pb.EmbedResponse, "timing")
_EMBEDDING = number(pb.EmbedResult, "embedding")
_ERROR = number(pb.EmbedResult, "error")
_VALUES = number(shared.Embedding, "values")
_VALUES_SPACE = number(shared.Embedding, "space_id")
_RESPONSE = number(pb.EmbedStreamResponse, "response")
_QUEUE = varint(shared.ServerTiming.QUEUE_US_FIELD_NUMBER << 3)
_PREPROCESS = varint(shared.ServerTiming.PREPROCESS_US_FIELD_NUMBER << 3)
_STREAM_ID = number(pb.EmbedStreamResponse, "request_id")
