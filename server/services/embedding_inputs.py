"""From the input messages of a call to their embeddings, with every error at its field's path."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from twinserve.errors import TwinserveError
from twinserve.server import inputs
from twinserve.server.callers import Caller
from twinserve.server.config import Limits
from twinserve.server.engine import Embedded, Engine, Outcome
from twinserve.server.inputs import RawInput
from twinserve.server.services import codec
from twinserve.v1 import shared_pb2 as shared


async def embed_messages(
    engine: Engine,
    messages: Sequence[tuple[str, shared.Input]],
    caller: Caller,
    limits: Limits,
    dimension: int | None = None,
    truncate: bool | None = None,
) -> Embedded:
    """Embed the inputs of a call.

    Identical inputs are embedded once; one that cannot be used has its error in its place.

    Args:
        engine: the twin.
        messages: (path of the field, input) each, at least one.
        caller: whose call it is.
        limits: of one input.
        dimension: of the embeddings; None is the twin's full one.
        truncate: whether long texts are cut; None is the twin's own rule.
    """
    read = [codec.raw_input(message, field, limits, truncate) for field, message in messages]
    # Which of the distinct usable inputs each message is; None where it cannot be read.
    place: dict[bytes, int] = {}
    distinct: list[RawInput] = []
    origin: list[int | None] = []
    for raw in read:
        if isinstance(raw, TwinserveError):
            origin.append(None)
            continue
        # A lone input cannot repeat, and its digest would cost as much as its decoding.
        key = inputs.digest(raw, engine.manifest.input) if len(read) > 1 else b""
        if key not in place:
            place[key] = len(distinct)
            distinct.append(raw)
        origin.append(place[key])
    width = engine.manifest.dimension if dimension is None else dimension
    embedded = Embedded((), engine.space_of(width), 0.0, None)
    if distinct:
        embedded = await engine.embed(distinct, caller, dimension)
    outcomes: list[Outcome] = []
    for (field, message), raw, at in zip(messages, read, origin, strict=True):
        if isinstance(raw, TwinserveError):
            outcomes.append(raw)
            continue
        assert at is not None
        outcome = embedded.outcomes[at]
        if isinstance(outcome, TwinserveError):
            outcome = outcome.at(f"{field}.{outcome.field or message.WhichOneof('kind')}")
        outcomes.append(outcome)
    return replace(
        embedded,
        outcomes=tuple(outcomes),
        token_counts=tuple(0 if at is None else embedded.token_counts[at] for at in origin),
        truncated=tuple(at is not None and embedded.truncated[at] for at in origin),
    )
