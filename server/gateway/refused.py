"""How a call ends that is refused: one google.rpc.Status, whatever found the fault."""

from __future__ import annotations

import grpc
from google.rpc import error_details_pb2 as details
from google.rpc import status_pb2

from twinserve.errors import TwinserveError
from twinserve.server.services.status import status_of

# The trailer in which gRPC carries a google.rpc.Status.
_DETAILS = "grpc-status-details-bin"


class Refused(grpc.aio.AbortError):
    """A call ends with a status.

    Args:
        status: code, message and details.
        http: the HTTP status, where the code's own says too little.
        error: that the gateway found itself, which nobody has counted.
    """

    def __init__(
        self,
        status: status_pb2.Status,
        http: int | None = None,
        error: TwinserveError | None = None,
    ) -> None:
        super().__init__(status.message)
        self.status = status
        self.http = http
        self.error = error


def refused(error: TwinserveError, http: int | None = None) -> Refused:
    """Return how a call ends that met an error."""
    return Refused(status_of(error), http, error)


def status_in(status: grpc.Status) -> status_pb2.Status:
    """Read a google.rpc.Status out of gRPC's form of it."""
    for key, value in status.trailing_metadata or ():
        if key == _DETAILS:
            return status_pb2.Status.FromString(value)
    return status_pb2.Status(code=status.code.value[0], message=status.details)


def name_in(status: status_pb2.Status, request_id: str) -> None:
    """Have a status's ErrorInfo name the call that ends with it, where it does not yet."""
    info = details.ErrorInfo()
    if status.details and status.details[0].Unpack(info) and "request_id" not in info.metadata:
        info.metadata["request_id"] = request_id
        status.details[0].Pack(info)


def seconds_to_retry(status: status_pb2.Status) -> float | None:
    """Return the seconds after which a retry may succeed, where the status says."""
    for one in status.details:
        info = details.RetryInfo()
        if one.Unpack(info):
            seconds: float = info.retry_delay.ToTimedelta().total_seconds()
            return seconds
    return None


def reason_of(status: status_pb2.Status) -> str:
    """Return the stable reason of a status; "" where it has none."""
    for one in status.details:
        info = details.ErrorInfo()
        if one.Unpack(info):
            reason: str = info.reason
            return reason
    return ""


def field_of(status: status_pb2.Status) -> str:
    """Return the path of the request's field at fault; "" where it is none."""
    for one in status.details:
        violations = details.BadRequest()
        if one.Unpack(violations) and violations.field_violations:
            field: str = violations.field_violations[0].field
            return field
    return ""
