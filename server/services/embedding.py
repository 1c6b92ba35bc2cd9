"""EmbeddingService: Embed, EmbedStream and Compare over the engines."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from twinserve import decision
from twinserve.errors import (
    EmptyInput,
    Exhausted,
    InvalidInput,
    LimitExceeded,
    TwinserveError,
    Unavailable,
)
from twinserve.server import comparing
from twinserve.server.callers import Caller
from twinserve.server.completion import Completion
from twinserve.server.config import Limits
from twinserve.server.engine import Engine
from twinserve.server.front import Call, driven
from twinserve.server.gate import Gate
from twinserve.server.inputs import Vector
from twinserve.server.models.holding import Models
from twinserve.server.services import codec, embedding_reply
from twinserve.server.services.calls import (
    Context,
    Encoded,
    abort,
    access_of,
    answered,
    caller_of,
    check_items,
    count_errors,
    leave_front,
    unary,
)
from twinserve.server.services.embedding_inputs import (
    embed_messages,
    embed_readings,
    read_messages,
)
from twinserve.server.services.embedding_stream import Window
from twinserve.server.services.status import status_of
from twinserve.server.watching.metrics import Metrics
from twinserve.v1 import embedding_service_pb2 as pb
from twinserve.v1 import embedding_service_pb2_grpc as rpc
from twinserve.v1 import shared_pb2 as shared

_MAX_REQUEST_ID = 128
# The longest that a message of a stream waits before it asks again for room, in seconds.
_PAUSE = 0.25
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
    async def Embed(self, request: pb.EmbedRequest, context: Context) -> Encoded:
        caller = caller_of(context)
        await leave_front(context, len(request.inputs))
        return await self._embed(request, caller)

    @driven
    async def EmbedStream(  # type: ignore[override]
        self, request_iterator: object, context: Context
    ) -> None:
        # The front passes calls of its own, which drive themselves.
        assert isinstance(context, Call)
        try:
            caller = caller_of(context)
        except TwinserveError as error:
            await abort(context, status_of(error))
        unanswered: set[str] = set()
        window = Window[pb.EmbedStreamRequest](
            context,
            lambda message: self._stream_reply(message.request, caller, context, unanswered),
            self.gate,
        )
        try:
            await window.run()
        except Unavailable as error:
            await abort(context, status_of(error))

    async def _stream_reply(
        self, request: pb.EmbedRequest, caller: Caller, context: Call, unanswered: set[str]
    ) -> bytes:
        request_id = request.request_id
        work = self._embed_of_stream(request, caller, context, unanswered)
        found = await answered(self, "EmbedStream", work, context, request)
        if isinstance(found, Encoded):
            return embedding_reply.stream_response(found.data, request_id)
        return pb.EmbedStreamResponse(error=found, request_id=request_id).SerializeToString()

    async def _embed_of_stream(
        self, request: pb.EmbedRequest, caller: Caller, context: Call, unanswered: set[str]
    ) -> Encoded:
        request_id = request.request_id
        if not request_id:
            raise EmptyInput(
                "request_id is empty, and replies of a stream are told apart by it; set one",
                field="request.request_id",
            )
        if request_id in unanswered:
            raise InvalidInput(
                f"request_id {request_id!r:.80} is that of a message that is not answered yet; "
                "give each its own",
                field="request.request_id",
            )
        access_of(context).check_still_valid()
        unanswered.add(request_id)
        try:
            await leave_front(context, len(request.inputs))
            return await self._embed(request, caller, "request.", context.pause)
        finally:
            unanswered.discard(request_id)

    async def _embed(
        self,
        request: pb.EmbedRequest,
        caller: Caller,
        prefix: str = "",
        pause: Callable[[float], Completion[None]] | None = None,
    ) -> Encoded:
        """Answer one request.

        Args:
            request: the request.
            caller: whose it is.
            prefix: of its path in the message, for errors.
            pause: waits for so many seconds; given where a full server is to be waited for
                instead of refusing.
        """
        inputs = request.inputs
        codec.check_count(len(inputs), f"{prefix}inputs", self.limits)
        if len(request.request_id) > _MAX_REQUEST_ID // 4:  # a character is up to four bytes
            _check_request_id(request.request_id, prefix)
        options = request.options
        encoding = options.encoding
        if encoding not in _ENCODINGS:
            raise InvalidInput(
                f"encoding is {encoding}; give FLOAT32, FLOAT16, INT8, BINARY, or none",
                field=f"{prefix}options.encoding",
            )
        dimension = options.dimensions if options.HasField("dimensions") else None
        truncate = options.truncate if options.HasField("truncate") else None
        with self.models.using(request.model, f"{prefix}model") as engine:
            if dimension is not None:
                engine.space_of(dimension, f"{prefix}options.dimensions")
            readings = read_messages(
                [(f"{prefix}inputs[{i}]", message) for i, message in enumerate(inputs)],
                self.limits,
                engine.manifest.input,
                truncate,
            )
            while True:
                try:
                    embedded = await embed_readings(engine, readings, caller, dimension)
                    break
                except Exhausted as error:
                    seconds = error.retry_after or _PAUSE
                    late = caller.deadline is not None and (
                        time.monotonic() + seconds >= caller.deadline
                    )
                    if pause is None or late:
                        raise
                # Outside the handler, whose error would hold what it passed through.
                await pause(min(seconds, _PAUSE))
            name, version = engine.name, engine.version
            width = engine.manifest.dimension if dimension is None else dimension
        self.metrics.embedded(name, embedded.preprocess, embedded.ride)
        errors = embedded.errors
        if errors:
            check_items(errors, len(inputs), atomic=request.atomic)
            count_errors(self.metrics, errors)
        packed = None
        if encoding != shared.ENCODING_UNSPECIFIED:
            rows = [None if isinstance(o, TwinserveError) else o for o in embedded.outcomes]
            packed = codec.pack(rows, width, encoding)
        timing = embedding_reply.timing(embedded.ride, embedded.preprocess)
        data = embedding_reply.response(
            request_id=request.request_id,
            model_version=version,
            space_id=embedded.space_id,
            outcomes=embedded.outcomes,
            token_counts=embedded.token_counts,
            truncated=embedded.truncated,
            packed=packed,
            timing=timing,
        )
        return Encoded(data, name, timing_data=timing)

    @driven
    @unary
    async def Compare(self, request: pb.CompareRequest, context: Context) -> pb.CompareResponse:
        codec.check_count(len(request.pairs), "pairs", self.limits)
        rule = codec.rule_of(request.rule)
        decision.check_rule(rule, search=False)
        prior = decision.check_prior(request.prior if request.HasField("prior") else None)
        await leave_front(context, 2 * len(request.pairs))
        with self.models.using(request.model) as engine:
            return await self._compare(request, context, engine, rule, prior)

    async def _compare(
        self,
        request: pb.CompareRequest,
        context: Context,
        engine: Engine,
        rule: decision.Rule,
        prior: float,
    ) -> pb.CompareResponse:
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


def _check_request_id(request_id: str, prefix: str) -> None:
    if len(request_id.encode()) > _MAX_REQUEST_ID:
        raise LimitExceeded(
            f"request_id is over {_MAX_REQUEST_ID} bytes; send a shorter one",
            field=f"{prefix}request_id",
        )


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
