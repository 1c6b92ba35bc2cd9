"""Calls of EmbeddingService: inputs to embeddings, pairs of inputs to decisions."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from twinserve import messages
from twinserve.client.calls import (
    WINDOW,
    Call,
    Progress,
    Source,
    Upload,
    checked,
    counted,
    length,
)
from twinserve.errors import TwinserveError
from twinserve.messages import Comparison, Embeddings, Encoding, InputLike, Results, Timing
from twinserve.v1 import embedding_service_pb2


def embed(
    inputs: Sequence[InputLike],
    model: str = "",
    dimensions: int | None = None,
    *,
    prompt: str | None = None,
    truncate: bool | None = None,
    encoding: Encoding | None = None,
    atomic: bool = False,
    raise_for_errors: bool = False,
    timeout: float | None = None,
) -> Call[Embeddings]:
    """Return the embeddings of some inputs: float32 [n, dimension], or bits.

    Args:
        inputs: 1 to the server's limit of items.
        model: name, name@version or alias; "" is the only one served.
        dimensions: one of the model's truncations; None is the full dimension.
        prompt: name of the model's prompt put before each text that names none itself (a
            `Text` may); "" is none, None the model's default.
        truncate: whether a text over the limit is cut; None is the model's own rule.
        encoding: how the vectors travel, in one block. They come back as float32 [n, dimension]
            from "float32" (exact), "float16" (half the bytes; 11 bits of precision, beyond
            65504 clipped) and "int8" (a quarter; each row in steps of a 127th of its largest);
            from "binary" (a 32nd) as bool [n, dimension], true where a coordinate is above 0,
            which is for Hamming distance only. None: exact, an embedding of its own per input.
        atomic: let the server refuse the whole call for one item's error.
        raise_for_errors: raise the first item's error instead of leaving it in `errors`.
        timeout: seconds, in place of the client's own.
    """
    request = embedding_service_pb2.EmbedRequest(
        model=model,
        inputs=[messages.to_input(value, prompt) for value in inputs],
        options=messages.to_options(dimensions, truncate, encoding),
        atomic=atomic,
    )

    def read(reply: embedding_service_pb2.EmbedResponse) -> Embeddings:
        embeddings = messages.from_embed_response(reply)
        return embeddings.checked() if raise_for_errors else embeddings

    return Call(lambda stubs: stubs.embedding.Embed, request, read, timeout)


def embed_stream(
    inputs: Source[InputLike],
    model: str = "",
    dimensions: int | None = None,
    *,
    prompt: str | None = None,
    truncate: bool | None = None,
    encoding: Encoding | None = None,
    batch: int = 32,
    window: int = WINDOW,
    progress: Progress | None = None,
    timeout: float | None = None,
) -> Upload[Embeddings]:
    """Embed any number of inputs over one stream, and give their embeddings batch by batch.

    The batches come in the order of the inputs, which are taken from their iterator no faster
    than the server answers. A failed input has its error in its batch's `errors`; a batch that
    failed as a whole has vectors of no width. A server that stops is left for another.

    Args:
        inputs: any number, even without end; `AsyncClient` takes async iterables too.
        model: as for `embed`.
        dimensions: as for `embed`.
        prompt: as for `embed`.
        truncate: as for `embed`.
        encoding: as for `embed`.
        batch: inputs of one message.
        window: messages under way at once, so that batch x window inputs are held.
        progress: told after each batch how many inputs are done, and of how many (None where the
            inputs have no length).
        timeout: seconds that one reply may take, in place of the client's own.
    """
    options = messages.to_options(dimensions, truncate, encoding)

    def request(part: Sequence[InputLike], number: int) -> embedding_service_pb2.EmbedStreamRequest:
        return embedding_service_pb2.EmbedStreamRequest(
            request=embedding_service_pb2.EmbedRequest(
                model=model,
                inputs=[messages.to_input(value, prompt) for value in part],
                options=options,
                request_id=str(number),
            )
        )

    return Upload(
        lambda stubs: stubs.embedding.EmbedStream,
        inputs,
        batch,
        request,
        counted(read_stream_reply, progress, length(inputs)),
        timeout,
        window=window,
    )


def compare(
    pairs: Sequence[tuple[InputLike, InputLike]],
    far: float | None = None,
    threshold: float | None = None,
    prior: float | None = None,
    *,
    model: str = "",
    dimensions: int | None = None,
    prompt: str | None = None,
    atomic: bool = False,
    raise_for_errors: bool = False,
    timeout: float | None = None,
) -> Call[Results[Comparison]]:
    """Say of each pair whether both inputs show the same subject.

    Each truncation of the model is compared under a calibration of its own.

    Args:
        pairs: 1 to the server's limit of items.
        far: false accept rate of the decision; or
        threshold: match iff distance <= threshold; neither: the model's default.
        prior: probability of "same" before looking, in (0, 1); None is 0.5.
        model: as for `embed`.
        dimensions: one of the model's truncations; None is that of the first ready vector
            among the pairs, or the full dimension where there is none.
        prompt: as for `embed`.
        atomic: let the server refuse the whole call for one pair's error.
        raise_for_errors: raise the first pair's error instead of leaving it in its place.
        timeout: seconds, in place of the client's own.
    """
    request = embedding_service_pb2.CompareRequest(
        model=model,
        pairs=[
            embedding_service_pb2.Pair(
                first=messages.to_input(first, prompt),
                second=messages.to_input(second, prompt),
            )
            for first, second in pairs
        ],
        rule=messages.to_rule(far, threshold),
        prior=prior,
        atomic=atomic,
        dimensions=dimensions,
    )
    read = checked(messages.from_compare_response, raise_for_errors)
    return Call(lambda stubs: stubs.embedding.Compare, request, read, timeout)


def read_stream_reply(
    sent: embedding_service_pb2.EmbedStreamRequest,
    reply: embedding_service_pb2.EmbedStreamResponse,
) -> Embeddings:
    """Return a reply's embeddings; where every input failed, rows of no width and the errors.

    Raises:
        TwinserveError: a fault of the whole request.
    """
    if reply.WhichOneof("reply") == "response":
        return messages.from_embed_response(reply.response)
    count = len(sent.request.inputs)
    error = messages.from_status(reply.error)
    failed = {_place(item): item for item in error.items or (error,)}
    if None in failed:
        raise error
    errors = tuple(failed.get(place, error) for place in range(count))
    return Embeddings(
        vectors=np.full((count, 0), np.nan, np.float32),
        space_id="",
        model_version="",
        timing=Timing(0, 0, 0, 0, 0, ""),
        errors=errors,
        token_counts=(0,) * count,
        truncated=(False,) * count,
    )


def _place(error: TwinserveError) -> int | None:
    found = re.match(r"request\.inputs\[(\d+)\]", error.field)
    return int(found[1]) if found else None
