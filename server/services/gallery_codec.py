"""Between the messages of galleries and items and the gallery's own types."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime

from google.protobuf import timestamp_pb2

from twinserve.decision import Evidence, SearchLimit
from twinserve.errors import InvalidInput, LimitExceeded
from twinserve.server import gallery as galleries
from twinserve.server.gallery import (
    Filter,
    GalleryStatus,
    Item,
    MetadataType,
    MetadataValue,
)
from twinserve.server.services import codec
from twinserve.v1 import gallery_pb2, gallery_service_pb2, shared_pb2

_TYPES = {
    gallery_pb2.METADATA_TYPE_TEXT: MetadataType.TEXT,
    gallery_pb2.METADATA_TYPE_INTEGER: MetadataType.INTEGER,
    gallery_pb2.METADATA_TYPE_NUMBER: MetadataType.NUMBER,
    gallery_pb2.METADATA_TYPE_FLAG: MetadataType.FLAG,
    gallery_pb2.METADATA_TYPE_TIME: MetadataType.TIME,
}
_EVIDENCE = {
    Evidence.NONE: shared_pb2.EVIDENCE_UNSPECIFIED,
    Evidence.REQUEST: shared_pb2.EVIDENCE_REQUEST,
    Evidence.MODEL: shared_pb2.EVIDENCE_MODEL,
    Evidence.GALLERY: shared_pb2.EVIDENCE_GALLERY,
}
_MAX_DEPTH = 16
_HNSW_RANGES = {"m": (2, 128), "ef_construction": (8, 4096), "ef": (1, 4096)}


def hnsw_settings(message: gallery_pb2.HnswConfig) -> galleries.HnswSettings:
    """Read the index's parameters; 0 is the server's default of each.

    Raises:
        InvalidInput: outside its range.
    """
    given = {}
    for name, (least, most) in _HNSW_RANGES.items():
        value = getattr(message, name)
        if value and not least <= value <= most:
            raise InvalidInput(
                f"hnsw.{name} is {value}; give {least} to {most}, or 0 for the default",
                field=f"gallery.hnsw.{name}",
            )
        if value:
            given[name] = value
    return galleries.HnswSettings(**given)


def metadata_keys(
    messages: list[gallery_pb2.MetadataKey],
) -> tuple[tuple[str, MetadataType], ...]:
    """Read declared keys.

    Raises:
        InvalidInput: a key without a type.
    """
    keys = []
    for i, message in enumerate(messages):
        kind = _TYPES.get(message.type)
        if kind is None:
            raise InvalidInput(
                f"metadata key {message.key!r} has no type; give TEXT, INTEGER, NUMBER, FLAG "
                "or TIME",
                field=f"gallery.metadata_keys[{i}].type",
            )
        keys.append((message.key, kind))
    return tuple(keys)


def gallery_message(status: GalleryStatus) -> gallery_pb2.Gallery:
    """Write a gallery."""
    settings = status.settings
    return gallery_pb2.Gallery(
        name=settings.name,
        model=settings.model,
        space_id=settings.space_id,
        dimension=settings.dimension,
        metric=codec.metric_message(settings.metric),
        hnsw=gallery_pb2.HnswConfig(
            m=settings.hnsw.m,
            ef_construction=settings.hnsw.ef_construction,
            ef=settings.hnsw.ef,
        ),
        metadata_keys=[
            gallery_pb2.MetadataKey(
                key=key, type=next(value for value, known in _TYPES.items() if known is kind)
            )
            for key, kind in settings.metadata_keys
        ],
        max_items=settings.max_items,
        item_count=status.item_count,
        subject_count=status.subject_count,
        index_debt=status.index_debt,
        segment_count=status.segment_count,
        dead_count=status.dead_count,
        memory_bytes=status.memory_bytes,
        create_time=_timestamp(status.create_time),
        aliases=status.aliases,
        max_bytes=settings.max_bytes,
        disk_bytes=status.disk_bytes,
    )


def item_message(item: Item) -> shared_pb2.Item:
    """Write an item with everything but its embedding."""
    message = _details(item)
    message.id, message.subject = item.id, item.subject
    return message


def item_details(item: Item) -> bytes:
    """Write what an item has beside id and subject, as it goes on the wire behind these."""
    return _details(item).SerializeToString()


def _details(item: Item) -> shared_pb2.Item:
    message = shared_pb2.Item(
        create_time=_timestamp(item.create_time), update_time=_timestamp(item.update_time)
    )
    for key, value in item.metadata.items():
        _write_value(message.metadata[key], value)
    return message


def write_limit(message: gallery_service_pb2.Hits, limit: SearchLimit) -> None:
    """Write a search's threshold and what is known of it; what is not known stays absent."""
    message.threshold = limit.threshold or 0.0
    message.evidence = _EVIDENCE[limit.evidence]
    for name in (
        "expected_false_matches",
        "false_positive_identification_rate",
        "false_positive_identification_rate_upper",
    ):
        value = getattr(limit, name)
        if value is not None:
            setattr(message, name, value)


def metadata(
    message: Mapping[str, shared_pb2.MetadataValue], field: str
) -> dict[str, MetadataValue]:
    """Read an item's metadata.

    Raises:
        InvalidInput: a key without a value.
    """
    if not message:
        return {}
    return {key: _value(value, f"{field}.metadata[{key!r}]") for key, value in message.items()}


def filter_of(message: shared_pb2.Filter, field: str = "filter", depth: int = 0) -> Filter:
    """Read a filter.

    Raises:
        InvalidInput: a part without a kind, a clause without a key or test, or nested too deep.
    """
    if depth > _MAX_DEPTH:
        raise LimitExceeded(
            f"the filter is nested more than {_MAX_DEPTH} deep; flatten it", field=field
        )
    kind = message.WhichOneof("kind")
    if kind == "clause":
        return _clause(message.clause, f"{field}.clause")
    if kind in ("all", "any"):
        part = getattr(message, kind)
        if not part.filters:
            raise InvalidInput(
                f"filter {kind} is empty; list at least one filter", field=f"{field}.{kind}"
            )
        parts = tuple(
            filter_of(one, f"{field}.{kind}.filters[{i}]", depth + 1)
            for i, one in enumerate(part.filters)
        )
        return galleries.All(parts) if kind == "all" else galleries.Any_(parts)
    if kind == "not":
        return galleries.Not(filter_of(getattr(message, "not"), f"{field}.not", depth + 1))
    raise InvalidInput("the filter is empty; set clause, all, any or not", field=field)


def _clause(message: shared_pb2.Clause, field: str) -> Filter:
    if not message.key:
        raise InvalidInput("the clause has no key; name a declared one", field=f"{field}.key")
    test = message.WhichOneof("test")
    match test:
        case "equals":
            return galleries.Clause(
                message.key, galleries.Equals(_value(message.equals, f"{field}.equals"))
            )
        case "any_of":
            values = tuple(
                _value(value, f"{field}.any_of.values[{i}]")
                for i, value in enumerate(message.any_of.values)
            )
            if not values:
                raise InvalidInput(
                    "any_of is empty; list at least one value", field=f"{field}.any_of"
                )
            return galleries.Clause(message.key, galleries.AnyOf(values))
        case "range":
            bounds = message.range
            return galleries.Clause(
                message.key,
                galleries.InRange(
                    at_least=_value(bounds.at_least, f"{field}.range.at_least")
                    if bounds.HasField("at_least")
                    else None,
                    below=_value(bounds.below, f"{field}.range.below")
                    if bounds.HasField("below")
                    else None,
                ),
            )
        case "exists":
            return galleries.Clause(message.key, galleries.Exists(message.exists))
    raise InvalidInput(
        f"the clause on {message.key!r} has no test; set equals, any_of, range or exists",
        field=field,
    )


def _value(message: shared_pb2.MetadataValue, field: str) -> MetadataValue:
    kind = message.WhichOneof("kind")
    if kind is None:
        raise InvalidInput(
            "the value is empty; set text, integer, number, flag or time", field=field
        )
    if kind == "time":
        try:
            return message.time.ToDatetime(tzinfo=UTC)
        except (ValueError, OverflowError) as error:
            raise InvalidInput(
                "the time lies outside the years 1 to 9999; send one inside", field=field
            ) from error
    value: MetadataValue = getattr(message, kind)
    return value


def _write_value(message: shared_pb2.MetadataValue, value: MetadataValue) -> None:
    # bool before int: True is an int too.
    if isinstance(value, bool):
        message.flag = value
    elif isinstance(value, int):
        message.integer = value
    elif isinstance(value, float):
        message.number = value
    elif isinstance(value, datetime):
        message.time.CopyFrom(_timestamp(value))
    else:
        message.text = value


def _timestamp(moment: datetime) -> timestamp_pb2.Timestamp:
    stamp = timestamp_pb2.Timestamp()
    stamp.FromDatetime(moment)
    return stamp
