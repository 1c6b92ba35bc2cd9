"""Between the messages of twinserve.v1 and the server's own types; no decision is taken here."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twinserve.decision import Likelihood, Limit, Outcome, Rule
from twinserve.distance import Metric
from twinserve.errors import (
    EmptyInput,
    InvalidInput,
    LimitExceeded,
    NotFinite,
    TwinserveError,
    WrongShape,
)
from twinserve.server.batching.batcher import Reason, Ride
from twinserve.server.config import Limits
from twinserve.server.inputs import Array, ImageBytes, RawInput, Ready, Text, Vector
from twinserve.server.services.wire_format import varint
from twinserve.v1 import embedding_service_pb2 as embedding
from twinserve.v1 import shared_pb2 as shared

_DATA_TYPES: dict[int, np.dtype[Any]] = {
    shared.DATA_TYPE_UINT8: np.dtype("u1"),
    shared.DATA_TYPE_FLOAT32: np.dtype("<f4"),
    shared.DATA_TYPE_INT64: np.dtype("<i8"),
}
_METRICS = {
    shared.METRIC_EUCLIDEAN: Metric.EUCLIDEAN,
    shared.METRIC_COSINE: Metric.COSINE,
}
REASONS = {
    Reason.RUNNER_FREE: shared.DISPATCH_REASON_RUNNER_FREE,
    Reason.FULL: shared.DISPATCH_REASON_FULL,
    Reason.AGED: shared.DISPATCH_REASON_AGED,
    Reason.ASIDE: shared.DISPATCH_REASON_ASIDE,
}
OUTCOMES = {
    Outcome.MATCH: shared.OUTCOME_MATCH,
    Outcome.NO_MATCH: shared.OUTCOME_NO_MATCH,
    Outcome.NOT_CALIBRATED: shared.OUTCOME_NOT_CALIBRATED,
}
_MAX_AXES = 8
_LARGEST_HALF = float(np.finfo(np.float16).max)  # beyond it a half would be infinite


def required(value: str, field: str) -> str:
    """Return a field that must not be empty.

    Raises:
        EmptyInput: it is.
    """
    if not value:
        raise EmptyInput(f"{field} is empty; it is required", field=field)
    return value


def check_enum(value: int, known: Sequence[int], field: str) -> None:
    """Refuse a number that the contract does not have.

    Raises:
        InvalidInput: with the field's path.
    """
    if value not in known:
        raise InvalidInput(
            f"{field} is {value}, which the contract does not have; give one of {list(known)}",
            field=field,
        )


def check_count(count: int, field: str, limits: Limits) -> None:
    """Refuse a call of no items or of too many.

    Raises:
        EmptyInput, LimitExceeded: with the field's name.
    """
    if not count:
        raise EmptyInput(f"{field} is empty; send 1 to {limits.max_items}", field=field)
    if count > limits.max_items:
        raise LimitExceeded(
            f"{field} has {count} entries, the limit is {limits.max_items} a call; send several",
            field=field,
            metadata={"limit": str(limits.max_items), "value": str(count)},
        )


def raw_input(
    message: shared.Input, field: str, limits: Limits, truncate: bool | None = None
) -> RawInput | TwinserveError:
    """Read one input; what is wrong with it comes back as the error, with its field's path.

    `truncate` is the call's word on long texts, where it has one.
    """
    kind = message.WhichOneof("kind")
    if message.HasField("prompt") and kind not in ("text", None):
        return InvalidInput(
            f"a prompt ({message.prompt!r:.80}) was given with the {kind}, and only texts take "
            "one; leave it out",
            field=f"{field}.prompt",
        )
    try:
        if kind == "image":
            if not message.image:
                raise EmptyInput("the image holds no bytes; send the file's content")
            return ImageBytes(message.image)
        if kind == "text":
            if not message.text:
                raise EmptyInput("the text is empty; send at least one character")
            prompt = message.prompt if message.HasField("prompt") else None
            return Text(message.text, prompt, truncate)
        if kind == "tensor":
            return Array(_array(message.tensor, limits))
        if kind == "embedding":
            return _ready(message.embedding)
        raise EmptyInput("the input is empty; set image, text, tensor or embedding")
    except TwinserveError as error:
        return error.at(f"{field}.{kind}" if kind else field)


def _array(tensor: shared.Tensor, limits: Limits) -> NDArray[Any]:
    data_type = _DATA_TYPES.get(tensor.data_type)
    if data_type is None:
        raise WrongShape("tensor.data_type is not set; give UINT8, FLOAT32 or INT64")
    shape = tuple(tensor.shape)
    if len(shape) > _MAX_AXES or (shape and min(shape) < 1):
        raise WrongShape(
            f"the tensor's shape is {list(shape)[:_MAX_AXES]}; give up to {_MAX_AXES} extents of "
            "at least 1"
        )
    data = tensor.data
    size, wanted = len(data), math.prod(shape) * data_type.itemsize
    if size > limits.max_bytes:
        raise LimitExceeded(
            f"the tensor has {size} bytes, the limit is {limits.max_bytes}",
            metadata={"limit": str(limits.max_bytes), "value": str(size)},
        )
    if wanted != size:
        raise WrongShape(
            f"the tensor has {size} bytes, its shape {list(shape)} of {data_type.name} takes "
            f"{wanted}; send them little-endian and row-major"
        )
    return np.ndarray(shape, data_type, data)


def _ready(message: shared.Embedding) -> Ready:
    if not message.values:
        raise EmptyInput("the embedding has no values; send it as Embed returned it")
    values = _values(message)
    if not np.isfinite(values).all():
        raise NotFinite("the embedding holds a NaN or an infinity; send finite numbers only")
    return Ready(values, message.space_id)


def _values(message: shared.Embedding) -> Vector:
    """Return an embedding's values: float32 [n].

    Taking them out of the message one by one costs six times what it does to have the message
    written anew, which lays them end to end behind its first tag.
    """
    count = len(message.values)
    data = message.SerializeToString()
    head = b"\x0a" + varint(4 * count)
    if not data.startswith(head):  # some implementation of protobuf that orders fields otherwise
        return np.array(message.values, dtype=np.float32)
    return np.frombuffer(data, "<f4", count, len(head)).astype(np.float32)


def ready_rows(
    messages: Sequence[shared.Input], dimension: int, space_id: str
) -> NDArray[np.float32] | None:
    """Take ready embeddings of a space out of their messages: [n, dimension], values unchecked.

    In one piece, for that is how a hot call has them. None where a message holds anything else, of
    which `raw_input` says what is wrong, if anything is.
    """
    # What stands before the values where they are written first, end to end; see `_values`.
    head = b"\x0a" + varint(4 * dimension)
    start, end = len(head), len(head) + 4 * dimension
    rows = []
    for message in messages:
        embedding = message.embedding  # an empty one where there is another kind
        if embedding.space_id != space_id or message.HasField("prompt"):
            return None
        data = embedding.SerializeToString()
        if not data.startswith(head):
            return None
        rows.append(data[start:end])
    return np.frombuffer(b"".join(rows), "<f4").astype(np.float32).reshape(-1, dimension)


def rule_of(message: shared.DecisionRule) -> Rule:
    """Read a rule; an absent one is the default."""
    kind = message.WhichOneof("rule")
    return Rule(**{kind: getattr(message, kind)}) if kind else Rule()


def metric_of(value: shared.Metric.ValueType) -> Metric | None:
    """Read a metric; None where it was not given.

    Raises:
        InvalidInput: a number that the contract does not have.
    """
    if value == shared.METRIC_UNSPECIFIED:
        return None
    metric = _METRICS.get(value)
    if metric is None:
        raise InvalidInput(
            f"metric is {value}; give METRIC_EUCLIDEAN or METRIC_COSINE", field="gallery.metric"
        )
    return metric


def metric_message(metric: Metric) -> shared.Metric.ValueType:
    """Write a metric."""
    return next(value for value, known in _METRICS.items() if known is metric)


def write_embedding(message: shared.Embedding, vector: Vector, space_id: str) -> None:
    """Fill an embedding; `tolist` first, since extending by an array is six times as slow."""
    message.values.extend(vector.tolist())
    message.space_id = space_id


def score_message(distance: float, likelihood: Likelihood) -> shared.Score:
    """Write a score; what is not calibrated stays absent."""
    return shared.Score(
        distance=distance,
        log_likelihood_ratio=likelihood.log_likelihood_ratio,
        probability=likelihood.probability,
    )


def decision_message(limit: Limit, outcome: Outcome) -> shared.Decision:
    """Write a decision."""
    return shared.Decision(
        outcome=OUTCOMES[outcome],
        threshold=limit.threshold or 0.0,
        false_accept_rate=limit.false_accept_rate,
        false_accept_rate_upper=limit.false_accept_rate_upper,
    )


def timing_message(
    ride: Ride | None, preprocess: float = 0.0, search: float = 0.0
) -> shared.ServerTiming:
    """Write where the time went; seconds in, microseconds out."""
    if ride is None:
        return shared.ServerTiming(
            preprocess_us=int(preprocess * 1e6 + 0.5), search_us=int(search * 1e6 + 0.5)
        )
    return shared.ServerTiming(
        queue_us=int(ride.queue * 1e6 + 0.5),
        preprocess_us=int(preprocess * 1e6 + 0.5),
        inference_us=int(ride.inference * 1e6 + 0.5),
        search_us=int(search * 1e6 + 0.5),
        batch_rows=ride.rows,
        dispatch_reason=REASONS[ride.reason],
    )


def pack(
    rows: Sequence[Vector | None], dimension: int, encoding: shared.Encoding.ValueType
) -> embedding.Packed:
    """Pack vectors into one block; a row that is None is zero.

    Raises:
        InvalidInput: an encoding that the contract does not have.
    """
    block = np.zeros((len(rows), dimension), np.float32)
    for index, row in enumerate(rows):
        if row is not None:
            block[index] = row
    packed = embedding.Packed(encoding=encoding, dimension=dimension)
    if encoding == shared.ENCODING_FLOAT32:
        packed.data = block.astype("<f4").tobytes()
    elif encoding == shared.ENCODING_FLOAT16:
        half = np.clip(block, -_LARGEST_HALF, _LARGEST_HALF)
        packed.data = half.astype("<f2").tobytes()
    elif encoding == shared.ENCODING_INT8:
        largest = np.abs(block).max(axis=1)
        tiny = np.finfo(np.float32).tiny
        scales = np.maximum(largest / 127.0, tiny).astype(np.float32)  # [rows]
        packed.data = np.rint(block / scales[:, None]).astype(np.int8).tobytes()
        packed.scales.extend(scales.tolist())
    elif encoding == shared.ENCODING_BINARY:
        packed.data = np.packbits(block > 0, axis=1).tobytes()
    else:
        raise InvalidInput(
            f"encoding is {encoding}; give FLOAT32, FLOAT16, INT8, BINARY, or none",
            field="options.encoding",
        )
    return packed
