"""The one place where an error becomes a gRPC status with google.rpc details."""

from __future__ import annotations

from collections.abc import Mapping

from google.protobuf import any_pb2, duration_pb2
from google.protobuf.message import Message
from google.rpc import error_details_pb2 as details
from google.rpc import status_pb2

from twinserve.errors import DOMAIN, TwinserveError

# A status travels in two trailers, which grpc refuses above 8 KiB together: grpc-message, percent-
# encoded (up to three bytes for one), and the details in base64 (four for three), which hold the
# message again. Callers choose names and fields, so everything is cut.
DETAILS_BUDGET = 3600
MESSAGE_BYTES = 600
NAME_BYTES = 200


def status_of(error: TwinserveError, request_id: str = "") -> status_pb2.Status:
    """Describe one error; the id of a call that fails with it goes into its ErrorInfo."""
    message = _cut(error.message, MESSAGE_BYTES)
    metadata = {key: _cut(value, NAME_BYTES) for key, value in error.metadata.items()}
    if request_id:
        metadata["request_id"] = request_id
    found: list[Message] = [
        details.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=metadata)
    ]
    if error.field:
        violation = details.BadRequest.FieldViolation(
            field=_cut(error.field, NAME_BYTES), description=message, reason=error.reason
        )
        found.append(details.BadRequest(field_violations=[violation]))
    if error.retry_after is not None:
        delay = duration_pb2.Duration()
        delay.FromMilliseconds(round(error.retry_after * 1000))
        found.append(details.RetryInfo(retry_delay=delay))
    if error.resource is not None:
        kind, name = error.resource
        found.append(
            details.ResourceInfo(
                resource_type=kind, resource_name=_cut(name, NAME_BYTES), description=message
            )
        )
    status = status_pb2.Status(code=int(error.code), message=message)
    status.details.extend(_packed(one) for one in found)
    return status


def status_of_items(
    errors: Mapping[int, TwinserveError], request_id: str = ""
) -> status_pb2.Status:
    """Describe a call that fails with its items: the first item's status, then every item's.

    Each item's google.rpc.Status follows in the details, as many as a trailer carries; the first
    ErrorInfo's metadata says how many there are, and how many were left out.
    """
    first = errors[min(errors)]
    if len(errors) == 1:
        return status_of(first, request_id)
    status = status_of(first, request_id)
    room = DETAILS_BUDGET - status.ByteSize()
    left_out = 0
    for index in sorted(errors):
        item = _packed(status_of(errors[index]))
        room -= item.ByteSize() + 4
        if room < 0:
            left_out += 1
        else:
            status.details.append(item)
    info = details.ErrorInfo()
    status.details[0].Unpack(info)
    info.metadata["items_failed"] = str(len(errors))
    info.metadata["items_left_out"] = str(left_out)
    status.details[0].CopyFrom(_packed(info))
    return status


def _cut(text: str, limit: int) -> str:
    """Shorten to `limit` bytes of UTF-8, with a mark where something is missing."""
    data = text.encode()
    if len(data) <= limit:
        return text
    return data[: limit - 3].decode(errors="ignore") + "…"


def _packed(message: Message) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(message)
    return packed
