"""EmbeddingService: Embed and Compare over the engines."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

from twinserve import decision
from twinserve.errors import InvalidInput, LimitExceeded, TwinserveError
from twinserve.server import comparing
from twinserve.server.config import Limits
from twinserve.server.engine import Engine
from twinserve.server.front import driven
from twinserve.server.gate import Gate
from twinserve.server.inputs import Vector
from twinserve.server.metrics import Metrics
from twinserve.server.models import Models
from twinserve.server.services import codec
from twinserve.server.services.calls import (
    Context,
    caller_of,
    check_items,
    count_errors,
    not_built,
    unary,
)
from twinserve.server.services.embedding_inputs import embed_messages
from twinserve.server.services.status import status_of
from twinserve.v1 import embedding_service_pb2 as pb
from twinserve.v1 import embedding_service_pb2_grpc as rpc
from twinserve.v1 import shared_pb2 as shared

_MAX_REQUEST_ID = 128
_ENCODINGS = frozenset(shared.Encoding.values())


class EmbeddingService(rpc.EmbeddingServiceServicer):
    """Runs twins; see the contract for what each call promises."""

    def __init__(self, models: Models, metrics: Metrics, gate: Gate, limits: Limits) -> None:
        self.models = models
        self.metrics = metrics
        self.gate = gate
        self.limits = limits

    @driven
    @unary
    async def Embed(self, request: pb.EmbedRequest, context: Context) -> pb.EmbedResponse:
        codec.check_count(len(request.inputs), "inputs", self.limits)
        if len(request.request_id.encode()) > _MAX_REQUEST_ID:
            raise LimitExceeded(
                f"request_id is over {_MAX_REQUEST_ID} bytes; send a shorter one",
                field="request_id",
            )
        options = request.options
        if options.encoding not in _ENCODINGS:
            raise InvalidInput(
                f"encoding is {options.encoding}; give FLOAT32, FLOAT16, INT8, BINARY, or none",
                field="options.encoding",
            )
        engine = self.models.resolve(request.model)
        dimension = options.dimensions if options.HasField("dimensions") else None
        truncate = options.truncate if options.HasField("truncate") else None
        embedded = await embed_messages(
            engine,
            [(f"inputs[{i}]", message) for i, message in enumerate(request.inputs)],
            caller_of(context),
            self.limits,
            dimension,
            truncate,
        )
        self.metrics.embedded(engine.name, embedded.preprocess, embedded.ride)
        check_items(embedded.errors, len(request.inputs), atomic=request.atomic)
        count_errors(self.metrics, embedded.errors)
        response = pb.EmbedResponse(
            request_id=request.request_id,
            model_version=engine.version,
            space_id=embedded.space_id,
            timing=codec.timing_message(embedded.ride, embedded.preprocess),
        )
        packed = options.encoding != shared.ENCODING_UNSPECIFIED
        for outcome, count, truncated in zip(
            embedded.outcomes, embedded.token_counts, embedded.truncated, strict=True
        ):
            result = response.results.add(token_count=count, truncated=truncated)
            if isinstance(outcome, TwinserveError):
                result.error.CopyFrom(status_of(outcome))
            elif not packed:
                codec.write_embedding(result.embedding, outcome, embedded.space_id)
        if packed:
            rows = [None if isinstance(o, TwinserveError) else o for o in embedded.outcomes]
            width = engine.manifest.dimension if dimension is None else dimension
            response.packed.CopyFrom(codec.pack(rows, width, options.encoding))
        return response

    @driven
    @unary
    async def Compare(self, request: pb.CompareRequest, context: Context) -> pb.CompareResponse:
        codec.check_count(len(request.pairs), "pairs", self.limits)
        rule = codec.rule_of(request.rule)
        decision.check_rule(rule, search=False)
        prior = decision.check_prior(request.prior if request.HasField("prior") else None)
        engine = self.models.resolve(request.model)
        sides: list[tuple[str, shared.Input]] = []
        for i, pair in enumerate(request.pairs):
            sides += [(f"pairs[{i}].first", pair.first), (f"pairs[{i}].second", pair.second)]
        dimension = request.dimensions if request.HasField("dimensions") else None
        if dimension is None:
            dimension = _dimension_of(engine, sides)
        engine.space_of(dimension, "dimensions")  # refused before anything is decoded
        embedded = await embed_messages(engine, sides, caller_of(context), self.limits, dimension)
        self.metrics.embedded(engine.name, embedded.preprocess, embedded.ride)
        errors: dict[int, TwinserveError] = {}
        whole: dict[int, tuple[Vector, Vector]] = {}
        for i in range(len(request.pairs)):
            first, second = embedded.outcomes[2 * i : 2 * i + 2]
            if isinstance(first, TwinserveError):
                errors[i] = first
            elif isinstance(second, TwinserveError):
                errors[i] = second
            else:
                whole[i] = (first, second)
        check_items(errors, len(request.pairs), atomic=request.atomic)
        count_errors(self.metrics, errors)
        manifest = engine.manifest
        comparisons = comparing.compare(
            [first for first, _ in whole.values()],
            [second for _, second in whole.values()],
            manifest.metric,
            decision.usable(manifest.calibration(dimension), manifest.metric),
            rule,
            prior,
        )
        measured = dict(zip(whole, comparisons, strict=True))
        seen = self.metrics.distances.labels(engine.name)
        response = pb.CompareResponse(
            model_version=engine.version,
            space_id=embedded.space_id,
            timing=codec.timing_message(embedded.ride, embedded.preprocess),
        )
        for i in range(len(request.pairs)):
            result = response.results.add()
            if i in errors:
                result.error.CopyFrom(status_of(errors[i]))
                continue
            one = measured[i]
            seen.observe(one.distance)
            result.comparison.score.CopyFrom(codec.score_message(one.distance, one.likelihood))
            result.comparison.decision.CopyFrom(codec.decision_message(one.limit, one.outcome))
        return response

    async def EmbedStream(
        self, request_iterator: AsyncIterator[pb.EmbedStreamRequest], context: Context
    ) -> AsyncIterator[pb.EmbedStreamResponse]:
        await not_built(context, "EmbedStream", "send calls of Embed with several inputs each")
        return
        yield  # makes this the asynchronous generator that grpc expects


def _dimension_of(engine: Engine, sides: Sequence[tuple[str, shared.Input]]) -> int:
    """Return the dimension of a Compare that names none: full, or that of its ready embeddings.

    The first ready embedding of one of the twin's spaces decides for the call; whatever is of
    another space is refused in its place.
    """
    for _, message in sides:
        if message.WhichOneof("kind") == "embedding":
            found = engine.spaces.get(message.embedding.space_id)
            if found is not None:
                return found
    return engine.manifest.dimension
