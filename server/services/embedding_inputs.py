"""From the input messages of a call to their embeddings, with every error at its field's path.

Two steps, so that a call of many large inputs can take the first, which may digest every byte, in a
thread.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from twinserve.errors import TwinserveError
from twinserve.manifest import InputContract
from twinserve.server import inputs
from twinserve.server.callers import Caller
from twinserve.server.config import Limits
from twinserve.server.engine import Embedded, Engine, Outcome
from twinserve.server.inputs import RawInput
from twinserve.server.services import codec
from twinserve.v1 import shared_pb2 as shared


@dataclass(slots=True)
class Reading:
    """One input as it was read."""

    field: str  # path of the message
    kind: str  # which of the message's kinds is set
    raw: RawInput | TwinserveError
    digest: bytes = b""  # of a usable one, where it was asked for


def read_messages(
    messages: Sequence[tuple[str, shared.Input]],
    limits: Limits,
    contract: InputContract,
    truncate: bool | None = None,
    *,
    digests: bool = False,
) -> list[Reading]:
    """Read the inputs of a call.

    Args:
        messages: (path of the field, input) each.
        limits: of one input.
        contract: of the twin that they are for.
        truncate: whether long texts are cut; None is the twin's own rule.
        digests: whether to digest them.
    """
    found = []
    for field, message in messages:
        raw = codec.raw_input(message, field, limits, truncate)
        digest = b""
        if digests and not isinstance(raw, TwinserveError):
            digest = inputs.digest(raw, contract)
        found.append(Reading(field, message.WhichOneof("kind") or "", raw, digest))
    return found


async def embed_messages(
    engine: Engine,
    messages: Sequence[tuple[str, shared.Input]],
    caller: Caller,
    limits: Limits,
    dimension: int | None = None,
    truncate: bool | None = None,
) -> Embedded:
    """Read and embed the inputs of a call; see `read_messages` and `embed_readings`."""
    readings = read_messages(messages, limits, engine.manifest.input, truncate)
    return await embed_readings(engine, readings, caller, dimension)


async def embed_readings(
    engine: Engine, readings: Sequence[Reading], caller: Caller, dimension: int | None = None
) -> Embedded:
    """Embed what was read of a call.

    Identical inputs are embedded once; one that cannot be used has its error in its place.

    Args:
        engine: the twin.
        readings: at least one.
        caller: whose call it is.
        dimension: of the embeddings; None is the twin's full one.
    """
    if len(readings) == 1 and not isinstance(readings[0].raw, TwinserveError):
        # Nothing repeats, and what the engine says is all there is to say.
        embedded = await engine.embed([readings[0].raw], caller, dimension)
        outcome = embedded.outcomes[0]
        if not isinstance(outcome, TwinserveError):
            return embedded
        return replace(embedded, outcomes=(_placed(outcome, readings[0]),))
    usable: list[RawInput] = []
    place: list[int | None] = []  # of each message among the usable; None where it cannot be read
    for one in readings:
        if isinstance(one.raw, TwinserveError):
            place.append(None)
        else:
            place.append(len(usable))
            usable.append(one.raw)
    firsts = inputs.originals(usable, engine.manifest.input)
    distinct = sorted(set(firsts))
    width = engine.manifest.dimension if dimension is None else dimension
    embedded = Embedded((), engine.space_of(width), 0.0, None)
    if distinct:
        embedded = await engine.embed([usable[first] for first in distinct], caller, dimension)
    if len(distinct) == len(readings) and not embedded.errors:
        return embedded
    number = {first: at for at, first in enumerate(distinct)}
    origin = [None if at is None else number[firsts[at]] for at in place]
    outcomes: list[Outcome] = []
    for one, at in zip(readings, origin, strict=True):
        if isinstance(one.raw, TwinserveError):
            outcomes.append(one.raw)
            continue
        assert at is not None
        outcome = embedded.outcomes[at]
        outcomes.append(_placed(outcome, one) if isinstance(outcome, TwinserveError) else outcome)
    return replace(
        embedded,
        outcomes=tuple(outcomes),
        token_counts=tuple(0 if at is None else embedded.token_counts[at] for at in origin),
        truncated=tuple(at is not None and embedded.truncated[at] for at in origin),
    )


def _placed(error: TwinserveError, reading: Reading) -> TwinserveError:
    """Give an engine's error the path of the input that it is about."""
    return error.at(f"{reading.field}.{error.field or reading.kind}")
