"""Typed inputs and results of the client, and their form in the contract's messages.

In: what a caller has at hand (bytes of a picture, a path, a text, perhaps with a prompt's name, an
array, a ready vector). Out: frozen dataclasses with numpy arrays. No channel is opened here, so
that the blocking client and that of asyncio share every conversion. An item that failed stands in
its place as the exception it is, neither raised nor dropped.
"""

from __future__ import annotations

import enum
import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar, get_args, overload

import numpy as np
from google.protobuf import timestamp_pb2
from google.rpc import error_details_pb2, status_pb2
from numpy.typing import NDArray

from twinserve import errors
from twinserve.decision import Outcome
from twinserve.distance import Embeddings as Matrix
from twinserve.distance import Metric
from twinserve.errors import InternalFault, InvalidInput, TwinserveError, WrongShape
from twinserve.manifest import Manifest
from twinserve.v1 import (
    embedding_service_pb2,
    gallery_pb2,
    gallery_service_pb2,
    model_pb2,
    shared_pb2,
)

T = TypeVar("T")

MetadataValue = str | int | float | bool | datetime
# By key the value that is asked for, or several of which one; or the contract's own, for the rest.
Filter = Mapping[str, MetadataValue | Sequence[MetadataValue]] | shared_pb2.Filter
# How vectors travel: whole, in half the bytes, in a quarter, or by their signs in a 32nd.
Encoding = Literal["float32", "float16", "int8", "binary"]

_DATA_TYPES = {
    np.dtype(np.uint8): shared_pb2.DATA_TYPE_UINT8,
    np.dtype(np.float32): shared_pb2.DATA_TYPE_FLOAT32,
    np.dtype(np.int64): shared_pb2.DATA_TYPE_INT64,
}
_METRICS = {
    Metric.EUCLIDEAN: shared_pb2.METRIC_EUCLIDEAN,
    Metric.COSINE: shared_pb2.METRIC_COSINE,
}
_ENCODINGS: dict[str, shared_pb2.Encoding.ValueType] = {
    "float32": shared_pb2.ENCODING_FLOAT32,
    "float16": shared_pb2.ENCODING_FLOAT16,
    "int8": shared_pb2.ENCODING_INT8,
    "binary": shared_pb2.ENCODING_BINARY,
}
ENCODINGS: tuple[Encoding, ...] = get_args(Encoding)
_OUTCOMES = {
    shared_pb2.OUTCOME_MATCH: Outcome.MATCH,
    shared_pb2.OUTCOME_NO_MATCH: Outcome.NO_MATCH,
    shared_pb2.OUTCOME_NOT_CALIBRATED: Outcome.NOT_CALIBRATED,
}


# ---- inputs ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Vector:
    """A ready embedding, such as Embed returned: float32 [dimension] of one space.

    `space_id` is checked by the server wherever the vector enters; empty is accepted only by a
    gallery that was made without a twin.
    """

    values: Matrix
    space_id: str = ""


@dataclass(frozen=True)
class Text:
    """A text with a prompt of its own, where those of one call differ: a question, an answer."""

    text: str
    prompt: str | None = None  # name of one of the model's prompts; "" is none, None the call's


# bytes or Path: a picture; str or Text: a text; an array: one item's tensor, without a batch axis.
InputLike = bytes | Path | str | Text | NDArray[Any] | Vector


@dataclass(frozen=True)
class EnrollItem:
    """One item to enrol. `input` None changes subject and metadata of the item `id` only."""

    input: InputLike | None
    id: str = ""
    subject: str = ""
    metadata: Mapping[str, MetadataValue] = field(default_factory=dict)


def to_input(value: InputLike, prompt: str | None = None) -> shared_pb2.Input:
    """Return the contract's form of one input.

    Args:
        value: the input.
        prompt: name of the prompt that is put before a text which names none itself; "" is none,
            None the model's default. A ready vector passes by it.

    Raises:
        WrongShape: an array of another element type than uint8, float32 or int64, or a vector
            with more than one axis.
        InvalidInput: something that is no input at all, half a surrogate pair in a text, or a
            prompt for a picture or an array.
        OSError: a path that cannot be read.
    """
    match value:
        case str():
            return _to_text(value, prompt)
        case Text():
            return _to_text(value.text, prompt if value.prompt is None else value.prompt)
        case Vector():
            return shared_pb2.Input(embedding=to_embedding(value))
    if prompt is not None:
        raise InvalidInput(
            f"prompt {prompt!r:.80} was given for a {type(value).__name__}, and only texts take "
            "one; leave it out",
            field="prompt",
        )
    match value:
        case bytes() | bytearray() | memoryview():
            return shared_pb2.Input(image=bytes(value))
        case Path():
            return shared_pb2.Input(image=value.read_bytes())
        case np.ndarray():
            return shared_pb2.Input(tensor=_to_tensor(value))
    raise InvalidInput(
        f"{type(value).__name__} is no input; give bytes or a Path (a picture), a str or a "
        "Text, a numpy array (a tensor) or a Vector (a ready embedding)"
    )


def _to_text(text: str, prompt: str | None) -> shared_pb2.Input:
    try:
        return shared_pb2.Input(text=text, prompt=prompt)
    except UnicodeEncodeError as error:
        raise InvalidInput(
            "the text or the prompt's name holds half a surrogate pair; give valid Unicode"
        ) from error


def to_embedding(vector: Vector) -> shared_pb2.Embedding:
    """Return the contract's form of a vector: float32 [dimension].

    Raises:
        InvalidInput: bits of a binary encoding, which would pass for a vector of their space.
        WrongShape: more than one axis.
    """
    given = np.asarray(vector.values)
    if given.dtype == np.bool_:
        raise InvalidInput(
            "the vector holds bits (encoding 'binary'), which compare with bits alone, by their "
            "Hamming distance; embed the input with another encoding, or none, to send it"
        )
    values = given.astype(np.float32, copy=False)
    if values.ndim != 1:
        raise WrongShape(
            f"the vector has shape {list(values.shape)}; give one axis, [dimension]",
        )
    # A list: handing an array to a repeated field is five times slower.
    return shared_pb2.Embedding(values=values.tolist(), space_id=vector.space_id)


def _to_tensor(array: NDArray[Any]) -> shared_pb2.Tensor:
    data_type = _DATA_TYPES.get(array.dtype.newbyteorder("="))
    if data_type is None:
        raise WrongShape(
            f"the array holds {array.dtype}; convert it to uint8, float32 or int64, whichever the "
            "model takes"
        )
    little = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
    return shared_pb2.Tensor(data_type=data_type, shape=list(array.shape), data=little.tobytes())


def to_options(
    dimensions: int | None, truncate: bool | None, encoding: Encoding | None
) -> embedding_service_pb2.EmbedOptions | None:
    """Return the options of an Embed, None for the defaults; see `Client.embed`.

    Raises:
        InvalidInput: an encoding that there is none of.
    """
    if dimensions is None and truncate is None and encoding is None:
        return None
    number = shared_pb2.ENCODING_UNSPECIFIED if encoding is None else _ENCODINGS.get(encoding)
    if number is None:
        raise InvalidInput(
            f"encoding is {encoding!r:.80}; give {', '.join(ENCODINGS[:-1])} or {ENCODINGS[-1]}, "
            "or None for an embedding of its own per input",
            field="options.encoding",
        )
    return embedding_service_pb2.EmbedOptions(
        encoding=number, dimensions=dimensions, truncate=truncate
    )


def to_rule(
    far: float | None, threshold: float | None, fpir: float | None = None
) -> shared_pb2.DecisionRule | None:
    """Return the decision rule, or None for the model's default operating point.

    Raises:
        InvalidInput: more than one of the three.
    """
    given = {
        "false_accept_rate": far,
        "threshold": threshold,
        "false_positive_identification_rate": fpir,
    }
    chosen = {name: value for name, value in given.items() if value is not None}
    if len(chosen) > 1:
        raise InvalidInput(
            f"{' and '.join(chosen)} were given together; give one of them, or none for the "
            "model's default operating point",
            field="rule",
        )
    return shared_pb2.DecisionRule(**chosen) if chosen else None


def to_metric(metric: Metric | str | None) -> shared_pb2.Metric.ValueType:
    """Return the contract's metric; None is the twin's own."""
    if metric is None:
        return shared_pb2.METRIC_UNSPECIFIED
    try:
        return _METRICS[Metric(metric)]
    except ValueError as error:
        raise InvalidInput(
            f"{metric!r} is no metric; give {' or '.join(m.value for m in Metric)}", field="metric"
        ) from error


def to_metadata_value(value: MetadataValue) -> shared_pb2.MetadataValue:
    """Return one typed value; a datetime must know its time zone."""
    match value:
        case bool():  # before int, whose subclass it is
            return shared_pb2.MetadataValue(flag=value)
        case int():
            return shared_pb2.MetadataValue(integer=value)
        case float():
            return shared_pb2.MetadataValue(number=value)
        case str():
            return shared_pb2.MetadataValue(text=value)
        case datetime() if value.tzinfo is not None:
            moment = timestamp_pb2.Timestamp()
            moment.FromDatetime(value)
            return shared_pb2.MetadataValue(time=moment)
    raise InvalidInput(
        f"{value!r} cannot be a metadata value; give a str, int, float, bool, or a datetime with "
        "a time zone",
        field="metadata",
    )


def to_filter(conditions: Filter | None) -> shared_pb2.Filter | None:
    """Return a filter that asks for every key's value, or for one of several where a list is given.

    A ready `twinserve.v1` Filter passes through, for ranges, negations and alternatives.
    """
    if conditions is None or isinstance(conditions, shared_pb2.Filter):
        return conditions
    clauses = []
    for key, value in conditions.items():
        if isinstance(value, Sequence) and not isinstance(value, str):
            values = shared_pb2.ValueList(values=[to_metadata_value(v) for v in value])
            clause = shared_pb2.Clause(key=key, any_of=values)
        else:
            clause = shared_pb2.Clause(key=key, equals=to_metadata_value(value))
        clauses.append(shared_pb2.Filter(clause=clause))
    if not clauses:
        return None
    return shared_pb2.Filter(all=shared_pb2.FilterList(filters=clauses))


def to_view(full: bool) -> gallery_service_pb2.ItemView.ValueType:
    """Return how much of an item is wanted: with metadata and times, or without."""
    return gallery_service_pb2.ITEM_VIEW_FULL if full else gallery_service_pb2.ITEM_VIEW_BASIC


def to_enroll_item(item: EnrollItem, prompt: str | None = None) -> gallery_service_pb2.EnrollItem:
    """Return the contract's form of one item to enrol; `prompt` is as for `to_input`."""
    message = gallery_service_pb2.EnrollItem(
        item=shared_pb2.Item(
            id=item.id,
            subject=item.subject,
            metadata={key: to_metadata_value(value) for key, value in item.metadata.items()},
        )
    )
    if item.input is not None:
        message.input.CopyFrom(to_input(item.input, prompt))
    return message


def to_enroll_request(
    gallery: str,
    items: Sequence[EnrollItem],
    *,
    prompt: str | None = None,
    request_id: str,
    atomic: bool = False,
) -> gallery_service_pb2.EnrollRequest:
    """Return the contract's form of an enrolment; ready vectors of one space go end to end."""
    request = gallery_service_pb2.EnrollRequest(
        gallery=gallery, request_id=request_id, atomic=atomic
    )
    vectors = [item.input for item in items if isinstance(item.input, Vector)]
    values = [np.asarray(vector.values) for vector in vectors]
    alike = {(vector.space_id, one.shape) for vector, one in zip(vectors, values, strict=True)}
    sound = all(one.ndim == 1 and one.size and one.dtype != np.bool_ for one in values)
    if len(vectors) == len(items) > 1 and len(alike) == 1 and sound:
        request.space_id = vectors[0].space_id
        request.embeddings = np.stack(values).astype("<f4").tobytes()
        items = [replace(item, input=None) for item in items]
    request.items.extend(to_enroll_item(item, prompt) for item in items)
    return request


# ---- results ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Timing:
    """Where a call's time went inside the server, in microseconds."""

    queue_us: int
    preprocess_us: int
    inference_us: int
    search_us: int
    batch_rows: int
    dispatch_reason: str  # "" when no model ran


@dataclass(frozen=True)
class Results(Sequence[T | TwinserveError], Generic[T]):
    """The answers of one call, in the order of its inputs; a failed one is its exception.

    `checked()` gives them without the exceptions, or raises the first.
    """

    answers: tuple[T | TwinserveError, ...]
    model_version: str = ""
    consistency_token: str = ""
    timing: Timing | None = None

    @overload
    def __getitem__(self, index: int) -> T | TwinserveError: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[T | TwinserveError, ...]: ...
    def __getitem__(
        self, index: int | slice
    ) -> T | TwinserveError | tuple[T | TwinserveError, ...]:
        return self.answers[index]

    def __len__(self) -> int:
        return len(self.answers)

    def checked(self) -> tuple[T, ...]:
        """Return all answers.

        Raises:
            TwinserveError: the first item's error, if any failed.
        """
        good = []
        for answer in self.answers:
            if isinstance(answer, TwinserveError):
                raise answer
            good.append(answer)
        return tuple(good)


@dataclass(frozen=True)
class Embeddings:
    """The vectors of one Embed call.

    `vectors` is float32 [n, dimension], whatever encoding they travelled in, except of `binary`,
    which leaves bool [n, dimension]: whether each coordinate is above 0. Such rows are for Hamming
    distance, `np.count_nonzero(a != b)`, and are no input of any call; `np.packbits(vectors,
    axis=1)` gives the bytes that indexes of bits take, first coordinate in the highest bit.

    A row whose input failed holds NaN, which no arithmetic can take for an embedding (of bits, all
    False), and `errors[i]` says why (None where it went well).
    """

    vectors: NDArray[Any]
    space_id: str
    model_version: str
    timing: Timing
    errors: tuple[TwinserveError | None, ...]
    token_counts: tuple[int, ...]  # of texts, before any truncation; 0 for other inputs
    truncated: tuple[bool, ...]

    def __len__(self) -> int:
        return len(self.errors)

    def __getitem__(self, index: int) -> Vector:
        """Return one vector, ready to be an input again (unless binary); raises its error."""
        error = self.errors[index]
        if error is not None:
            raise error
        return Vector(self.vectors[index], self.space_id)

    def __iter__(self) -> Iterator[Vector]:
        return (self[i] for i in range(len(self)))

    def checked(self) -> Embeddings:
        """Return itself where every input went well.

        Raises:
            TwinserveError: the first input's error, if any failed.
        """
        for error in self.errors:
            if error is not None:
                raise error
        return self


@dataclass(frozen=True)
class Comparison:
    """What one comparison measured and decided; None stands for what the model cannot tell."""

    distance: float
    outcome: Outcome
    threshold: float | None
    false_accept_rate: float | None
    false_accept_rate_upper: float | None  # upper 95 % bound, bootstrap over classes
    log_likelihood_ratio: float | None  # natural log, free of any prior
    probability: float | None  # of "same", under the request's prior

    @property
    def match(self) -> bool | None:
        """True, False, or None when not calibrated."""
        return None if self.outcome is Outcome.NOT_CALIBRATED else self.outcome is Outcome.MATCH


@dataclass(frozen=True)
class Verification(Comparison):
    """A comparison with the items of one subject; `item_id` is the nearest of them."""

    item_id: str
    items_compared: int
    model_version: str
    consistency_token: str
    timing: Timing


@dataclass(frozen=True)
class Item:
    """One enrolled example, as the server holds it."""

    id: str
    subject: str
    metadata: dict[str, MetadataValue]
    create_time: datetime | None
    update_time: datetime | None
    vector: Vector | None = None


@dataclass(frozen=True)
class Enrolled:
    """An acknowledged item, on disk. `change` is created, replaced or unchanged."""

    id: str
    change: str


@dataclass(frozen=True)
class Hit:
    """A subject (or item) near a probe; `item` is the nearest of its subject."""

    item: Item
    distance: float
    match: bool
    log_likelihood_ratio: float | None
    probability: float | None

    @property
    def subject(self) -> str:
        """The identity found; an item without a subject is its own."""
        return self.item.subject or self.item.id


@dataclass(frozen=True)
class Hits(Sequence[Hit]):
    """What one probe met, nearest first."""

    hits: tuple[Hit, ...]
    outcome: Outcome
    threshold: float | None
    expected_false_matches: float | None  # subjects that a probe of nobody matches by chance
    exact: bool  # provably the nearest
    false_positive_identification_rate: float | None = None  # a probe of nobody matches anybody
    false_positive_identification_rate_upper: float | None = None  # upper 95 % bound
    evidence: str = ""  # the threshold's: request, model or gallery; "" where there is none

    @overload
    def __getitem__(self, index: int) -> Hit: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Hit, ...]: ...
    def __getitem__(self, index: int | slice) -> Hit | tuple[Hit, ...]:
        return self.hits[index]

    def __len__(self) -> int:
        return len(self.hits)

    @property
    def match(self) -> bool | None:
        """Whether somebody was found; None when not calibrated."""
        return None if self.outcome is Outcome.NOT_CALIBRATED else self.outcome is Outcome.MATCH


@dataclass(frozen=True)
class Removed:
    """The number of items that were there and are gone, and the state after that."""

    removed: int
    consistency_token: str


@dataclass(frozen=True)
class Moved:
    """The number of items that have another subject now, and the state in which they do."""

    moved: int
    consistency_token: str


@dataclass(frozen=True)
class ItemCount:
    """The number of items, of their subjects, and the state that was read."""

    items: int
    subjects: int
    consistency_token: str


@dataclass(frozen=True)
class Hnsw:
    """Parameters of a gallery's graph index."""

    m: int
    ef_construction: int
    ef: int


@dataclass(frozen=True)
class Gallery:
    """A gallery as it is now."""

    name: str
    model: str
    space_id: str
    dimension: int
    metric: Metric | None
    metadata_keys: dict[str, str]  # key -> text, integer, number, flag or time
    max_items: int  # 0: the server's limit
    item_count: int
    subject_count: int
    index_debt: int  # rows not yet in the index; they are scanned exactly
    create_time: datetime | None
    aliases: tuple[str, ...] = ()  # that stand for it now, by name
    max_bytes: int = 0  # that its database may take on disk; 0: no limit but the disk's
    disk_bytes: int = 0  # that it takes, with what can be made anew
    hnsw: Hnsw | None = None
    segment_count: int = 0  # segments that a search goes through
    dead_count: int = 0  # vectors that no item holds any more and that a merge will drop
    memory_bytes: int = 0  # what its rows and graphs take, about


@dataclass(frozen=True)
class Exported:
    """A stretch of a gallery's items, by id, with their embeddings."""

    items: tuple[Item, ...]  # with metadata and times
    embeddings: NDArray[np.float32]  # [n, dimension], as enrolled; [n, 0] where not asked for
    dimension: int
    item_count: int  # of the whole gallery, about


@dataclass(frozen=True)
class Backup:
    """A backup that is whole: its folder on the server, and how many bytes were copied."""

    path: str
    bytes: int


class Health(enum.StrEnum):
    """What a server says of itself, or of one of its services."""

    SERVING = "SERVING"
    NOT_SERVING = "NOT_SERVING"
    UNKNOWN = "UNKNOWN"


@dataclass(frozen=True)
class OperatingPoint:
    """A rate of a served model, with its threshold and the evidence behind it."""

    false_accept_rate: float
    false_accept_rate_upper: float
    threshold: float
    true_accept_rate: float
    classes: int


@dataclass(frozen=True)
class Shadow:
    """How a candidate fares on another model's live calls.

    `mean_drift` and `worst_drift` are cosine distances between both embeddings of an item; None
    before the first, and where the two embed into different spaces (`comparable` is False).
    """

    candidate: str
    model: str
    share: float
    calls: int
    items: int
    skipped: int  # calls, while the candidate was behind
    failed: int  # items that the candidate gave an error for
    first_error: str
    comparable: bool
    mean_drift: float | None
    worst_drift: float | None
    pairs: int  # of items, each decided by both
    pairs_decided_otherwise: int
    pairs_matched: int  # by the model
    false_accept_rate: float | None  # of those decisions
    model_p50_seconds: float
    model_p99_seconds: float
    candidate_p50_seconds: float
    candidate_p99_seconds: float


@dataclass(frozen=True)
class Model:
    """One version of a twin as the server runs it."""

    name: str
    version: str
    aliases: tuple[str, ...]
    modality: str
    dimension: int
    truncations: tuple[int, ...]
    metric: Metric | None
    normalized: bool
    space_id: str
    precision: str
    provider: str
    operating_points: tuple[OperatingPoint, ...]
    manifest_json: str
    file: str = ""  # below the server's --model-dir; "" where --model named it
    file_digest: str = ""  # SHA-256, hexadecimal
    shadow: Shadow | None = None  # of the run whose candidate it is

    def manifest(self) -> Manifest:
        """Return everything that the twin's file says.

        Raises:
            ManifestError: of a newer major schema than this client reads.
        """
        return Manifest.from_json(self.manifest_json)


def from_embed_response(response: embedding_service_pb2.EmbedResponse) -> Embeddings:
    """Return the vectors of a reply in any encoding; see `Embeddings`."""
    results = response.results
    faults = tuple(
        from_status(r.error) if r.WhichOneof("result") == "error" else None for r in results
    )
    if response.HasField("packed"):
        vectors = _unpacked(response.packed, len(results))
        if vectors.dtype != np.bool_:
            vectors[[fault is not None for fault in faults]] = np.nan
    else:
        dimension = max((len(r.embedding.values) for r in results), default=0)
        vectors = np.full((len(results), dimension), np.nan, dtype=np.float32)
        for row, (result, fault) in enumerate(zip(results, faults, strict=True)):
            if fault is None:
                vectors[row] = result.embedding.values
    return Embeddings(
        vectors=vectors,
        space_id=response.space_id,
        model_version=response.model_version,
        timing=from_timing(response.timing),
        errors=faults,
        token_counts=tuple(r.token_count for r in results),
        truncated=tuple(r.truncated for r in results),
    )


def from_compare_response(
    response: embedding_service_pb2.CompareResponse,
) -> Results[Comparison]:
    """Return a Comparison or an error per pair."""
    return Results(
        answers=tuple(
            from_status(r.error)
            if r.WhichOneof("result") == "error"
            else Comparison(**_measured(r.comparison.score), **_decided(r.comparison.decision))
            for r in response.results
        ),
        model_version=response.model_version,
        timing=from_timing(response.timing),
    )


def from_enroll_response(response: gallery_service_pb2.EnrollResponse) -> Results[Enrolled]:
    """Return an Enrolled or an error per item."""
    return Results(
        answers=tuple(
            from_status(r.error)
            if r.WhichOneof("result") == "error"
            else Enrolled(r.enrolled.id, _word(gallery_service_pb2.Change, r.enrolled.change))
            for r in response.results
        ),
        consistency_token=response.consistency_token,
        timing=from_timing(response.timing),
    )


def from_search_response(response: gallery_service_pb2.SearchResponse) -> Results[Hits]:
    """Return Hits or an error per probe."""
    return Results(
        answers=tuple(
            from_status(r.error) if r.WhichOneof("result") == "error" else _hits(r.hits)
            for r in response.results
        ),
        model_version=response.model_version,
        consistency_token=response.consistency_token,
        timing=from_timing(response.timing),
    )


def from_verify_response(response: gallery_service_pb2.VerifyResponse) -> Verification:
    """Return the verification."""
    return Verification(
        **_measured(response.score),
        **_decided(response.decision),
        item_id=response.item_id,
        items_compared=response.items_compared,
        model_version=response.model_version,
        consistency_token=response.consistency_token,
        timing=from_timing(response.timing),
    )


def from_item(item: shared_pb2.Item, embedding: shared_pb2.Embedding | None = None) -> Item:
    """Return an item, with its vector where one is given."""
    vector = None
    if embedding is not None:
        vector = Vector(np.array(list(embedding.values), dtype=np.float32), embedding.space_id)
    return Item(
        id=item.id,
        subject=item.subject,
        metadata={key: _metadata_value(value) for key, value in sorted(item.metadata.items())},
        create_time=_moment(item.create_time) if item.HasField("create_time") else None,
        update_time=_moment(item.update_time) if item.HasField("update_time") else None,
        vector=vector,
    )


def from_gallery(gallery: gallery_pb2.Gallery) -> Gallery:
    """Return a gallery's description."""
    return Gallery(
        name=gallery.name,
        model=gallery.model,
        space_id=gallery.space_id,
        dimension=gallery.dimension,
        metric=_metric(gallery.metric),
        metadata_keys={
            key.key: _word(gallery_pb2.MetadataType, key.type) for key in gallery.metadata_keys
        },
        max_items=gallery.max_items,
        item_count=gallery.item_count,
        subject_count=gallery.subject_count,
        index_debt=gallery.index_debt,
        create_time=_moment(gallery.create_time) if gallery.HasField("create_time") else None,
        segment_count=gallery.segment_count,
        dead_count=gallery.dead_count,
        memory_bytes=gallery.memory_bytes,
        aliases=tuple(gallery.aliases),
        max_bytes=gallery.max_bytes,
        disk_bytes=gallery.disk_bytes,
        hnsw=Hnsw(gallery.hnsw.m, gallery.hnsw.ef_construction, gallery.hnsw.ef)
        if gallery.HasField("hnsw")
        else None,
    )


def from_export_response(response: gallery_service_pb2.ExportItemsResponse) -> Exported:
    """Return a stretch of items with their embeddings.

    Raises:
        InternalFault: there are not as many embeddings as items.
    """
    items = tuple(from_item(item) for item in response.items)
    values = np.frombuffer(response.embeddings, "<f4").astype(np.float32, copy=False)
    width = response.dimension if response.embeddings else 0
    if values.size != len(items) * width:
        raise InternalFault(
            f"{len(items)} items came with {values.size} values of embeddings of "
            f"{response.dimension}; the server is of another version, or faulty"
        )
    return Exported(
        items=items,
        embeddings=values.reshape(len(items), width),
        dimension=response.dimension,
        item_count=response.item_count,
    )


def from_model(model: model_pb2.Model) -> Model:
    """Return a served model's description."""
    return Model(
        name=model.name,
        version=model.version,
        aliases=tuple(model.aliases),
        modality=_word(shared_pb2.Modality, model.modality),
        dimension=model.dimension,
        truncations=tuple(model.truncations),
        metric=_metric(model.metric),
        normalized=model.normalized,
        space_id=model.space_id,
        precision=model.precision,
        provider=model.provider,
        operating_points=tuple(
            OperatingPoint(
                false_accept_rate=point.false_accept_rate,
                false_accept_rate_upper=point.false_accept_rate_upper,
                threshold=point.threshold,
                true_accept_rate=point.true_accept_rate,
                classes=point.classes,
            )
            for point in model.operating_points
        ),
        manifest_json=model.manifest_json,
        file=model.file,
        file_digest=model.file_digest,
        shadow=from_shadow(model.shadow) if model.HasField("shadow") else None,
    )


def from_shadow(shadow: model_pb2.Shadow) -> Shadow:
    """Return the report of a shadow run."""
    values = {one.name: getattr(shadow, one.name) for one in fields(Shadow)}
    if not shadow.HasField("mean_drift"):
        values["mean_drift"] = values["worst_drift"] = None
    if not shadow.HasField("false_accept_rate"):
        values["false_accept_rate"] = None
    return Shadow(**values)


def from_timing(timing: shared_pb2.ServerTiming) -> Timing:
    """Return where the server's time went."""
    return Timing(
        queue_us=timing.queue_us,
        preprocess_us=timing.preprocess_us,
        inference_us=timing.inference_us,
        search_us=timing.search_us,
        batch_rows=timing.batch_rows,
        dispatch_reason=_word(shared_pb2.DispatchReason, timing.dispatch_reason),
    )


def _unpacked(packed: embedding_service_pb2.Packed, count: int) -> NDArray[Any]:
    """Return the rows of a packed block: float32 [count, dimension], of bits bool.

    Raises:
        InternalFault: a block that is not as long as it says, or of an encoding that we know not.
    """
    width = packed.dimension
    shape = (count, width)
    try:
        match packed.encoding:
            case shared_pb2.ENCODING_FLOAT32:
                return np.frombuffer(packed.data, "<f4").reshape(shape).astype(np.float32)
            case shared_pb2.ENCODING_FLOAT16:
                return np.frombuffer(packed.data, "<f2").reshape(shape).astype(np.float32)
            case shared_pb2.ENCODING_INT8:
                scales = np.array(packed.scales, np.float32).reshape(count, 1)
                return np.frombuffer(packed.data, np.int8).reshape(shape) * scales
            case shared_pb2.ENCODING_BINARY:
                rows = np.frombuffer(packed.data, np.uint8).reshape(count, -(-width // 8))
                return np.unpackbits(rows, axis=1, count=width).astype(np.bool_)
        wrong = f"encoding {packed.encoding}"
    except ValueError:
        wrong = f"{len(packed.data)} bytes, {len(packed.scales)} scales"
    raise InternalFault(
        f"the reply's packed block ({wrong}) cannot hold {count} rows of {width}; report it to who "
        "runs the server"
    )


def _hits(message: gallery_service_pb2.Hits) -> Hits:
    calibrated = message.outcome != shared_pb2.OUTCOME_NOT_CALIBRATED
    return Hits(
        hits=tuple(
            Hit(item=from_item(hit.item), match=hit.match, **_measured(hit.score))
            for hit in message.hits
        ),
        outcome=_outcome(message.outcome),
        threshold=message.threshold if calibrated else None,
        expected_false_matches=_optional(message, "expected_false_matches"),
        exact=message.exact,
        false_positive_identification_rate=_optional(message, "false_positive_identification_rate"),
        false_positive_identification_rate_upper=_optional(
            message, "false_positive_identification_rate_upper"
        ),
        evidence=_word(shared_pb2.Evidence, message.evidence),
    )


def _measured(score: shared_pb2.Score) -> dict[str, Any]:
    return {
        "distance": score.distance,
        "log_likelihood_ratio": _optional(score, "log_likelihood_ratio"),
        "probability": _optional(score, "probability"),
    }


def _decided(decision: shared_pb2.Decision) -> dict[str, Any]:
    calibrated = decision.outcome != shared_pb2.OUTCOME_NOT_CALIBRATED
    return {
        "outcome": _outcome(decision.outcome),
        "threshold": decision.threshold if calibrated else None,
        "false_accept_rate": _optional(decision, "false_accept_rate"),
        "false_accept_rate_upper": _optional(decision, "false_accept_rate_upper"),
    }


def _outcome(value: int) -> Outcome:
    # An outcome of a newer server that we do not know must not read as a match.
    return _OUTCOMES.get(value, Outcome.NOT_CALIBRATED)  # type: ignore[call-overload,no-any-return]


def _optional(message: Any, name: str) -> float | None:
    return getattr(message, name) if message.HasField(name) else None


def _metric(value: int) -> Metric | None:
    return next((metric for metric, number in _METRICS.items() if number == value), None)


@functools.lru_cache(maxsize=256)  # asked for several times a reply
def _word(kind: Any, value: int) -> str:
    """Return an enum value as a lower-case word: CHANGE_CREATED -> created; "" if unspecified."""
    full: str = kind.Name(value) if value in kind.values() else f"UNKNOWN_{value}"
    zero: str = kind.Name(0)
    prefix = zero.removesuffix("UNSPECIFIED")
    return "" if value == 0 else full.removeprefix(prefix).lower()


def _metadata_value(message: shared_pb2.MetadataValue) -> MetadataValue:
    kind = message.WhichOneof("kind")
    if kind is None:
        return ""
    if kind == "time":
        return _moment(message.time)
    value: MetadataValue = getattr(message, kind)
    return value


def _moment(timestamp: timestamp_pb2.Timestamp) -> datetime:
    return timestamp.ToDatetime(tzinfo=UTC)


# ---- errors ----------------------------------------------------------------------------------


def _classes() -> list[type[TwinserveError]]:
    found: list[type[TwinserveError]] = [TwinserveError]
    for kind in found:
        found.extend(k for k in kind.__subclasses__() if k.__module__ == errors.__name__)
    return found[1:]


# The most general class of a code comes first in the tree's order and stands for unknown reasons.
_BY_REASON: dict[str, type[TwinserveError]] = {}
_BY_CODE: dict[int, type[TwinserveError]] = {}
for _kind in _classes():
    _BY_REASON.setdefault(_kind.reason, _kind)
    _BY_CODE.setdefault(int(_kind.code), _kind)


def from_status(status: status_pb2.Status) -> TwinserveError:
    """Return the error that a google.rpc.Status describes, of the class that its reason names.

    A reason that this client does not know gives the general class of the code, and stands in
    `metadata["reason"]`; so does a code that twinserve never sends, in `metadata["code"]`. The
    statuses of single items inside the details become the error's `items`.
    """
    items = []
    reason, metadata = "", {}
    path, resource, retry_after = "", None, None
    for detail in status.details:
        if detail.Is(status_pb2.Status.DESCRIPTOR):
            item = status_pb2.Status()
            detail.Unpack(item)
            items.append(from_status(item))
        for kind in (
            error_details_pb2.ErrorInfo,
            error_details_pb2.BadRequest,
            error_details_pb2.RetryInfo,
            error_details_pb2.ResourceInfo,
        ):
            if not detail.Is(kind.DESCRIPTOR):
                continue
            message = kind()
            detail.Unpack(message)
            if kind is error_details_pb2.ErrorInfo and not reason:
                if message.domain == errors.DOMAIN:
                    reason, metadata = message.reason, dict(message.metadata)
            elif kind is error_details_pb2.BadRequest and not path:
                path = next((v.field for v in message.field_violations), "")
            elif kind is error_details_pb2.RetryInfo and retry_after is None:
                retry_after = message.retry_delay.ToTimedelta().total_seconds()
            elif kind is error_details_pb2.ResourceInfo and resource is None:
                resource = (message.resource_type, message.resource_name)
    chosen = _BY_REASON.get(reason)
    if chosen is None or int(chosen.code) != status.code:
        chosen = _BY_CODE.get(status.code, errors.InternalFault)
        if reason:
            metadata["reason"] = reason
        if int(chosen.code) != status.code:
            metadata["code"] = str(status.code)
    error = chosen(
        status.message or f"the server gave no message (code {status.code})",
        field=path,
        resource=resource,
        retry_after=retry_after,
        metadata=metadata,
    )
    error.items = tuple(items)
    return error
